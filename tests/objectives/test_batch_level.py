"""Objectives that look at the whole global batch: golden values, the definition by brute force, any micro-batches."""

import itertools
from dataclasses import replace
from math import log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from tests.objectives.cases import objective, whole
from tests.objectives.pairs import golden_inputs, inputs, labelled, part

AOT = ["aot", "aot_unpaired"]
BATCH_LEVEL = [*AOT, "kto", "bco"]


def random_batch(name, lengths, seed, requires_grad=False):
    """One example a pair of lengths, with draws far enough apart that sorting crosses pairs."""
    generator = torch.Generator().manual_seed(seed)
    draws = (-20 * torch.rand(len(lengths), 4, generator=generator, dtype=torch.float64)).tolist()
    if name in AOT:
        pairs = [((d[0], d[1], a), (d[2], d[3], b)) for d, (a, b) in zip(draws, lengths, strict=True)]
        return inputs(pairs, requires_grad=requires_grad)
    answers = [(d[0], d[1], a) for d, (a, _) in zip(draws, lengths, strict=True)]
    return labelled(answers, [d[2] < -10 for d in draws], requires_grad=requires_grad)


def by_definition(name, beta, batch, eps=0.0):
    """The loss of the batch as the papers write it, with torch.sort and its gradient; sum over the batch."""
    ratios = batch.log_ratios()
    if name == "aot":
        policy, reference = batch.answer_sums(batch.policy_nats), batch.answer_sums(batch.reference_nats)
        x = (policy[:, 0] - policy[:, 1]).sort().values - (reference[:, 0] - reference[:, 1]).sort().values
    elif name == "aot_unpaired":
        x = ratios[:, 0].sort().values - ratios[:, 1].sort().values
    elif name == "kto":
        z = ratios.detach().mean().clamp(min=0)  # `whole` observes the same rows that it trains on
        gain = beta * (ratios[:, 0] - z)
        return torch.where(batch.labels, 1 - gain.sigmoid(), 1 - (-gain).sigmoid()).sum()
    else:
        rewards, desirable = beta * ratios[:, 0], batch.labels
        fixed = rewards.detach()
        sides = [fixed[side].mean() for side in (desirable, ~desirable) if side.any()]
        shifted = rewards - sum(sides) / len(sides)
        return -torch.where(desirable, logsigmoid(shifted), logsigmoid(-shifted)).sum()
    return (-(1 - eps) * logsigmoid(beta * x) - eps * logsigmoid(-beta * x)).sum()


def test_golden_values():
    """Sorted a: -5, 4; b: -2.5, 2. Sorted u: -1, 1; v: -1, 1.5."""
    assert float(whole(objective("aot", beta=0.1), golden_inputs()).loss_sum) == pytest.approx(
        0.825939 + 0.598139, abs=2e-5
    )
    unpaired = whole(objective("aot_unpaired", beta=0.1), golden_inputs()).loss_sum
    assert float(unpaired) == pytest.approx(0.693147 + 0.718460, abs=2e-5)


@pytest.mark.parametrize("name", AOT)
def test_closed_form_at_zero_whatever_the_lengths(name):
    same = [((-8.0, -8.0, 4), (-3.0, -3.0, 2)), ((-1.0, -1.0, 1), (-9.0, -9.0, 5))]
    assert float(whole(objective(name), inputs(same)).loss_sum) == pytest.approx(2 * log(2), rel=1e-12)


def test_sorting_crosses_pairs():
    """a = 0, 10 and b = 10, 0: pair by pair x = -10, 10; sorted, both are 0."""
    pairs = [((-5.0, -1.0, 1), (-5.0, -11.0, 1)), ((-1.0, -5.0, 1), (-11.0, -5.0, 1))]
    assert float(whole(objective("aot", beta=1.0), inputs(pairs)).loss_sum) == pytest.approx(2 * log(2))
    assert float(objective("dpo", beta=1.0)(inputs(pairs)).loss_sum) == pytest.approx(10, abs=1e-3)


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=7)


@pytest.mark.parametrize("name", BATCH_LEVEL)
@settings(max_examples=25, deadline=None)
@given(lengths=lengths, seed=st.integers(0, 2**31 - 1), cuts=st.lists(st.integers(0, 6), max_size=3))
def test_any_micro_batches_give_the_definition_with_its_gradient(name, lengths, seed, cuts):
    batch = random_batch(name, lengths, seed, requires_grad=True)
    one = objective(name, beta=0.3)
    (expected,) = torch.autograd.grad(wanted := by_definition(name, 0.3, batch), batch.policy_nats)
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed)).tolist()
    edges = sorted({0, len(order), *(cut for cut in cuts if cut < len(order))})
    micro = [part(batch, order[a:b]) for a, b in itertools.pairwise(edges)]
    seen = torch.zeros(len(lengths), one.num_values, dtype=torch.float64)
    for piece in micro:
        seen[piece.positions] = one.observe(piece).detach().double()
    loss = sum(one(replace(piece, batch=seen)).loss_sum for piece in micro)
    (gradient,) = torch.autograd.grad(loss, batch.policy_nats)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    assert torch.allclose(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", AOT)
def test_gradient_equals_finite_differences(name):
    base = random_batch(name, [(3, 2), (1, 4), (2, 2), (5, 1)], seed=4)

    def loss(policy):
        return whole(objective(name, beta=0.3), replace(base, policy_nats=policy)).loss_sum

    assert torch.autograd.gradcheck(loss, (base.policy_nats.clone().requires_grad_(),), eps=1e-6)


@pytest.mark.parametrize("name", BATCH_LEVEL)
@pytest.mark.parametrize("far", [-1e4, 1e4])
def test_finite_far_out_in_float32(name, far):
    side = (-2e4 + min(far, 0.0), -2e4 - max(far, 0.0), 1)
    near = (-5.0, -6.0, 2)
    batch = inputs([(side, near), (near, side)]) if name in AOT else labelled([side, near, side], [True, True, False])
    batch = replace(
        batch,
        policy_nats=batch.policy_nats.float().requires_grad_(),
        reference_nats=batch.reference_nats.float(),
    )
    loss = whole(objective(name, beta=1.0), batch).loss_sum
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(batch.policy_nats.grad).all()
