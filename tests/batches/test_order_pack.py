"""Order: every example once an epoch, whatever the rank or restart. Pack: nothing lost, budget kept, ranks level."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.batches import Order, pack
from raydpo.config import Config


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 20), st.sampled_from([0.4, 1, 2, 2.5]), st.integers(0, 5))
def test_epochs_are_permutations_and_steps_add_up(num_examples, batch, epochs, seed):
    order = Order(num_examples, batch, epochs, seed)
    steps = [order.examples(step) for step in range(order.num_steps)]
    assert all(len(step) for step in steps)
    for epoch in range(int(epochs)):
        first = epoch * order.steps_per_epoch
        seen = np.concatenate(steps[first : first + order.steps_per_epoch])
        assert sorted(seen.tolist()) == list(range(num_examples))
    expected = int(epochs) * num_examples + round((epochs - int(epochs)) * num_examples)
    assert sum(map(len, steps)) == max(expected, 1)
    assert all(len(s) == batch for i, s in enumerate(steps, 1) if i % order.steps_per_epoch and i < len(steps))


def test_order_depends_on_seed_and_epoch_only():
    a, b = Order(50, 8, 2, seed=1), Order(50, 8, 2, seed=2)
    assert a.epoch(0).tolist() == Order(50, 16, 3, seed=1).epoch(0).tolist()
    assert a.epoch(0).tolist() != b.epoch(0).tolist()
    assert a.epoch(0).tolist() != a.epoch(1).tolist()


def test_max_steps_cuts():
    assert Order(100, 10, 3, 0, max_steps=7).num_steps == 7


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 60), st.integers(2, 60)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 400),
)
def test_pack_keeps_every_example_once_within_the_budget(lengths, num_ranks, budget):
    rows = np.array(lengths)
    layout = pack(rows, num_ranks, budget)
    placed = [p for rank in layout for micro in rank for p in micro]
    assert sorted(placed) == list(range(len(rows)))
    assert len({len(rank) for rank in layout}) == 1
    for rank in layout:
        for micro in rank:
            padded = len(micro) * 2 * max((int(rows[p].max()) for p in micro), default=0)
            assert padded <= budget or len(micro) == 1


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(2, 120), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 400))
def test_streams_keep_every_example_once_within_the_budget(lengths, num_ranks, budget):
    rows = np.array(lengths)[:, None]
    layout = pack(rows, num_ranks, budget, is_padded=False)
    assert sorted(p for rank in layout for micro in rank for p in micro) == list(range(len(rows)))
    assert len({len(rank) for rank in layout}) == 1
    for rank in layout:
        sums = [sum(lengths[p] for p in micro) for micro in rank if micro]
        assert all(total <= budget or len(micro) == 1 for total, micro in zip(sums, rank, strict=False))
        assert all(a + b > budget for i, a in enumerate(sums) for b in sums[i + 1 :]), "two could have been one"


def test_streams_fill_their_budget():
    lengths = np.random.default_rng(0).lognormal(5, 0.6, size=(4096, 1)).astype(np.int64) + 2
    (rank,) = pack(lengths, 1, 8192, is_padded=False)
    assert lengths.sum() / (len(rank) * 8192) > 0.98


def test_pack_balances_ranks():
    generator = np.random.default_rng(0)
    rows = generator.lognormal(5, 0.6, size=(256, 2)).astype(np.int64) + 2
    work = [rows[[p for micro in rank for p in micro]].sum() for rank in pack(rows, 4, 4096)]
    assert max(work) / np.mean(work) < 1.03


def test_the_order_is_the_one_that_runs_were_made_with():
    """By value: a resumed run reads on where it was, and the seed and the epoch both count."""
    order = Order(num_examples=8, batch_size=3, epochs=2, seed=5)
    by_hand = [np.random.Generator(np.random.Philox(key=[5, epoch])).permutation(8) for epoch in (0, 1)]
    assert [order.epoch(epoch).tolist() for epoch in (0, 1)] == [each.tolist() for each in by_hand]
    assert order.examples(0).tolist() == by_hand[0][:3].tolist()
    assert order.examples(2).tolist() == by_hand[0][6:].tolist()
    assert order.examples(4).tolist() == by_hand[1][3:6].tolist()
    assert order.epoch_at(0) == 0
    assert order.epoch_at(4) == pytest.approx(4 / 3)


def test_an_order_takes_its_bounds_from_the_config():
    config = Config.model_validate(
        {
            "run": {"dir": "a", "seed": 3},
            "model": {"path": "b"},
            "train": {"global_batch_pairs": 4, "epochs": 1.5, "max_steps": 2},
        }
    )
    assert Order.of(config, 10) == Order(10, 4, 1.5, 3, 2)


def test_ties_go_by_position_and_rank():
    rows = np.array([[3, 1], [1, 3], [2, 2], [3, 3]])
    assert pack(rows, 2, 12) == [[[3, 2]], [[0, 1]]], "6 to the first, 4 and 4 to the second, which then has more"
    assert pack(rows, 1, 6) == [[[0], [1], [3], [2]]], "longest answer first, then by place; one a budget of 6 holds"
    assert pack(rows, 1, 12) == [[[0, 1], [3, 2]]]
    assert pack(rows[:1], 3, 6) == [[[0]], [[]], [[]]]


def test_a_budget_is_used_to_its_last_token():
    assert pack(np.array([[3, 3], [3, 3]]), 1, 12) == [[[0, 1]]]
    assert pack(np.array([[3, 3], [3, 3]]), 1, 11) == [[[0], [1]]]
    assert pack(np.array([[5], [5]]), 1, 10, is_padded=False) == [[[0, 1]]]
    assert pack(np.array([[5], [5]]), 1, 9, is_padded=False) == [[[0], [1]]]


def test_work_decides_who_gets_what():
    rows = np.array([[4, 4], [1, 1], [1, 1]])
    by_work = pack(rows, 2, 100, work=np.array([1.0, 5.0, 4.0]))
    assert [sorted(p for micro in rank for p in micro) for rank in by_work] == [[1], [0, 2]]
