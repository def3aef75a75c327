"""Attention over a packed stream in which answers share their prompt: each token is computed once.

A group of K answers to one prompt lies in the stream as [shared | tail_1 | tail_2 | ... | tail_K], where `shared` is the
longest common prefix of the K sequences. tail_1 follows it as in any sequence; every other tail has positions that go
on from the end of `shared`, and its queries see the keys of `shared` and its own. So one segment has the queries
shared + tail_1, every further one its tail alone with the keys of `shared` before its own, causal from the bottom right:
(P + C)^2 + (P + R)^2 - P^2 products for a pair, nothing is computed that is not needed, and no mask of the stream exists.

Decision: registered through transformers' attention interface, so no model class is touched; transformers builds no mask
for a name that it has no mask function for, and passes `stream` through. Each segment is a call of torch's scaled dot
product attention; on a GPU in half precision all are one call of a varlen kernel, if one agrees. Windows are exact,
because the distance of two keys of a segment is that of their positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from raydpo.models.varlen import Kernel, Segment, kernel_for, varlen_attention

if TYPE_CHECKING:
    from raydpo.models.sequence_parallel import SequenceParallel

HALF = (torch.float16, torch.bfloat16)

NAME = "raydpo_shared_prompt"
"""Name in transformers' attention interface, for `attn_implementation`."""

__all__ = ["NAME", "Segment", "Stream", "register", "segment_by_segment", "shared_prompt_attention"]


def register(*, in_graphs: bool = True) -> str:
    """Make the attention known to transformers; returns its name.

    in_graphs: False has torch.compile break its graphs around it: other segments come at each step, and it would be compiled
    anew for them.
    """
    from transformers import AttentionInterface

    if in_graphs:
        AttentionInterface.register(NAME, shared_prompt_attention)
        return NAME
    AttentionInterface.register(f"{NAME}_outside", torch.compiler.disable(shared_prompt_attention))  # type: ignore[no-untyped-call]
    return f"{NAME}_outside"


class Stream:
    """The segments of a stream as a model hands them on to its attention, and the ranks that share it, None for one alone.

    An object of its own, because torch.compile asks an object for its type, and a tuple for its length: layers would be
    compiled anew for each number of segments.
    """

    __slots__ = ("ranks", "segments")

    def __init__(self, segments: Sequence[Segment], ranks: SequenceParallel | None = None) -> None:
        self.segments = segments
        self.ranks = ranks


_windows: list[int | None] | None = None


@contextmanager
def windows_passed() -> Iterator[list[int | None]]:
    """What the layers of a model pass as their window, one entry a call, while this is open."""
    global _windows
    found: list[int | None] = []
    _windows = found
    try:
        yield found
    finally:
        _windows = None


def shared_prompt_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    stream: Stream | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer. query: [1, H, T, D]; key, value: [1, G, T, D]; returns [1, T, H, D].

    Where ranks share the stream, T is that of a rank's own stretch.
    Raises ValueError when the model did not pass `stream` on: a plain causal mask over the stream would let answers
    see each other.
    """
    if stream is None:
        raise ValueError(f"{type(module).__name__} does not pass the segments of the stream on to its attention")
    if _windows is not None:
        _windows.append(sliding_window)
    if stream.ranks is not None:
        query, key, value = stream.ranks.stream_of_heads(query, key, value)
    kernel = _kernel(query, key, value, sliding_window, softcap)
    if kernel is not None:
        output = varlen_attention(query, key, value, stream.segments, scaling, sliding_window, kernel)
    else:
        output = segment_by_segment(query, key, value, stream.segments, scaling, sliding_window, softcap)
    if stream.ranks is not None:
        output = stream.ranks.stretch(output)
    return output.transpose(1, 2), None


def _kernel(query: Tensor, key: Tensor, value: Tensor, window: int | None, softcap: float | None) -> Kernel | None:
    """What computes all segments at once: on a GPU, in half precision, without soft-capping."""
    if not query.is_cuda or query.dtype not in HALF or softcap is not None:
        return None
    heads = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    return kernel_for(query.device, query.dtype, heads, segment_by_segment, window is not None)


def segment_by_segment(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[Segment],
    scaling: float | None,
    window: int | None,
    softcap: float | None = None,
) -> Tensor:
    """One call a segment, on every device and in every dtype. Shapes as above; returns [1, H, T, D]."""
    outputs = []
    for start, stop, first, end in segments:
        q_HQD = query[:, :, start:stop]
        k_GKD, v_GKD = (_keys(tensor, start, stop, first, end) for tensor in (key, value))
        outputs.append(_attend(q_HQD, k_GKD, v_GKD, scaling, window, softcap))
    return torch.cat(outputs, dim=2)


def _keys(tensor: Tensor, start: int, stop: int, first: int, end: int) -> Tensor:
    own = tensor[:, :, start:stop]
    return own if first == end else torch.cat([tensor[:, :, first:end], own], dim=2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, softcap: float | None
) -> Tensor:
    num_queries, num_keys = query.shape[2], key.shape[2]
    is_square = num_queries == num_keys
    is_windowed = window is not None and window < num_keys
    if is_square and not is_windowed and softcap is None:
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
    distance = torch.arange(num_queries)[:, None] + (num_keys - num_queries) - torch.arange(num_keys)
    seen = distance >= 0
    if is_windowed:
        assert window is not None
        seen &= distance < window
    seen = seen.to(query.device)
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True)
    return _soft_capped(query, key, value, seen, scaling, softcap)


def _soft_capped(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None, softcap: float
) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value
