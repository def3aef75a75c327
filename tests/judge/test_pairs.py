"""Pairs of scored samples: what each strategy takes, what is dropped, and that the counts account for everything."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.config.round_sections import RoundsSection
from raydpo.judge.pairs import COUNTS, PairRule, make_pairs, record_of, spin_pairs
from raydpo.schema.samples import Prompt, Sample


def sample(text: str, length: int = 5, ending: Any = "eos") -> Sample:
    return Sample((*text.encode(), *[0] * (length - len(text.encode()))), text, ending)


FIVE = [sample(text) for text in "abcde"]
SCORES = [0.2, 0.9, 0.5, 0.1, 0.4]


def pairs_of(scores: list[float], samples: list[Sample] = FIVE, seed: int = 0, **rule: Any) -> list[tuple[int, int]]:
    return [(pair.chosen, pair.rejected) for pair in make_pairs(samples, scores, PairRule(**rule), seed).pairs]


def counts_of(scores: list[float], samples: list[Sample] = FIVE, **rule: Any) -> dict[str, int]:
    """Counts that are not 0."""
    counts = make_pairs(samples, scores, PairRule(**rule), 0).counts
    assert tuple(counts) == COUNTS
    return {key: count for key, count in counts.items() if count}


def test_best_worst() -> None:
    found = make_pairs(FIVE, SCORES, PairRule(), 0)
    ((chosen, rejected, margin),) = found.pairs
    assert (chosen, rejected) == (1, 3)
    assert margin == pytest.approx(0.8)
    assert counts_of(SCORES) == {"samples": 5, "kept": 5, "considered": 1, "used": 1}


def test_best_random_depends_on_the_seed_alone() -> None:
    ranked = [1, 2, 4, 0, 3]
    for seed in range(20):
        assert pairs_of(SCORES, pairs="best_random", seed=seed) == [(1, Random(seed).choice(ranked[1:]))]
    assert {pairs_of(SCORES, pairs="best_random", seed=seed)[0][1] for seed in range(50)} == {0, 2, 3, 4}


def test_all_above_margin() -> None:
    assert pairs_of(SCORES, pairs="all_above_margin", margin=0.25) == [
        (1, 2),
        (1, 4),
        (1, 0),
        (1, 3),
        (2, 0),
        (2, 3),
        (4, 3),
    ]
    counts = counts_of(SCORES, pairs="all_above_margin", margin=0.25)
    assert counts == {"samples": 5, "kept": 5, "considered": 10, "ties": 3, "used": 7}


def test_top_k() -> None:
    assert pairs_of(SCORES, pairs="top_k", top_k=1) == [(1, 3)]
    assert pairs_of(SCORES, pairs="top_k", top_k=2) == [(1, 3), (1, 0), (2, 3), (2, 0)]
    assert pairs_of(SCORES, pairs="top_k", top_k=9) == pairs_of(SCORES, pairs="top_k", top_k=2)


def test_ties_are_counted_and_margins_are_not_inclusive() -> None:
    assert counts_of([1.0] * 5) == {"samples": 5, "kept": 5, "considered": 1, "ties": 1}
    assert pairs_of([0.0, 0.5], FIVE[:2], margin=0.5) == []
    assert pairs_of([0.0, 0.5], FIVE[:2], margin=0.49) == [(1, 0)]


def test_duplicates_keep_the_first() -> None:
    same_text = Sample((1, 2), "a", "eos")
    same_ids = Sample(FIVE[1].ids, "decoded otherwise", "eos")
    samples = [*FIVE[:2], same_text, same_ids]
    assert pairs_of([0.0, 1.0, 9.0, -9.0], samples) == [(1, 0)]
    assert counts_of([0.0, 1.0, 9.0, -9.0], samples) == {
        "samples": 4,
        "duplicates": 2,
        "kept": 2,
        "considered": 1,
        "used": 1,
    }


def test_truncated_and_empty_answers() -> None:
    samples = [sample("a"), sample("b", ending="length"), sample(" \n"), sample("c", ending="stop")]
    scores = [1.0, 5.0, -5.0, 0.0]
    assert pairs_of(scores, samples) == [(0, 3)]
    assert counts_of(scores, samples) == {
        **{"samples": 4, "truncated": 1, "empty": 1, "kept": 2},
        **{"considered": 1, "used": 1},
    }
    assert pairs_of(scores, samples, truncated="keep") == [(1, 3)]


def test_length_ratio_counts_tokens() -> None:
    samples = [sample("long", length=9), sample("b", length=4)]
    assert pairs_of([1.0, 0.0], samples, max_length_ratio=2.25) == [(0, 1)]
    assert counts_of([1.0, 0.0], samples, max_length_ratio=2.2) == {
        **{"samples": 2, "kept": 2, "considered": 1, "length_ratio": 1}
    }
    assert counts_of([0.0, 1.0], samples, max_length_ratio=2.2)["length_ratio"] == 1


def test_too_few_samples_make_no_pair() -> None:
    for strategy in ("best_worst", "best_random", "all_above_margin", "top_k"):
        assert counts_of([], [], pairs=strategy) == {}
        assert counts_of([1.0], FIVE[:1], pairs=strategy) == {"samples": 1, "kept": 1}


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, 2.0, 3.0]])
def test_scores_that_are_none(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="one finite number each is needed"):
        make_pairs(FIVE[:2], scores, PairRule(), 0)


@pytest.mark.parametrize("rule", [{"pairs": "spin"}, {"margin": -0.1}, {"top_k": 0}, {"truncated": "cut"}])
def test_rules_that_are_none(rule: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="allowed"):
        PairRule(**rule)


def test_defaults_are_those_of_the_config() -> None:
    for name, value in vars(PairRule()).items():
        assert RoundsSection.model_fields[name].default == value


STRATEGIES = st.sampled_from(["best_worst", "best_random", "all_above_margin", "top_k"])
SAMPLES = st.lists(
    st.builds(
        Sample,
        ids=st.lists(st.integers(0, 2), max_size=4).map(tuple),
        text=st.text("ab ", max_size=3),
        ending=st.sampled_from(["eos", "stop", "length"]),
    ),
    max_size=9,
)
RULES = st.builds(
    PairRule,
    pairs=STRATEGIES,
    top_k=st.integers(1, 5),
    margin=st.sampled_from([0.0, 0.5]) | st.floats(0, 10),
    max_length_ratio=st.none() | st.floats(1, 3),
    truncated=st.sampled_from(["keep", "drop"]),
)


@settings(deadline=None, database=None)
@given(data=st.data(), samples=SAMPLES, rule=RULES, seed=st.integers(0, 2**64))
def test_properties_of_pairs(data: st.DataObject, samples: list[Sample], rule: PairRule, seed: int) -> None:
    number = st.sampled_from([0.0, 0.5, 1.0]) | st.floats(allow_nan=False, allow_infinity=False)
    scores = data.draw(st.lists(number, min_size=len(samples), max_size=len(samples)))
    found = make_pairs(samples, scores, rule, seed)
    assert found == make_pairs(samples, scores, rule, seed)
    for chosen, rejected, margin in found.pairs:
        assert scores[chosen] > scores[rejected]
        assert margin == scores[chosen] - scores[rejected] > rule.margin
        for side in (samples[chosen], samples[rejected]):
            assert side.text.strip()
            assert rule.truncated == "keep" or side.ending != "length"
        lengths = sorted([len(samples[chosen].ids), len(samples[rejected].ids)])
        assert rule.max_length_ratio is None or lengths[1] <= rule.max_length_ratio * lengths[0]
    assert max(Counter(frozenset(pair[:2]) for pair in found.pairs).values(), default=0) <= 1
    texts = {frozenset((samples[pair.chosen].text, samples[pair.rejected].text)) for pair in found.pairs}
    assert len(texts) == len(found.pairs)
    check_sums(found.counts, len(samples), len(found.pairs))


def check_sums(counts: dict[str, int], num_samples: int, num_pairs: int) -> None:
    assert tuple(counts) == COUNTS
    assert counts["samples"] == num_samples
    assert counts["samples"] == sum(counts[key] for key in ("duplicates", "truncated", "empty", "kept"))
    assert counts["considered"] == sum(counts[key] for key in ("ties", "same_as_data", "length_ratio", "used"))
    assert counts["used"] == num_pairs


@settings(deadline=None, database=None)
@given(samples=SAMPLES, rule=RULES)
def test_properties_of_spin(samples: list[Sample], rule: PairRule) -> None:
    answer = Sample((0, 1), "ab", "eos")
    found = spin_pairs(answer, samples, rule)
    check_sums(found.counts, len(samples), len(found.rejected))
    assert found.counts["considered"] == found.counts["kept"], "every usable sample is asked"
    assert all(samples[index].text != "ab" and samples[index].ids != (0, 1) for index in found.rejected)
    assert len({samples[index].text for index in found.rejected}) == len(found.rejected)


def test_spin_takes_each_that_is_another_answer() -> None:
    answer = sample("b")
    samples = [sample("b", length=7), sample("a"), sample("a"), sample("c", length=50), sample("d")]
    found = spin_pairs(answer, samples, PairRule(max_length_ratio=2))
    assert found.rejected == (1, 4)
    assert {key: count for key, count in found.counts.items() if count} == {
        **{"samples": 5, "duplicates": 1, "kept": 4},
        **{"considered": 4, "same_as_data": 1, "length_ratio": 1, "used": 2},
    }


def test_a_record_of_texts() -> None:
    prompt = Prompt("key", "what a judge reads", (7, 8), {"prompt": "as in the data", "chosen": "not repeated"})
    record = record_of(prompt, FIVE[1], FIVE[0], tokenizer_digest="d", extra={"margin": 0.5})
    assert record == {
        "prompt": "as in the data",
        "chosen": "b",
        "rejected": "a",
        "prompt_ids": [7, 8],
        "chosen_ids": [98, 0, 0, 0, 0],
        "rejected_ids": [97, 0, 0, 0, 0],
        "tokenizer": "d",
        "margin": 0.5,
    }
    assert record_of(Prompt("key", "text", ()), *FIVE[:2], tokenizer_digest="d", extra={})["prompt"] == "text"


def test_a_record_of_messages() -> None:
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    record = record_of(Prompt("k", "t", (), {"prompt": messages}), *FIVE[:2], tokenizer_digest="d", extra={})
    assert record["prompt"] == messages
    assert record["chosen"] == [{"role": "assistant", "content": "a"}]
    assert record["rejected"] == [{"role": "assistant", "content": "b"}]


def test_extra_cannot_replace_what_a_record_has() -> None:
    with pytest.raises(ValueError, match="extra has chosen, tokenizer"):
        record_of(Prompt("k", "t", ()), *FIVE[:2], tokenizer_digest="d", extra={"tokenizer": 1, "chosen": 2, "x": 3})
