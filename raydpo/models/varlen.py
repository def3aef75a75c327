"""All segments of a packed stream in one call of a varlen kernel: flash-attn's, or the one that torch has, on a GPU.

Comes in: queries, keys and values of the stream, and its segments. Goes out: what a call a segment gives.
Decision: a kernel is used after it has given, on the device at hand, the values and gradients of one call a segment, on a
stream in which segments have more keys than queries; torch does not say how its causal mask is aligned there. Where none
is there or agrees, a warning says why, once, and segments are computed one by one; `unserved` has it for whoever may not
see warnings. torch's function has had three signatures since 2.10: it is given what it takes.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor

Segment = tuple[int, int, int, int]
"""(first query, end of queries, first key of the shared part before them, end of it), places in the stream."""
Bounds = tuple[Tensor, Tensor, int, int]
"""(first query of each segment and the end, the same of its keys, [segments + 1] int32 each; the most of both)."""
Heads = tuple[int, int, int, int]
"""Number of heads of queries and of keys, size of a head of queries and keys and of values."""
Kernel = Callable[[Tensor, Tensor, Tensor, Bounds, float | None, int | None], Tensor]
"""(q [T, H, D], k and v [keys, G, D], bounds, scale, window of keys with the token itself or None) -> [T, H, D]."""
Attend = Callable[[Tensor, Tensor, Tensor, Sequence[Segment], float | None, int | None], Tensor]

CHECKED_SEGMENTS: tuple[Segment, ...] = ((0, 40, 0, 0), (40, 57, 0, 23), (57, 58, 0, 0), (58, 90, 57, 58))
WINDOWS = (None, 11)
TOLERANCE = 0.02
"""Largest difference of a value or gradient of size 1 in half precision."""


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[Segment],
    scaling: float | None,
    window: int | None,
    kernel: Kernel,
) -> Tensor:
    """query: [1, H, T, D]; key, value: [1, G, T, D]; returns [1, H, T, D]. Keys of shared parts are laid out again."""
    q_THD = query[0].transpose(0, 1)
    k_KGD, v_KGD = (_laid_out(tensor[0].transpose(0, 1), segments) for tensor in (key, value))
    bounds = _bounds(tuple(segments), query.device)
    return kernel(q_THD, k_KGD, v_KGD, bounds, scaling, window).transpose(0, 1)[None]


def _laid_out(tensor: Tensor, segments: Sequence[Segment]) -> Tensor:
    parts = [part for start, stop, first, end in segments for part in (tensor[first:end], tensor[start:stop])]
    return torch.cat([part for part in parts if len(part)])


@lru_cache(maxsize=8)
def _bounds(segments: tuple[Segment, ...], device: torch.device) -> Bounds:
    queries = [stop - start for start, stop, _, _ in segments]
    keys = [stop - start + end - first for start, stop, first, end in segments]
    places = [torch.tensor([0, *accumulate(n)], dtype=torch.int32, device=device) for n in (queries, keys)]
    return places[0], places[1], max(queries), max(keys)


def flash_attn_kernel() -> Kernel:
    """flash-attn's varlen function. Raises ImportError where it is not installed."""
    from flash_attn import flash_attn_varlen_func

    def run(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scale: float | None, window: int | None) -> Tensor:
        left = -1 if window is None else window - 1
        output: Tensor = flash_attn_varlen_func(
            q, k, v, *bounds, softmax_scale=scale, causal=True, window_size=(left, 0 if left >= 0 else -1)
        )
        return output

    return run


def torch_kernel() -> Kernel:
    """torch's varlen attention. Raises ImportError before torch 2.10."""
    from torch.nn.attention.varlen import varlen_attn

    return called_with_what_it_takes(varlen_attn)


def called_with_what_it_takes(varlen_attn: Callable[..., Any]) -> Kernel:
    """torch's function as a kernel. 2.10 has is_causal and no window or scale, 2.11 both; from 2.12 GQA is a flag.

    Its kernels take GQA without the flag, too. A window that it cannot have is a NotImplementedError.
    """
    takes = inspect.signature(varlen_attn).parameters

    def run(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, scale: float | None, window: int | None) -> Tensor:
        more: dict[str, Any] = {}
        if "window_size" in takes:
            more["window_size"] = (-1 if window is None else window - 1, 0)
        elif window is not None:
            raise NotImplementedError("torch's varlen attention has windows from 2.11 on")
        else:
            more["is_causal"] = True
        usual = q.shape[-1] ** -0.5
        if scale is not None and "scale" in takes:
            more["scale"] = scale
        elif scale is not None and not math.isclose(scale, usual):
            q = q * (scale / usual)
        if q.shape[1] != k.shape[1] and "enable_gqa" in takes:
            more["enable_gqa"] = True
        output: Any = varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), *bounds, **more)
        return cast(Tensor, output)

    return run


@lru_cache(maxsize=8)
def kernel_for(
    device: torch.device, dtype: torch.dtype, heads: Heads, attend: Attend, is_windowed: bool = True
) -> Kernel | None:
    """The first kernel that gives what `attend` gives on `device`; None, after a warning that says why, without one.

    is_windowed: with a sliding window and without, else without alone.
    """
    why = []
    for make in (flash_attn_kernel, torch_kernel):
        try:
            kernel = make()
            # A thread of its own knows nothing of a forward without gradient or of the checkpointing around this one.
            with ThreadPoolExecutor(max_workers=1) as thread:
                difference = thread.submit(disagreement, kernel, device, dtype, heads, attend, is_windowed).result()
        except (ImportError, RuntimeError, ValueError, TypeError) as error:  # also NotImplementedError
            why.append(f"{make.__name__}: {error}")
            continue
        if difference <= TOLERANCE:
            return kernel
        why.append(f"{make.__name__}: values or gradients {difference:.2g} apart")
    said = f"attention runs segment by segment, no varlen kernel serves {device}: {'; '.join(why)}"
    _unserved.append(said)
    warnings.warn(said, stacklevel=2)
    return None


_unserved: list[str] = []


def unserved() -> tuple[str, ...]:
    """Why attention runs segment by segment in this process, a sentence for each kind of heads; empty where it does not."""
    return tuple(dict.fromkeys(_unserved))


def disagreement(
    kernel: Kernel, device: torch.device, dtype: torch.dtype, heads: Heads, attend: Attend, is_windowed: bool = True
) -> float:
    """Largest difference of values and gradients between `kernel` and `attend` on CHECKED_SEGMENTS; inf for NaN."""
    draw = torch.Generator().manual_seed(0)
    length = CHECKED_SEGMENTS[-1][1]
    of_queries, of_keys, size, size_of_values = heads
    shapes = [(1, of_queries, length, size), (1, of_keys, length, size)]
    shapes += [(1, of_keys, length, size_of_values), (1, of_queries, length, size_of_values)]
    *inputs, weights = (torch.randn(shape, generator=draw).to(device, dtype) for shape in shapes)
    worst = 0.0
    for window in WINDOWS if is_windowed else WINDOWS[:1]:
        theirs, ours = (_values_and_gradients(run, inputs, weights, window) for run in (attend, _with(kernel)))
        for a, b in zip(ours, theirs, strict=True):
            apart = float((a - b).abs().max()) / max(1.0, float(b.abs().max()))
            worst = max(worst, apart) if math.isfinite(apart) else math.inf  # max() passes NaN over
    return worst


def _with(kernel: Kernel) -> Attend:
    return partial(varlen_attention, kernel=kernel)


def _values_and_gradients(run: Attend, inputs: list[Tensor], weights: Tensor, window: int | None) -> list[Tensor]:
    q, k, v = (tensor.clone().requires_grad_() for tensor in inputs)
    output = run(q, k, v, CHECKED_SEGMENTS, None, window)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), (q, k, v))]
