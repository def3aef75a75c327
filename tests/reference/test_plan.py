"""Planning: only what is missing, cut so that taking whole shards away leaves the others as they were."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.artifacts import CacheIdentity, ReferenceCache
from raydpo.reference.forward import cut_padded, cut_stream
from raydpo.reference.plan import Wanted, plan_shards, wanted_rows
from raydpo.schema.rows import row_key
from tests.tables import write_examples

LENGTHS = st.lists(st.integers(2, 60), max_size=60)


class Holding:
    """A cache as the plan sees it: it holds some keys."""

    def __init__(self, keys):
        self.keys = set(keys)

    def holds(self, keys):
        return np.array([key.decode() in self.keys for key in keys.tolist()], bool)


def wanted_of(lengths, order=None):
    """Rows of examples of two answers each, in `order`."""
    number = np.arange(len(lengths)) if order is None else np.array(order, np.int64)
    keys = np.array([f"{one * 7919 % 10007:032x}" for one in number.tolist()], "S32")
    zeros, sizes = np.zeros(len(lengths), np.int64), np.array(lengths, np.int64)[number]
    return Wanted(keys, ("train",), zeros.astype(np.int8), number // 2, number % 2, sizes, number // 2, zeros)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.data())
def test_shards_that_are_left_do_not_change_when_others_are_done(lengths, rows_per_shard, data):
    wanted = wanted_of(lengths)
    whole = plan_shards(wanted, Holding([]), rows_per_shard)
    assert sorted(key for shard in whole for key in shard.keys) == sorted(key.decode() for key in wanted.keys.tolist())
    assert all(len(shard.keys) == rows_per_shard for shard in whole[:-1])
    done = data.draw(st.lists(st.sampled_from(range(len(whole))), unique=True)) if whole else []
    held = [key for number in done for key in whole[number].keys]
    left = plan_shards(wanted, Holding(held), rows_per_shard)
    assert list(left) == [shard for number, shard in enumerate(whole) if number not in done]


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_plan_does_not_depend_on_the_order_of_rows(lengths, rows_per_shard, draw):
    wanted = wanted_of(lengths)
    order = list(range(len(lengths)))
    draw.shuffle(order)
    shuffled = wanted_of(lengths, order)
    plans = [list(plan_shards(rows, Holding([]), rows_per_shard)) for rows in (wanted, shuffled)]
    assert plans[0] == plans[1]
    assert len({shard.name for shard in plans[0]}) == len(plans[0])
    in_order = [place for shard in plans[0] for place in shard.places]
    examples = [list(group) for _, group in itertools.groupby(in_order, key=lambda place: place[:2])]
    assert len(examples) == len({place[:2] for place in in_order}), "the rows of an example stand together"
    longest = [max(lengths[2 * example + answer] for _, example, answer in group) for group in examples]
    assert longest == sorted(longest)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(1, 300))
def test_batches_cover_every_row_once_within_the_budget(lengths, budget):
    lengths = tuple(sorted(lengths))
    cuts = list(cut_padded([(np.zeros(1), np.zeros(length - 1)) for length in lengths], budget))
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(len(lengths)))
    for start, stop in cuts:
        assert (stop - start) * lengths[stop - 1] <= budget or stop - start == 1
    for (start, stop), (_, after) in itertools.pairwise(cuts):
        assert stop < after
        assert (stop + 1 - start) * lengths[stop] > budget  # one more row would not have fitted


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(1, 20), min_size=1, max_size=5))), st.integers(1, 200)
)
def test_batches_of_a_stream_count_a_shared_prompt_once(groups, budget):
    rows = [
        (np.full(prompt, number), np.full(answer, place))
        for number, (prompt, answers) in enumerate(groups)
        for place, answer in enumerate(answers)
    ]
    cuts = list(cut_stream(rows, budget))
    assert [row for start, stop in cuts for row in range(start, stop)] == list(range(len(rows)))
    for start, stop in cuts:
        prompts = [prompt[0] for prompt, _ in rows[start:stop]]
        is_alone = len(set(prompts)) == 1 and len(prompts) <= 2  # a row, or a pair, is never parted
        assert tokens_once(rows[start:stop]) <= budget or is_alone
    for (start, stop), _ in itertools.pairwise(cuts):
        after = rows[stop][0]
        whole = [row for row in range(stop, len(rows)) if np.array_equal(rows[row][0], after)]
        if np.array_equal(rows[stop - 1][0], after):  # parted: the prompt alone was in the batch, and no more fitted
            assert {prompt[0] for prompt, _ in rows[start:stop]} == {after[0]}
            assert tokens_once(rows[start : stop + 1]) > budget
        else:  # not all answers to the next prompt would have fitted
            assert tokens_once(rows[start : whole[-1] + 1]) > budget


def tokens_once(rows):
    """Tokens of rows whose prompt is read once, except common beginnings of answers."""
    return sum(len(answer) for _, answer in rows) + sum(len(p) for p in {p[0]: p for p, _ in rows}.values())


def test_a_pass_over_pairs_reads_every_prompt_once():
    """Prompts of 500 tokens with two answers of 20, in batches of 1,100: two pairs each."""
    rows = [(np.full(500, number), np.full(20, answer)) for number in range(8) for answer in range(2)]
    assert list(cut_stream(rows, 1100)) == [(0, 4), (4, 8), (8, 12), (12, 16)]
    assert list(cut_stream(rows, 400)) == [(start, start + 2) for start in range(0, 16, 2)]


def test_rows_that_stand_twice_are_wanted_once(tmp_path):
    examples = [([1, 5], [[7, 2], [8, 9, 2]]), ([1, 5], [[7, 2], [6, 2]]), ([1], [[5, 7, 2], [4, 2]])]
    for split, rows in (("train", examples), ("eval", examples[:1])):
        write_examples(tmp_path, rows, split)
    wanted = wanted_rows(tmp_path, ("train", "eval"), 2)
    # ([1], [5, 7, 2]) has the ids of ([1, 5], [7, 2]) but starts its answer elsewhere: another row.
    assert wanted.places(slice(None)) == (
        ("train", 0, 0),
        ("train", 0, 1),
        ("train", 1, 1),
        ("train", 2, 0),
        ("train", 2, 1),
    )
    assert wanted.lengths.tolist() == [4, 5, 4, 4, 3]
    assert wanted.keys[0].decode() == row_key([1, 5], [7, 2])
    assert wanted.prompts.tolist() == [0, 0, 0, 2, 2]
    assert wanted.answers.tolist() == [2, 3, 2, 3, 2]
    assert wanted_rows(tmp_path, ("eval",), 1).places(slice(None)) == (("eval", 0, 0),)
    some = wanted_rows(tmp_path, ("train", "eval"), 2, {"train": np.array([2, 1]), "eval": np.array([], np.int64)})
    assert some.places(slice(None)) == (("train", 2, 0), ("train", 2, 1), ("train", 1, 0), ("train", 1, 1))


def test_rows_of_one_prompt_stand_together_whatever_example_they_are_of(tmp_path):
    repeated = [([7, 2], [8, 9, 2]), ([6, 2], [8, 9, 2]), ([7, 2], [4, 2])]
    first, *others = [([1, 5], [chosen, rejected]) for chosen, rejected in repeated]
    pairs = [first, ([3], [[4, 2], [5, 2]]), *others]
    write_examples(tmp_path, pairs)
    (shard,) = plan_shards(wanted_rows(tmp_path, ("train",), 2), Holding([]), 100)
    assert shard.places == tuple(("train", *place) for place in ((1, 0), (1, 1), (0, 0), (0, 1), (2, 0), (3, 1)))


def test_a_real_cache_leaves_the_rest_to_do(tmp_path):
    identity = CacheIdentity("w", "none", "t", "float32", "sdpa-cpu", "1")
    wanted = wanted_of([9, 3, 5, 4, 8, 7, 2])
    cache = ReferenceCache(tmp_path, identity).open()
    first, second, third = plan_shards(wanted, cache, 3)
    cache.write_shard(second.name, second.keys, [np.full(2, -1, np.float32)] * 3)
    assert list(plan_shards(wanted, cache.open(), 3)) == [first, third]
    for shard in (first, third):
        cache.write_shard(shard.name, shard.keys, [np.full(2, -1, np.float32)] * len(shard.keys))
    assert list(plan_shards(wanted, cache.open(), 3)) == []


@pytest.mark.parametrize("rows_per_shard", [1, 100])
def test_nothing_wanted_nothing_planned(rows_per_shard):
    assert list(plan_shards(wanted_of([]), Holding([]), rows_per_shard)) == []
