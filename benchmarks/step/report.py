"""Results of a comparison as lines for the screen and as one JSON file.

Decision: the file holds every repeat, what was counted and what it ran on; the ratios on the screen follow from it.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.made import save

PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0}
"""Dense bfloat16 peak of a GPU, by a part of its name, for the MFU."""


def heading(asked: argparse.Namespace) -> str:
    return (
        f"{asked.model} in {asked.dtype} on {_device(asked)}, {asked.pairs} pairs a step, "
        f"micro-batches of {asked.tokens:,} tokens, {asked.repeats} interleaved repeats"
    )


def lines(found: dict[str, Any]) -> list[str]:
    """One table of one shape, at most 100 columns."""
    tokens, least = found["tokens"], found["least_flops"]
    out = [
        "",
        f"{found['shape']}: {found['pairs']} pairs, {tokens['prompts']:,} prompt and {tokens['answers']:,} answer tokens",
        f"{'':8}{'pairs/s':>8}{'tokens/s':>10}{'step s':>8}{'GFLOP/pair':>12}{'of least':>9}"
        f"{'ref rows/s':>11}{'ref GFLOP':>10}{'peak GB':>9}{'counted':>9}",
    ]
    for name, side in found["sides"].items():
        flops, rate = side["flops"], side.get("pairs_per_s", math.nan)
        seconds = statistics.median(side["step_s"]) if "step_s" in side else math.nan
        out.append(
            f"{name:8}{rate:8.3f}{rate * _tokens_per_pair(found):10,.0f}{seconds:8.2f}"
            f"{flops['step'] / found['pairs'] / 1e9:12.1f}{flops['step'] / least['step']:9.2f}"
            f"{side.get('reference_rows_per_s', math.nan):11.2f}{flops['reference'] / found['pairs'] / 1e9:10.1f}"
            f"{side.get('peak_bytes', math.nan) / 1e9:9.2f}{side['counted_peak_bytes'] / 1e9:9.2f}"
        )
    if "TRL" in found["sides"]:
        out += ratios(found["sides"]["raydpo"], found["sides"]["TRL"])
    return out


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """raydpo over TRL: what was counted, and what was timed."""
    counted = (
        f"raydpo: {ours['flops']['step'] / theirs['flops']['step']:.3f} of the FLOPs of a step, "
        f"{ours['flops']['reference'] / theirs['flops']['reference']:.3f} of a reference pass, "
        f"{ours['counted_peak_bytes'] / theirs['counted_peak_bytes']:.2f} of the counted bytes"
    )
    timed = []
    if "step_s" in ours:
        timed.append(f"{ours['pairs_per_s'] / theirs['pairs_per_s']:.2f} x pairs/s")
        timed.append(f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f} of the memory")
    if "reference_s" in ours:
        timed.append(f"{ours['reference_rows_per_s'] / theirs['reference_rows_per_s']:.2f} x reference rows/s")
    if "step_s" in ours:
        apart = max(abs(a - b) for a, b in zip(ours["loss"], theirs["loss"], strict=True))
        timed.append(f"losses within {apart:.1g}")
    return [counted, *([", ".join(timed)] if timed else [])]


def _tokens_per_pair(found: dict[str, Any]) -> float:
    """Real tokens of a pair, its prompt counted once."""
    return float((found["tokens"]["prompts"] + found["tokens"]["answers"]) / found["pairs"])


def save_found(asked: argparse.Namespace, found: list[dict[str, Any]]) -> Path:
    """Write the file; its name says model, shapes, pairs, hardware and date."""
    what = f"step_{asked.model}{'_lora' if asked.lora else ''}_{'-'.join(asked.shapes)}_{asked.pairs}-pairs"
    for shape in found:
        for side in shape["sides"].values():
            side["mfu"] = _mfu(asked, shape, side) if "step_s" in side else None
    return save(asked.out, what, _device(asked), vars(asked), found)


def _mfu(asked: argparse.Namespace, shape: dict[str, Any], side: dict[str, Any]) -> float | None:
    """Useful FLOPs over time and the peak of the GPU; None where the peak is not known."""
    peaks = [peak for name, peak in PEAK_TFLOPS.items() if asked.device == "cuda" and name in _device(asked)]
    useful = shape["useful_flops"] / statistics.median(side["step_s"])
    return useful / (peaks[0] * 1e12) if peaks and asked.dtype == "bfloat16" else None


def _device(asked: argparse.Namespace) -> str:
    return torch.cuda.get_device_name() if asked.device == "cuda" else f"{asked.threads} CPU cores"
