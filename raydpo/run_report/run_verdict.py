"""The verdict on a run in sentences: better or not, by how much, and what to look at.

Comes in: `RunFacts`. Goes out: sentences, the verdict first. Decision: only held-out pairs decide. The interval of a share is
Wilson's, that of a mean of kept pairs is by resampling them (1,000 times, seed 0), both 95 %; where the interval holds chance,
the sentence says that nothing can be seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raydpo.metrics.intervals import wilson
from raydpo.run_report.run_facts import RunFacts

Standing = Literal["better", "worse", "unclear", "unknown"]
_NUM_RESAMPLES = 1000
_DISPLACED_NATS, _FAR_NATS, _OVERFITTED, _LENGTH_SLOPE = -5.0, 30.0, 0.15, 0.3


@dataclass(frozen=True)
class RunVerdict:
    """standing: of the policy against where it started. sentences: the first says it, the others are worth a look."""

    standing: Standing
    sentences: Sequence[str]


def verdict_on(run: RunFacts) -> RunVerdict:
    """What held-out data say of `run`."""
    if run.rounds:
        return _of_rounds(run)
    first, last = run.evaluations
    if "rewards/accuracies" not in last or not run.num_held_out:
        return _without_pairs(run)
    standing, sentence = _by_accuracy(run, first, last["rewards/accuracies"])
    return RunVerdict(standing, [sentence, *_margins(run), *_worth_a_look(run)])


def _without_pairs(run: RunFacts) -> RunVerdict:
    first, last = run.evaluations
    if "loss" in first and "loss" in last:
        text = f"The held-out loss went from {first['loss']:.4f} to {last['loss']:.4f}; without pairs it has no interval here."
        return RunVerdict("unknown", [text])
    return RunVerdict(
        "unknown", ["No held-out pairs: nothing here says whether the model got better. Set data.eval_fraction."]
    )


def _by_accuracy(run: RunFacts, first: Mapping[str, float], accuracy: float) -> tuple[Standing, str]:
    number = run.num_held_out
    low, high = wilson(accuracy, number)
    before = first.get("rewards/accuracies", 0.5)
    is_chance = first.get("rewards/ties", 1.0) > 0.5
    said = f"{accuracy:.1%} [{low:.1%}, {high:.1%}] of {number:,} held-out pairs"
    baseline = 0.5 if is_chance else before
    told = "half would be chance" if is_chance else f"{before:.1%} before training"
    standing: Standing = "better" if low > baseline else "worse" if high < baseline else "unclear"
    start = {
        "better": "Better: the policy prefers the chosen answer in",
        "worse": "Worse: the policy prefers the chosen answer in only",
        "unclear": "No difference that can be told from chance: the policy prefers the chosen answer in",
    }[standing]
    return standing, f"{start} {said}; {told}."


def _margins(run: RunFacts) -> Iterator[str]:
    if not run.pairs:
        return
    margins = np.array([pair.margin for pair in run.pairs])
    low, high = mean_interval(margins)
    what = "log-ratio" if run.pairs[0].reference is not None else "log-prob"
    yield (
        f"The {what} of chosen answers exceeds that of rejected ones by {margins.mean():.2f} nats on average [{low:.2f}, "
        f"{high:.2f}], over {len(margins):,} kept pairs."
    )


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of a mean by resampling, values [n]."""
    chance = np.random.default_rng(0)
    means = [values[chance.integers(0, len(values), len(values))].mean() for _ in range(_NUM_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _worth_a_look(run: RunFacts) -> Iterator[str]:
    _, last = run.evaluations
    chosen, moved = last.get("log_ratios/chosen", 0.0), last.get("log_ratios/abs", 0.0)
    if chosen < _DISPLACED_NATS:
        yield (
            f"Look at the chosen answers: they became less likely by {-chosen:.1f} nats (likelihood displacement). A "
            "likelihood term, dpop or fewer steps hold them."
        )
    if moved > _FAR_NATS:
        yield f"The policy has moved far: {moved:.1f} nats an answer. A larger beta or fewer steps keep it nearer."
    _, trained = run.series("rewards/accuracies")
    if trained and last and np.mean(trained[-5:]) - last["rewards/accuracies"] > _OVERFITTED:
        share = float(np.mean(trained[-5:]))
        yield f"Pairs that were trained on are told apart in {share:.1%}, held-out ones less: fewer steps would do."
    if len(run.pairs) > 20:
        gaps = np.array([pair.length_difference for pair in run.pairs], float)
        margins = np.array([pair.margin for pair in run.pairs])
        if gaps.std() and margins.std() and abs(slope := float(np.corrcoef(gaps, margins)[0, 1])) > _LENGTH_SLOPE:
            which = "longer" if slope > 0 else "shorter"
            yield f"Margins follow length (correlation {slope:+.2f}): the policy favours {which} answers."


def _of_rounds(run: RunFacts) -> RunVerdict:
    last = run.rounds[-1].get("metrics", {})
    rate, low, high = (last.get(f"eval/{name}") for name in ("win_rate", "win_rate_low", "win_rate_high"))
    number = len(run.rounds)
    if rate is None or low is None or high is None:
        score = last.get("samples/mean_score")
        told = "" if score is None else f" Samples of the last round score {score:.3g} on average."
        text = f"{number} rounds, without held-out prompts: nothing here compares the policy with its start.{told}"
        return RunVerdict("unknown", [text])
    standing: Standing = "better" if low > 0.5 else "worse" if high < 0.5 else "unclear"
    start = {"better": "Better", "worse": "Worse", "unclear": "No difference that can be told from chance"}[standing]
    text = f"{start}: after {number} rounds its answers win {rate:.1%} [{low:.1%}, {high:.1%}] against the initial policy's."
    more = [f"It is {last['eval/kl_nats']:.2f} nats an answer from there."] if "eval/kl_nats" in last else []
    return RunVerdict(standing, [text, *more])
