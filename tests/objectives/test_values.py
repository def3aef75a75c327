"""Every paired objective: golden values, closed forms at zero, mirrored pairs, parts and whole, metrics."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.config import OBJECTIVES
from raydpo.metrics import METRICS
from raydpo.objectives import make_objective
from tests.objectives.cases import (
    AT_ZERO,
    CLAMPED,
    GOLDEN_VALUES,
    MIRRORED,
    PAIRED,
    REFERENCE_FREE,
    WITH_REFERENCE,
    alpha_reward,
    objective,
)
from tests.objectives.pairs import GOLDEN, golden_inputs, inputs


def value(one, pairs):
    return float(one(inputs(pairs)).loss_sum)


def test_every_objective_has_a_golden_value():
    assert {golden.name for golden in GOLDEN_VALUES} == set(PAIRED) == set(AT_ZERO)


@pytest.mark.parametrize("golden", GOLDEN_VALUES, ids=lambda golden: golden.name)
def test_golden_values(golden):
    one = objective(golden.name, **golden.parameters)
    for pair, expected in zip(GOLDEN, golden.values, strict=True):
        assert value(one, [pair]) == pytest.approx(expected, abs=1e-5)
    assert value(one, GOLDEN) == pytest.approx(sum(golden.values), abs=2e-5)


@pytest.mark.parametrize("name", PAIRED)
def test_closed_form_at_zero(name):
    same = ((-8.0, -8.0, 4), (-8.0, -8.0, 4))
    output = objective(name)(inputs([same]))
    assert float(output.loss_sum) == pytest.approx(AT_ZERO[name], rel=1e-12)
    assert float(output.metrics["rewards/ties"][0]) == 1
    assert float(output.metrics["rewards/accuracies"][0]) == 0.5


@pytest.mark.parametrize("name", MIRRORED)
def test_swapping_the_sides(name):
    parameters, difference = MIRRORED[name]
    one = objective(name, **parameters)
    for (lw, rw, w_tokens), (ll, rl, l_tokens) in GOLDEN:
        u, v = (lw - rw, ll - rl) if name in WITH_REFERENCE else (lw, ll)
        if OBJECTIVES[name].reads == "lengths":
            u, v = u / w_tokens, v / l_tokens
        chosen, rejected = (lw, rw, w_tokens), (ll, rl, l_tokens)
        assert value(one, [(chosen, rejected)]) - value(one, [(rejected, chosen)]) == pytest.approx(difference(u, v))


def test_apo_zero_of_a_pair_and_its_mirror_add_up_to_two():
    for chosen, rejected in GOLDEN:
        assert value(objective("apo_zero"), [(chosen, rejected)]) + value(
            objective("apo_zero"), [(rejected, chosen)]
        ) == pytest.approx(2)


def test_limits_of_one_objective_are_another():
    pairs = [GOLDEN[1]]
    assert value(objective("fdpo_alpha", alpha=1e-7), pairs) == pytest.approx(value(objective("dpo"), pairs), abs=1e-6)
    near_one = value(objective("fdpo_alpha", alpha=1 - 1e-9), pairs)
    assert near_one == pytest.approx(value(objective("fdpo_forward_kl"), pairs), abs=1e-6)
    assert value(objective("alphapo", alpha=0.0), pairs) == value(objective("simpo"), pairs)
    assert value(objective("alphapo", alpha=1e-7), pairs) == pytest.approx(value(objective("simpo"), pairs), abs=1e-6)
    assert value(objective("dpop", penalty=0.0, beta=0.1), pairs) == value(objective("dpo"), pairs)
    assert value(objective("cdpo"), pairs) == value(objective("dpo", label_smoothing=0.1), pairs)
    tiny = value(objective("robust", label_smoothing=1e-9), pairs)
    assert tiny == pytest.approx(value(objective("dpo"), pairs), abs=1e-6)


def test_robust_is_dpo_in_expectation_over_flips():
    one, (chosen, rejected) = objective("robust", label_smoothing=0.2), GOLDEN[0]
    expected = 0.8 * value(one, [(chosen, rejected)]) + 0.2 * value(one, [(rejected, chosen)])
    assert expected == pytest.approx(value(objective("dpo"), [(chosen, rejected)]))


@pytest.mark.parametrize("name", REFERENCE_FREE)
def test_without_a_reference_it_is_not_read(name):
    with_one, without = golden_inputs(), replace(golden_inputs(), reference_nats=None)
    assert objective(name)(with_one).loss_sum == objective(name)(without).loss_sum
    assert not [key for key in objective(name)(without).metrics if key.startswith("log_ratios")]


@pytest.mark.parametrize("name", PAIRED)
def test_rewards_and_accuracies(name):
    row, metrics = OBJECTIVES[name], objective(name)(golden_inputs()).metrics
    assert set(metrics) <= set(METRICS)
    assert ("clamped" in metrics) == (name in CLAMPED)
    scale = row.parameters["beta"].default if "beta" in row.parameters else 1.0
    scores = [[a - b if row.needs_reference else a for a, b, _ in pair] for pair in GOLDEN]
    if row.reads == "lengths":
        scores = [
            [s / side[2] for s, side in zip(two, pair, strict=True)] for two, pair in zip(scores, GOLDEN, strict=True)
        ]
    for side, key in enumerate(("rewards/chosen", "rewards/rejected")):
        assert float(metrics[key][0]) == pytest.approx(scale * sum(two[side] for two in scores), abs=1e-12)
    assert float(metrics["rewards/margins"][0]) == pytest.approx(scale * sum(a - b for a, b in scores), abs=1e-12)
    accuracy = sum(0.5 if abs(a - b) < 1e-9 else float(a > b) for a, b in scores)
    assert float(metrics["rewards/accuracies"][0]) == accuracy
    assert metrics["rewards/accuracies"][1] == 2
    if row.needs_reference:
        assert float(metrics["log_ratios/margins"][0]) == pytest.approx(2 - 2.5)


def test_ties_of_means_are_measured_in_nats_of_an_answer():
    """0.0005 nats apart over 100 tokens: a tie, and 0.05 nats apart are none though the mean differs by 0.0005 only."""
    for apart, ties in ((0.0005, 1.0), (0.05, 0.0)):
        output = objective("simpo")(inputs([((-200.0, -200.0, 100), (-200.0 - apart, -200.0, 100))]))
        assert float(output.metrics["rewards/ties"][0]) == ties


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5)


@pytest.mark.parametrize("name", PAIRED)
@settings(max_examples=15, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 2**31 - 1))
def test_any_lengths_sum_of_parts_is_the_whole(name, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = (-20 * torch.rand(len(lengths), 4, generator=generator, dtype=torch.float64)).tolist()
    pairs = [((d[0], d[1], a), (d[2], d[3], b)) for d, (a, b) in zip(draws, lengths, strict=True)]
    one = objective(name)
    whole, parts = one(inputs(pairs)), [one(inputs([pair])) for pair in pairs]
    assert float(whole.loss_sum) == pytest.approx(sum(float(p.loss_sum) for p in parts), rel=1e-9)
    for key, (total, count) in whole.metrics.items():
        assert count == sum(p.metrics[key][1] for p in parts)
        assert float(total) == pytest.approx(sum(float(p.metrics[key][0]) for p in parts), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", PAIRED)
def test_an_empty_micro_batch_costs_nothing(name):
    policy = torch.zeros(1, requires_grad=True)
    empty = replace(
        golden_inputs(dtype=torch.float32),
        policy_nats=policy,
        reference_nats=torch.zeros(1),
        sequences=torch.zeros(1, dtype=torch.int64),
        answers=torch.zeros((0, 2), dtype=torch.int64),
        num_sequences=1,
    )
    loss = objective(name)(empty).loss_sum
    loss.backward()
    assert loss.item() == 0
    assert policy.grad.tolist() == [0]


def test_the_log_odds_of_orpo_are_exact_at_both_ends_in_float32():
    one = make_objective("orpo", {"odds_weight": 1.0})
    for mean in (-3e-6, -1e-3, -0.5, -0.7, -5.0, -60.0):
        pair = ((mean, 0.0, 1), (-1.0, 0.0, 1))
        odds = mean - math.log(-math.expm1(mean)) + 1.0 + math.log(-math.expm1(-1.0))
        expected = -mean + math.log1p(math.exp(-odds)) if odds > -30 else -mean - odds
        got = float(one(inputs([pair], dtype=torch.float32)).loss_sum)
        assert got == pytest.approx(expected, rel=1e-5)


def test_alpha_rewards_by_hand():
    assert alpha_reward(0.5, 2.0) == pytest.approx((1 - math.exp(-1.0)) / 0.5)
