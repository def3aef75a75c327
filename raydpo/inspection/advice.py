"""What to do about the data, tied to the ways in which DPO is known to go wrong, with the key that acts on each.

Comes in: `Facts`, and the report of the preparation. Goes out: `Advice`, the gravest first. Decision: a sentence is only said
where a number of this data calls for it, and names the number.

Too alike: likelihood displacement, Razin et al. 2024, arXiv 2410.08847. Length: Singhal et al. 2023, arXiv 2310.03716, and
Park et al. 2024, arXiv 2403.19159. Noise: Chowdhury et al. 2024, arXiv 2403.00409.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from raydpo.data import DataReport
from raydpo.inspection.pair_facts import ALIKE, Facts

_LENGTH_BIAS = 0.55
_MANY_ALIKE, _SOME_NOISE, _TOO_LONG = 0.05, 0.002, 0.01
_FEW_PAIRS, _FEW_HELD_OUT = 1000, 200


@dataclass(frozen=True)
class Advice:
    """One thing to know. level: how grave. text: what was found and what it does. keys: lines of the config that act on it."""

    level: Literal["warning", "info"]
    text: str
    keys: tuple[str, ...] = ()


def advice_on(facts: Facts, report: DataReport, *, in_tokens: bool = True) -> list[Advice]:
    """Everything that the numbers call for, warnings first. in_tokens: lengths are those of the model."""
    rules = [rule for rule in _RULES if in_tokens or rule is not _truncation]
    found = [each for rule in rules for each in rule(facts, report)]
    return sorted(found, key=lambda each: each.level != "warning")


def _no_pairs(facts: Facts, report: DataReport) -> Iterator[Advice]:
    if not facts.pairs:
        yield Advice("warning", f"none of {report.lines_read:,} lines is a pair that can be used")


def _left_out(facts: Facts, report: DataReport) -> Iterator[Advice]:
    if number := sum(report.quarantined.values()):
        share = number / max(1, report.lines_read)
        level: Literal["warning", "info"] = "warning" if share > 0.02 else "info"
        text = f"{number:,} of {report.lines_read:,} lines ({share:.1%}) are left out; a run stops above data.max_bad_fraction"
        yield Advice(
            level, text, (f"data.max_bad_fraction={min(1.0, round(share + 0.01, 2)):g}",) if share > 0.02 else ()
        )


def _too_alike(facts: Facts, report: DataReport) -> Iterator[Advice]:
    if facts.alike.value > _MANY_ALIKE:
        text = (
            f"{facts.alike.value:.1%} of pairs have answers that share more than {ALIKE:.0%} of their words: lowering the "
            "rejected answer then lowers the chosen one with it (likelihood displacement); watch log_ratios/chosen"
        )
        yield Advice("warning", text, ("objective={name: dpop}", "objective.plus=[{name: nll, weight: 0.2}]"))


def _length_bias(facts: Facts, report: DataReport) -> Iterator[Advice]:
    (low, high), usual = facts.longer_chosen.interval, facts.lengths.get("rejected", {}).get("mean", 1.0)
    share = facts.longer_chosen.value
    if low > 0.5 and share >= _LENGTH_BIAS:
        text = (
            f"the longer answer is the chosen one in {share:.1%} of pairs [{low:.1%}, {high:.1%}], by "
            f"{facts.length_difference / usual:+.0%} of a rejected answer on average: length alone can lower the loss"
        )
        yield Advice(
            "warning", text, ("objective.ld_alpha=0.5", "objective.length_normalized=true", "objective={name: simpo}")
        )
    elif high < 0.5 and share <= 1 - _LENGTH_BIAS:
        text = f"the shorter answer is the chosen one in {1 - share:.1%} of pairs: the policy will learn to stop early"
        yield Advice("warning", text, ("objective.length_normalized=true",))


def _noise(facts: Facts, report: DataReport) -> Iterator[Advice]:
    number = facts.contradicted + report.contradicted_pairs
    if number > _SOME_NOISE * max(1, facts.pairs):
        text = f"{number:,} pairs are contradicted, by the same answers exchanged or by their own ratings: labels are noisy"
        keys = ("objective={name: cdpo, label_smoothing: 0.1}", "objective={name: robust, label_smoothing: 0.1}")
        yield Advice("warning", text, keys)
    if tied := report.quarantined.get("tied_scores", 0):
        yield Advice("info", f"{tied:,} rows have equal best and worst scores and say nothing")


def _truncation(facts: Facts, report: DataReport) -> Iterator[Advice]:
    longer = facts.over_limit[2048]
    if longer.value > _TOO_LONG:
        limit = next(
            (limit for limit, share in facts.over_limit.items() if share.value <= _TOO_LONG), max(facts.over_limit)
        )
        text = f"{longer.value:.1%} of pairs are longer than the default limit of 2,048 tokens and would be left out"
        yield Advice("warning", text, (f"data.max_length={limit}", "data.overlong=truncate_prompt"))


def _repeated(facts: Facts, report: DataReport) -> Iterator[Advice]:
    if facts.repeated:
        text = f"{facts.repeated:,} pairs stand there before, equal to the last token: they count twice"
        yield Advice("info", text, ("data.deduplicate=pair",))


def _held_out(facts: Facts, report: DataReport) -> Iterator[Advice]:
    if facts.eval_in_train:
        text = (
            f"{facts.eval_in_train:,} of {facts.eval_pairs:,} held-out pairs have a prompt that is trained on: held-out "
            "figures will be too good"
        )
        yield Advice("warning", text, ("data.eval_fraction=0.05",))
    if not facts.eval_pairs and facts.pairs:
        yield Advice(
            "info", "no held-out data: nothing will say whether the model got better", ("data.eval_fraction=0.05",)
        )
    elif facts.eval_pairs < _FEW_HELD_OUT and facts.pairs:
        half = 0.98 / max(1, facts.eval_pairs) ** 0.5
        yield Advice(
            "info",
            f"{facts.eval_pairs:,} held-out pairs: an accuracy near 50 % has an interval of about {half:.0%} to each side",
        )


def _few(facts: Facts, report: DataReport) -> Iterator[Advice]:
    if 0 < facts.pairs < _FEW_PAIRS:
        text = f"{facts.pairs:,} pairs are few: certain labels are soon fitted, and the policy drifts where nothing holds it"
        yield Advice("info", text, ("objective={name: ipo}", "objective.beta=0.3", "train.epochs=1"))


_RULES = (_no_pairs, _left_out, _too_alike, _length_bias, _noise, _truncation, _held_out, _repeated, _few)
