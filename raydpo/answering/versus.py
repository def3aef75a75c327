"""`raydpo compare`: which of two models answers better, by any judge.

Comes in: two models, prompts, and a section `judge`. Goes out: a win rate with its interval, and one without the advantage of
length. Decision: every pair of answers is shown in both orders, and a prompt counts the mean of both, so that a judge that
likes the first place moves nothing; how often it does is told.

Length control: Dubois et al. 2024, arXiv 2404.04475, with length as the only other variable: a logistic regression of the wins
on tanh of the standardised difference of lengths, read at no difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raydpo.config.round_sections import JudgeSection
from raydpo.driver.judge_worker import make_judge_worker
from raydpo.errors import JudgeError
from raydpo.generate.engine import EngineSpec
from raydpo.judge.judge_inputs import find_models
from raydpo.judge.verdict import Row, Verdict
from raydpo.metrics.intervals import wilson

_NUM_RESAMPLES, _MOST_ITERATIONS = 1000, 50
_RIDGE = 1e-3
"""Of the regression, so that answers which one model always wins have a finite fit."""


@dataclass(frozen=True)
class Contest:
    """What a judge said of one model's answers against another's.

    prompts: that were judged. failed: that the judge could not judge.
    win_rate: of the first model, ties half; low, high: its 95 % interval (Wilson).
    controlled, controlled_low, controlled_high: the same at equal lengths; the interval by resampling prompts (seed 0).
    first_place: share of prompts whose first answer won in both orders.
    mean_length, other_length: characters of an answer.
    """

    prompts: int
    failed: int
    win_rate: float
    low: float
    high: float
    controlled: float
    controlled_low: float
    controlled_high: float
    first_place: float
    mean_length: float
    other_length: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def judged(
    section: JudgeSection, rows: Sequence[Row], engine: EngineSpec | None = None
) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts of rows of two answers, in this order and in the other one. In this process."""
    worker = make_judge_worker(section, engine or EngineSpec(model=""), find_models(section))
    turned = [(prompt, answers[::-1]) for prompt, answers in rows]
    *_, found = worker([*rows, *turned])
    assert isinstance(found, list)
    return found[: len(rows)], found[len(rows) :]


def compared(rows: Sequence[Row], verdicts: Sequence[Verdict], turned: Sequence[Verdict]) -> Contest:
    """rows: prompts with an answer of each model. Raises JudgeError where nothing was judged."""
    wins, gaps, first, lengths = [], [], [], []
    for (_, answers), ours, other in zip(rows, verdicts, turned, strict=True):
        if ours.scores is None or other.scores is None:
            continue
        shown_first, shown_second = _outcome(*ours.scores), 1 - _outcome(*other.scores)
        wins.append((shown_first + shown_second) / 2)
        first.append(float(shown_first == 1 and shown_second == 0))
        lengths.append([len(answer) for answer in answers])
        gaps.append(lengths[-1][0] - lengths[-1][1])
    if not wins:
        reasons = {each.reason for each in (*verdicts, *turned) if each.scores is None}
        raise JudgeError(
            f"the judge judged none of {len(rows)} prompts. First reasons: {'; '.join(sorted(reasons)[:3])}"
        )
    rate, number = float(np.mean(wins)), len(wins)
    low, high = wilson(rate, number)
    controlled = controlled_rate(np.array(wins), np.array(gaps, float))
    return Contest(
        number,
        len(rows) - number,
        rate,
        low,
        high,
        controlled,
        *_resampled(np.array(wins), np.array(gaps, float)),
        float(np.mean(first)),
        *(float(mean) for mean in np.mean(lengths, axis=0)),
    )


def _outcome(ours: float, theirs: float) -> float:
    return 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0


def controlled_rate(wins: np.ndarray, gaps: np.ndarray) -> float:
    """Win rate at equal lengths. wins: [n] in [0, 1]. gaps: [n] lengths of ours less theirs."""
    spread = gaps.std()
    if not spread:
        return float(wins.mean())
    columns = np.stack([np.ones_like(gaps), np.tanh(gaps / spread)], axis=1)
    weights = np.zeros(2)
    for _ in range(_MOST_ITERATIONS):
        chances = 1 / (1 + np.exp(-columns @ weights))
        gradient = columns.T @ (wins - chances) - _RIDGE * weights
        hessian = (columns * (chances * (1 - chances))[:, None]).T @ columns + _RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    return 1 / (1 + math.exp(-float(weights[0])))


def _resampled(wins: np.ndarray, gaps: np.ndarray) -> tuple[float, float]:
    chance = np.random.default_rng(0)
    picks = chance.integers(0, len(wins), (_NUM_RESAMPLES, len(wins)))
    rates = [controlled_rate(wins[pick], gaps[pick]) for pick in picks]
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)
