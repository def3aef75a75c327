"""What is measured of one shape: equal losses, counted FLOPs and bytes, interleaved times, peak memory.

Decision: FLOPs and bytes are counted on models of one and of two layers and continued linearly; so a batch whose
activations this machine cannot hold can be counted too. FLOPs are linear; a peak is while it stays at the same moment of a
step, and else the line is a little below it. Times are medians of repeats that take turns.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.step.flops import executed, for_layers, least_pass, least_step, useful_step
from benchmarks.step.memory import peak_bytes
from benchmarks.step.shapes import Pair, num_layers_of, pairs_of
from benchmarks.step.side import Side, Spec, load_side, no_reference, prepare_torch, synchronize
from raydpo.models.memory import Living
from raydpo.models.work import Work, work_of

Found = dict[str, Any]
COUNTED_PAIRS = 8
"""TRL's device batch when FLOPs and bytes are counted; padding grows with it."""


def measure(sides: Sequence[str], spec: Spec, shape: str, asked: argparse.Namespace) -> Found:
    """Everything of one shape, as plain values; without repeats, what can be counted."""
    prepare_torch(spec)
    pairs = pairs_of(shape, asked.pairs, asked.model)
    counted = {side: _counts(side, spec, pairs, num_layers_of(asked.model)) for side in sides}
    work = _work(spec)
    timed = _times(sides, spec, pairs, asked) if asked.repeats else {side: {} for side in sides}
    found: Found = {
        "shape": shape,
        "pairs": len(pairs),
        "tokens": {
            "prompts": sum(len(p.prompt) for p in pairs),
            "answers": sum(len(a) for p in pairs for a in p.answers),
        },
        "least_flops": {"step": least_step(pairs, work), "reference": least_pass(pairs, work)},
        "useful_flops": useful_step(pairs, work),
        "sides": {},
    }
    for side in sides:
        found["sides"][side] = counted[side] | timed[side]
        if "step_s" in timed[side]:
            found["sides"][side]["peak_bytes"] = peak_bytes(side, _of(spec, "whole"), shape, asked.pairs, asked.model)
    return found


def _of(spec: Spec, name: str) -> Spec:
    return replace(spec, folder=f"{spec.folder}/{name}")


def _counts(side: str, spec: Spec, pairs: list[Pair], num_layers: int) -> Found:
    """FLOPs of a step and of a reference pass and the most bytes that live in a step, TRL's at COUNTED_PAIRS a device batch.
    By shape alone: on the CPU."""
    steps, passes, peaks = [], [], []
    device_pairs = min(len(pairs), COUNTED_PAIRS)
    for layers in (1, 2):
        one = load_side(side, replace(_of(spec, f"layers-{layers}"), device="cpu", device_pairs=device_pairs))
        passes.append(executed(partial(one.reference, pairs)))
        flops, peak = counted_step(one, pairs)
        steps.append(flops)
        peaks.append(peak)
    return {
        "flops": {
            "step": for_layers(steps[0], steps[1], num_layers),
            "reference": for_layers(passes[0], passes[1], num_layers),
        },
        "counted_peak_bytes": for_layers(peaks[0], peaks[1], num_layers),
        "counted_device_pairs": device_pairs,
    }


def counted_step(side: Side, pairs: list[Pair]) -> tuple[int, int]:
    """(FLOPs, the most bytes of weights, gradients, optimizer and activations that live at one time) of a second step."""
    first, second = (side.prepare(some, no_reference(some)) for some in (pairs[:1], pairs))
    weights = sum(weight.numel() * weight.element_size() for weight in side.model.parameters())
    with Living() as living:
        executed(partial(side.step, first))  # makes the optimizer's state
        flops = executed(partial(side.step, second))
    return flops, weights + max(living.trace)


def _times(sides: Sequence[str], spec: Spec, pairs: list[Pair], asked: argparse.Namespace) -> Found:
    """Seconds of steps and passes, as far as they are asked for, the sides in turn; the loss of each side at each step."""
    loaded: dict[str, Side] = {side: load_side(side, _of(spec, "whole")) for side in sides}
    reference = loaded["raydpo"].reference(pairs)
    prepared = {side: loaded[side].prepare(pairs, reference) for side in sides}
    found: Found = {side: {"device_pairs": spec.device_pairs if side == "TRL" else None} for side in sides}
    runs: dict[str, Callable[[str], Any]] = {
        "reference": lambda side: loaded[side].reference(pairs),
        "step": lambda side: loaded[side].step(prepared[side]),
    }
    for side in sides:  # warm up: allocator, kernels, the optimizer's state
        one = loaded[side]
        one.step(one.prepare(pairs[:1], reference[:2]))
    for repeat in range(asked.repeats):
        for side in sides if repeat % 2 == 0 else reversed(sides):
            for what in asked.timed:
                seconds, value = _seconds(spec, partial(runs[what], side))
                found[side].setdefault(f"{what}_s", []).append(seconds)
                if what == "step":
                    found[side].setdefault("loss", []).append(value)
    for of in found.values():
        if "step_s" in of:
            of["pairs_per_s"] = len(pairs) / statistics.median(of["step_s"])
        if "reference_s" in of:
            of["reference_rows_per_s"] = 2 * len(pairs) / statistics.median(of["reference_s"])
    loaded.clear()
    gc.collect()
    return found


def _work(spec: Spec) -> Work:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return work_of(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(_of(spec, "whole").folder)))


def _seconds(spec: Spec, run: Callable[[], Any]) -> tuple[float, Any]:
    synchronize(spec)
    start = time.perf_counter()
    value = run()
    synchronize(spec)
    return time.perf_counter() - start, value
