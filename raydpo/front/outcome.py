"""What a run came to, in a sentence: better or not, by how much, and of how many pairs.

Comes in: the summary of a run. Goes out: sentences. Decision: "better" is said only where the 95 % interval (Wilson) of the
held-out accuracy lies above one half, or, without pairs, where the held-out loss fell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_Z = 1.96


def outcome(summary: Mapping[str, Any] | None, stopped_by: str = "") -> str:
    """The verdict on a run in words."""
    if summary is None:
        return f"stopped by {stopped_by}; resume() goes on" if stopped_by else "not finished; resume() goes on"
    held_out = summary.get("eval") or {}
    first, last = held_out.get("first") or {}, held_out.get("last") or {}
    accuracy, number = last.get("eval/rewards/accuracies"), summary.get("data", {}).get("eval_pairs", 0)
    if accuracy is not None and number:
        low, high = interval(accuracy, number)
        word = "better" if low > 0.5 else "worse" if high < 0.5 else "not clearly better"
        margin = last.get("eval/rewards/margins", math.nan)
        return (
            f"{word}: {100 * accuracy:.1f} % of {number:,} held-out pairs are ranked right "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f}; chance is 50), mean margin {margin:.4g}"
        )
    if "eval/loss" in last and "eval/loss" in first:
        before, after = first["eval/loss"], last["eval/loss"]
        word = "better" if after < before else "not better"
        return f"{word}: held-out loss {before:.4g} before, {after:.4g} after, of {number:,} examples"
    return f"trained for {summary.get('train', {}).get('steps', 0):,} steps; nothing was held out, so nothing says how well"


def interval(share: float, number: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `number` trials."""
    square = _Z * _Z
    middle = (share + square / (2 * number)) / (1 + square / number)
    half = _Z * math.sqrt(share * (1 - share) / number + square / (4 * number * number)) / (1 + square / number)
    return max(0.0, middle - half), min(1.0, middle + half)
