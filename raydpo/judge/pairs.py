"""Scored answers to one prompt -> pairs of a chosen and a rejected one, and preference records.

Comes in: samples with their scores and the rule. Goes out: pairs, and a count for whatever became no pair.
Decision: nothing is left out in silence. samples = duplicates + truncated + empty + kept, and
considered = ties + same_as_data + length_ratio + used; the same seed gives the same pairs in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from typing import Any, Literal, NamedTuple, Protocol

from raydpo.config.doors import PAIRS
from raydpo.config.outside import calling, is_outside
from raydpo.errors import ConfigError
from raydpo.schema.samples import Prompt, Sample

COUNTS = (
    *("samples", "duplicates", "truncated", "empty", "kept"),
    *("considered", "ties", "same_as_data", "length_ratio", "used"),
)
"""Keys of counts: the first five count samples, the others pairs."""
_SCORED = tuple(name for name, home in PAIRS.ours.items() if home)


class PairChoice(Protocol):
    """The door `rounds.pairs`: which two of the answers to one prompt are considered for a pair."""

    def __call__(
        self, samples: Sequence[Sample], scores: Sequence[float], kept: Sequence[int], top_k: int, seed: int
    ) -> Iterable[tuple[int, int]]:
        """(chosen, rejected) of each pair, places in `samples`, both of `kept`; no two of them twice.

        scores: one finite number a sample, higher is better.
        kept: places of samples that may be in a pair.
        top_k: of `rounds.top_k`.
        seed: of this prompt in this round.

        Pairs within `rounds.margin` are dropped afterwards.
        """
        ...


@dataclass(frozen=True)
class PairRule:
    """How samples become pairs; as the keys of the same names in `rounds`.

    pairs: not spin.
    top_k: as in `rounds`.
    margin: in units of the score.
    max_length_ratio: of tokens, None for no bound.
    truncated: as in `rounds`.
    """

    pairs: str = "best_worst"
    top_k: int = 2
    margin: float = 0.0
    max_length_ratio: float | None = None
    truncated: Literal["keep", "drop"] = "drop"

    def __post_init__(self) -> None:
        if not (self.pairs in _SCORED or is_outside(self.pairs)) or self.truncated not in ("keep", "drop"):
            raise ValueError(
                f"pairs is {self.pairs!r} ({', '.join(_SCORED)} are allowed), truncated {self.truncated!r}"
            )
        if not (self.top_k >= 1 and self.margin >= 0):
            raise ValueError(f"top_k is {self.top_k} (at least 1 is allowed), margin {self.margin} (at least 0)")


class Pair(NamedTuple):
    """Two samples of one prompt.

    chosen, rejected: indices into the samples.
    margin: chosen score minus rejected score, above 0.
    """

    chosen: int
    rejected: int
    margin: float


@dataclass(frozen=True)
class PairsOfPrompt:
    """counts: by COUNTS."""

    pairs: tuple[Pair, ...]
    counts: dict[str, int]


@dataclass(frozen=True)
class SpinOfPrompt:
    """rejected: indices of the samples that the data's answer is paired with. counts: by COUNTS."""

    rejected: tuple[int, ...]
    counts: dict[str, int]


def make_pairs(samples: Sequence[Sample], scores: Sequence[float], rule: PairRule, seed: int) -> PairsOfPrompt:
    """Pairs of the answers to one prompt, best first where the strategy knows an order.

    scores: one finite number a sample, higher is better. seed: of best_random and of outside choices, of nothing else.
    Raises ValueError when scores are not that, ConfigError when an outside choice of pairs is not one.
    """
    if len(scores) != len(samples) or not all(map(math.isfinite, scores)):
        raise ValueError(
            f"{len(samples)} samples came with the scores {list(scores)}; one finite number each is needed"
        )
    kept, counts = _usable(samples, rule)
    pairs = []
    for chosen, rejected in _chosen(samples, scores, kept, rule, seed):
        margin = scores[chosen] - scores[rejected]
        counts["considered"] += 1
        if margin <= rule.margin:
            counts["ties"] += 1
        elif _too_uneven(samples[chosen], samples[rejected], rule):
            counts["length_ratio"] += 1
        else:
            counts["used"] += 1
            pairs.append(Pair(chosen, rejected, margin))
    return PairsOfPrompt(tuple(pairs), counts)


def _chosen(
    samples: Sequence[Sample], scores: Sequence[float], kept: Sequence[int], rule: PairRule, seed: int
) -> list[tuple[int, int]]:
    choose: PairChoice = PAIRS.resolve(rule.pairs)
    with calling(PAIRS.key, rule.pairs):
        found = [(int(chosen), int(rejected)) for chosen, rejected in choose(samples, scores, kept, rule.top_k, seed)]
    allowed = set(kept)
    wrong = [pair for pair in found if not allowed.issuperset(pair) or pair[0] == pair[1]]
    if wrong or len({frozenset(pair) for pair in found}) < len(found):
        raise ConfigError(
            f"rounds.pairs: {rule.pairs} chose {wrong[0] if wrong else 'a pair twice'} for a prompt; two different places of "
            f"{sorted(allowed)} are allowed, no two of them twice. No pairs of this round were kept. Fix the function."
        )
    return found


def spin_pairs(answer: Sample, samples: Sequence[Sample], rule: PairRule) -> SpinOfPrompt:
    """Pairs of the data's own `answer` (chosen) and each different sample (rejected). Scores and strategy are not read.

    Samples equal to the answer make none.
    """
    kept, counts = _usable(samples, rule)
    rejected = []
    for index in kept:
        counts["considered"] += 1
        if samples[index].ids == answer.ids or samples[index].text == answer.text:
            counts["same_as_data"] += 1
        elif _too_uneven(answer, samples[index], rule):
            counts["length_ratio"] += 1
        else:
            counts["used"] += 1
            rejected.append(index)
    return SpinOfPrompt(tuple(rejected), counts)


def record_of(
    prompt: Prompt, chosen: Sample, rejected: Sample, *, tokenizer_digest: str, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The pair as a preference record: texts for people and for any other program, ids for training.

    The prompt is what the row had, text or messages; with messages, answers are messages too. `extra` is added as it is.
    Raises ValueError when it has a key of the record.
    """
    text = prompt.record.get("prompt", prompt.text)

    def side(sample: Sample) -> Any:
        return sample.text if isinstance(text, str) else [{"role": "assistant", "content": sample.text}]

    record = {
        "prompt": text,
        "chosen": side(chosen),
        "rejected": side(rejected),
        "prompt_ids": list(prompt.ids),
        "chosen_ids": list(chosen.ids),
        "rejected_ids": list(rejected.ids),
        "tokenizer": tokenizer_digest,
    }
    if taken := record.keys() & extra.keys():
        raise ValueError(f"extra has {', '.join(sorted(taken))}, which the record has itself")
    return {**record, **extra}


def _usable(samples: Sequence[Sample], rule: PairRule) -> tuple[list[int], dict[str, int]]:
    """Indices of samples that may be in a pair, in order, and the counts so far."""
    counts = dict.fromkeys(COUNTS, 0) | {"samples": len(samples)}
    kept = []
    seen_ids: set[tuple[int, ...]] = set()
    seen_texts: set[str] = set()
    for index, sample in enumerate(samples):
        if sample.ids in seen_ids or sample.text in seen_texts:
            counts["duplicates"] += 1
        elif rule.truncated == "drop" and sample.ending == "length":
            counts["truncated"] += 1
        elif not sample.text.strip():
            counts["empty"] += 1
        else:
            counts["kept"] += 1
            kept.append(index)
        seen_ids.add(sample.ids)
        seen_texts.add(sample.text)
    return kept, counts


def _too_uneven(one: Sample, other: Sample, rule: PairRule) -> bool:
    short, long = sorted((len(one.ids), len(other.ids)))
    return rule.max_length_ratio is not None and long > rule.max_length_ratio * short


def _ranked(kept: Sequence[int], scores: Sequence[float]) -> list[int]:
    """Best first; of equal scores the earlier sample first."""
    return sorted(kept, key=lambda index: -scores[index])


_Places = Sequence[int]
_Scores = Sequence[float]


def best_worst(
    samples: Sequence[Sample], scores: _Scores, kept: _Places, top_k: int, seed: int
) -> list[tuple[int, int]]:
    """The best against the worst."""
    return top_k_pairs(samples, scores, kept, 1, seed)


def best_random(
    samples: Sequence[Sample], scores: _Scores, kept: _Places, top_k: int, seed: int
) -> list[tuple[int, int]]:
    """The best against a random other one."""
    ranked = _ranked(kept, scores)
    return [(ranked[0], Random(seed).choice(ranked[1:]))] if len(ranked) > 1 else []


def all_above_margin(
    samples: Sequence[Sample], scores: _Scores, kept: _Places, top_k: int, seed: int
) -> list[tuple[int, int]]:
    """Every two, the better one first."""
    return list(combinations(_ranked(kept, scores), 2))


def top_k_pairs(
    samples: Sequence[Sample], scores: _Scores, kept: _Places, top_k: int, seed: int
) -> list[tuple[int, int]]:
    """Each of the `top_k` best against each of as many worst ones, which never overlap: of five samples, two are best and
    two worst at most."""
    ranked = _ranked(kept, scores)
    k = min(top_k, len(ranked) // 2)
    return [(best, worst) for best in ranked[:k] for worst in reversed(ranked[len(ranked) - k :])]
