"""Executed FLOPs, counted as they are dispatched, and the least that a step could do.

Matrix products only. Attention is counted whole, (queries x keys) of every call, on both sides and in the bound, because
kernels differ in what they skip of a causal triangle. Decision: counts decide what speed cannot on a busy machine; the
products are counted by shape and not computed, which no count depends on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, mm_flop, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.step.shapes import Pair
from raydpo.models.work import Work, shared_prompt_counts

_aten = torch.ops.aten
# Not in torch's own list: the CPU's fused attention, and the product that adds to its argument in place.
_MORE: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, **o: sdpa_flop_count(q, k, v),  # type: ignore[no-untyped-call]
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *a, **o: sdpa_backward_flop_count(grad, q, k, v)  # type: ignore[no-untyped-call]
    ),
    _aten.addmm_: lambda added_to, left, right, *a, **o: mm_flop(left, right),
}
_PRODUCTS = {_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, *_MORE}


class _NotComputed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Matrix products and attention give zeros of the right shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        shapes = tree_map_only(torch.Tensor, lambda t: torch.empty_like(t, device="meta"), (args, kwargs or {}))
        if func is _aten.addmm_.default:
            return args[0]
        return tree_map_only(torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), func(*shapes[0], **shapes[1]))


def executed(run: Callable[[], Any], *, is_computed: bool = False) -> int:
    """FLOPs of matrix products that `run` dispatches to the CPU. is_computed: they really are, which takes its time."""
    with (
        contextlib.nullcontext() if is_computed else _NotComputed(),  # type: ignore[no-untyped-call]
        FlopCounterMode(display=False, custom_mapping=_MORE) as counter,
    ):
        run()
    return int(counter.get_total_flops())


def for_layers(at_one: float, at_two: float, num_layers: int) -> float:
    """A count that is linear in the number of layers, from the counts of models with one and with two."""
    return at_one + (num_layers - 1) * (at_two - at_one)


def least_step(pairs: list[Pair], work: Work) -> float:
    """6 N_b a token, 8 hV an answer token and attention, each prompt once."""
    return float(work.step(*_counts(pairs)).sum())


def least_pass(pairs: list[Pair], work: Work) -> float:
    """The same of a reference pass."""
    return float(work.forward(*_counts(pairs)).sum())


def useful_step(pairs: list[Pair], work: Work) -> float:
    """What MFU counts: nothing twice, and of attention the causal half."""
    tokens, answer_tokens, attended = _counts(pairs)
    return float(work.forward(3 * tokens, 3 * answer_tokens, 3 * attended / 2).sum())


def _counts(pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    prompts = np.array([len(pair.prompt) for pair in pairs])
    answers = np.array([[len(answer) for answer in pair.answers] for pair in pairs])
    return shared_prompt_counts(prompts, answers)
