"""What activations cost, measured on a few tokens before the start, and how many layers to recompute for a budget.

Comes in: an `AnswerLogProbs` on the CPU. Goes out: an `ActivationCost`, pure arithmetic over tokens and layers.
Decision: bytes are measured, not derived from an architecture: every storage that appears in a small forward and
backward of the real model is counted while it lives, at three shapes, from which the cost of any number of tokens follows
(attention that keeps its scores grows with the length of a sequence, too). The price is six passes over a few dozen
tokens at every start. Weights, their gradients and the optimizer are not activations and are not in it.
"""

from __future__ import annotations

import math
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.models.text_part import text_body

if TYPE_CHECKING:
    from raydpo.models.layout import Layout  # which asks a small copy, and that this module

PART_TOKENS = 4
"""Tokens of the prompt and of each answer in the smallest probe."""


@dataclass(frozen=True)
class Scale:
    """What a small copy of a model stands for.

    num_layers: of the model, as `decoder_layers` counts them.
    further: for each text layer of the copy, how many further ones of the model are like it.
    head_rows: of the model's head.
    """

    num_layers: int
    further: tuple[int, ...]
    head_rows: int


@dataclass(frozen=True)
class ActivationCost:
    """Bytes of activations of one micro-batch on one rank.

    num_layers: of the model.
    kept, kept_again: bytes a token that live from forward to backward when no layer is recomputed, and when all are.
    passing, passing_again: what a token costs on top of that, at most, while the backward pass is in a layer:
        gradients, and the activations of a layer that is recomputed.
    head: bytes an answer token of a call of the head.
    chunk_tokens: answer tokens of a call of the head, at most.
    """

    num_layers: int
    kept: float
    kept_again: float
    passing: float
    passing_again: float
    head: float
    chunk_tokens: int

    def bytes(self, tokens: int, layers: int) -> int:
        """The most that lives at one time, when the first `layers` layers are recomputed.

        It is either at the head or in a layer that was kept, with everything of the forward pass still there; or in one
        that is recomputed, when the layers behind it are gone, for the backward pass comes to the first ones last.
        """
        share = layers / self.num_layers if layers else 0.0
        kept = tokens * (self.kept + share * (self.kept_again - self.kept))
        head = min(tokens, self.chunk_tokens) * self.head
        passing = tokens * self.passing if layers < self.num_layers or not layers else 0.0
        again = tokens * (self.kept_again + self.passing_again) if layers else 0.0
        return math.ceil(max(kept + head, kept + passing, again))

    def choose(self, budget: float, tokens: int) -> tuple[int, int]:
        """(layers, tokens): as few layers as it takes for `tokens` to stay within `budget` bytes; where no number of
        layers is enough, the most tokens for which one is, and at least one token."""
        fitting = bisect_right(range(1, tokens + 1), budget, key=lambda t: self.bytes(t, self._best(t)))
        if fitting == tokens:
            return next(k for k in range(self.num_layers + 1) if self.bytes(tokens, k) <= budget), tokens
        tokens = max(1, fitting)
        return self._best(tokens), tokens

    def _best(self, tokens: int) -> int:
        return min(range(self.num_layers + 1), key=lambda layers: self.bytes(tokens, layers))


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers that transformers can recompute one by one (gradient checkpointing), in order; none if it cannot."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            found.append(module)
            inside.update(module.modules())
    return found


def compute_again(model: Any, layers: int) -> None:
    """Have the backward pass recompute the first `layers` decoder layers. It works in training mode only."""
    model.disable_input_require_grads()  # each call adds a hook, and forgets the one before
    _switch(model, "enable")({"use_reentrant": False})
    model.disable_input_require_grads()  # which some versions have enabled by now
    model.enable_input_require_grads()
    for layer in decoder_layers(model)[layers:]:
        layer.gradient_checkpointing = False  # type: ignore[assignment]


def compute_once(model: Any) -> None:
    """Have the backward pass recompute no layer."""
    _switch(model, "disable")()
    model.disable_input_require_grads()


def _switch(model: Any, what: str) -> Callable[..., None]:
    # Newer versions of transformers have another name for it and warn of the old one.
    named = getattr(model, f"activation_checkpointing_{what}", None)
    switch: Callable[..., None] = named or getattr(model, f"gradient_checkpointing_{what}")
    return switch


@contextmanager
def _all_again(model: Any) -> Iterator[None]:
    layers = decoder_layers(model)
    compute_again(model, len(layers))
    try:
        yield
    finally:
        compute_once(model)


def measure(
    scoring: AnswerLogProbs,
    layout: Layout,
    *,
    num_answers: int,
    length: int,
    is_padded: bool = True,
    scale: Scale | None = None,
    part_tokens: int = PART_TOKENS,
) -> ActivationCost:
    """Probe a model in training mode. No gradient of a weight is computed and nothing is left behind.

    scale: where `scoring` is a small copy, the model that it stands for; the cost is that of the model.

    num_answers: to one prompt.
    length: tokens of the longest sequence, an example of a stream or a padded row; the estimate is for sequences of
        this length, and an upper bound for models whose cost of a token grows with it.
    is_padded: whether padded rows really hold padding, which makes the attention keep a mask.
    part_tokens: of the prompt and of each answer in the smallest probe.
    """
    model = scoring.model
    layers = decoder_layers(model)
    num_layers = scale.num_layers if scale else len(layers)
    parts = num_answers + 1

    def probe(part: int) -> SequenceBatch:
        return _stream(part, num_answers) if layout == "packed" else _row(part * parts, is_padded)

    def per_token() -> tuple[float, float]:
        return _per_token(scoring, probe, part_tokens, parts, length, scale.further if scale else ())

    kept, passing = per_token()
    kept_again, passing_again = kept, passing
    if layers:
        with _all_again(model):
            kept_again, passing_again = per_token()
    head = _head_bytes(scoring, scale.head_rows if scale else scoring.head.weight.shape[0])
    return ActivationCost(num_layers, kept, min(kept, kept_again), passing, passing_again, head, scoring.chunk_tokens)


def _per_token(
    scoring: AnswerLogProbs,
    probe: Callable[[int], SequenceBatch],
    part_tokens: int,
    parts: int,
    length: int,
    further: tuple[int, ...],
) -> tuple[float, float]:
    """(bytes a token after the forward, the most on top of that until the end of the backward) in sequences of `length`.

    further: how many more layers the model has that are like each of these.
    """
    short = parts * part_tokens
    probes = [_trace(scoring, probe(times * part_tokens), bool(further)) for times in (1, 2, 3)]
    if len({len(trace) for trace, _ in probes}) > 1:  # as many operations as tokens, or as experts that were asked
        probes = [([*(trace[mark] for mark in marks), max(trace)], list(range(len(marks)))) for trace, marks in probes]
    # After each operation, bytes are c + b * tokens + q * tokens^2; the largest is not the same at every length.
    once, twice, thrice = (np.array(trace, dtype=np.float64) for trace, _ in probes)
    q = np.maximum(thrice - 2 * twice + once, 0) / (2 * short**2)
    b = (thrice - once) / (2 * short) - 4 * q * short
    trace = b + q * length
    *borders, kept = (float(value) for value in trace[probes[0][1]])
    more = sum(times * (after - before) for times, before, after in zip(further, borders, borders[1:], strict=False))
    return kept + more, float(trace.max()) - kept


def _trace(scoring: AnswerLogProbs, batch: SequenceBatch, has_borders: bool) -> tuple[list[int], list[int]]:
    """(bytes that live after each operation below the head, places of: each layer's begin, the forward's end).

    has_borders: whether those of layers are wanted, too. What a layer reads is not in them where nothing keeps it.
    """
    embedded: list[Tensor] = []
    borders: dict[int, tuple[int, weakref.ref[Any], int]] = {}

    def remember(module: nn.Module, args: Any, output: Tensor) -> None:
        embedded.append(output.requires_grad_(True))

    def mark(at: int, args: Any, kwargs: Any) -> None:
        if at not in borders:  # a layer that is recomputed begins twice
            storage = next(_tensors((args, kwargs))).untyped_storage()
            living.trace.append(living.bytes)
            borders[at] = len(living.trace) - 1, weakref.ref(storage), storage.nbytes()

    hooks = [scoring.model.get_input_embeddings().register_forward_hook(remember)]
    for at, layer in enumerate(decoder_layers(text_body(scoring.plain)) if has_borders else []):
        hooks.append(layer.register_forward_pre_hook(lambda _, *given, at=at: mark(at, *given), with_kwargs=True))
    try:
        with Living() as living:
            hidden = scoring.hidden(batch)
            living.trace.append(living.bytes)  # what the forward leaves behind
            kept = len(living.trace) - 1
            for place, storage, size in borders.values():
                living.trace[place] -= size if storage() is None else 0
            torch.autograd.grad(hidden, embedded[0], torch.ones_like(hidden))
        return living.trace, [*(place for place, _, _ in borders.values()), kept]
    finally:
        for hook in hooks:
            hook.remove()


def _head_bytes(scoring: AnswerLogProbs, rows: int) -> float:
    """Bytes an answer token of a call of the head with `rows` ids."""
    # Operation by operation, so that what does not depend on the tokens (a gradient of the head's weights) is not in it.
    weight = scoring.head.weight
    head = scoring.head if rows == len(weight) else _with_rows(scoring.head, rows)
    traces = []
    for tokens in (2, 4):
        hidden_NH = torch.zeros(tokens, weight.shape[1], dtype=weight.dtype, requires_grad=True)
        with Living() as living:
            nats = scoring.score(hidden_NH, torch.zeros(tokens, dtype=torch.int64), head=head)
            torch.autograd.grad(nats.sum(), hidden_NH)
        traces.append(np.array(living.trace, dtype=np.float64))
    return float((traces[1] - traces[0]).max()) / 2


def _with_rows(head: nn.Module, rows: int) -> Callable[[Tensor], Tensor]:
    """The head as if it had `rows` rows, all 0, which take no memory until they are written."""
    weights = {
        name: torch.zeros(rows, *weight.shape[1:], dtype=weight.dtype, requires_grad=weight.requires_grad)
        for name, weight in head.named_parameters()
    }
    return lambda hidden_NH: torch.func.functional_call(head, weights, (hidden_NH,))


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that operations make, while they live. bytes: now; trace: after each operation.

    What was there before is not counted, nor what a kernel uses inside of itself. Meta tensors take no memory.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace: list[int] = []
        self.bytes = 0
        self._known: dict[int, weakref.finalize[[int, int], Any]] = {}

    def __exit__(self, *error: Any) -> None:
        """Count no more. What outlives the block, weights that stand for instance, would keep this object alive."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for finalizer in self._known.values():
            finalizer.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # a question, which fake tensors ask now and then
            return func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs)):
            self._see(tensor, is_new=False)  # weights, and whatever else was there before
        output = func(*args, **(kwargs or {}))
        for tensor in _tensors(output):
            self._see(tensor, is_new=True)
        self.trace.append(self.bytes)
        return output

    def _see(self, tensor: Tensor, is_new: bool) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if is_new and not tensor.is_meta else 0
        if key not in self._known:
            self.bytes += size
            self._known[key] = weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.bytes -= size


def _tensors(values: Any) -> Iterator[Tensor]:
    return (value for value in tree_iter(values) if isinstance(value, Tensor))


def _stream(part: int, num_answers: int) -> SequenceBatch:
    """A prompt of `part` tokens with `num_answers` answers of as many."""
    positions = [*range(2 * part), *list(range(part, 2 * part)) * (num_answers - 1)]
    segments = [(0, 2 * part, 0, 0)]
    segments += [(tail, tail + part, 0, part) for tail in range(2 * part, (num_answers + 1) * part, part)]
    return replace(
        _row(len(positions)), attention_mask=None, position_ids=torch.tensor([positions]), segments=tuple(segments)
    )


def _row(length: int, is_padded: bool = False) -> SequenceBatch:
    """A sequence of `length` tokens, the last one padding or not. Nothing in it is scored."""
    mask, nothing = torch.ones(1, length, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    mask[0, -1] = 1 - is_padded
    return SequenceBatch(torch.arange(length)[None] % 8, mask, nothing, nothing, nothing, num_sequences=1)
