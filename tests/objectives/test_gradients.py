"""Every paired objective: gradient against finite differences, direction of a step, finite far out, clamps counted."""

from dataclasses import replace

import pytest
import torch

from tests.objectives.cases import CLAMPED, PAIRED, REFERENCE_FREE, WITH_REFERENCE, objective
from tests.objectives.pairs import GOLDEN, golden_inputs, inputs


@pytest.mark.parametrize("name", PAIRED)
def test_gradient_equals_finite_differences(name):
    base = golden_inputs()

    def loss(policy):
        return objective(name)(replace(base, policy_nats=policy)).loss_sum

    scale = float(loss(base.policy_nats).abs())
    assert torch.autograd.gradcheck(
        loss, (base.policy_nats.clone().requires_grad_(),), eps=1e-6, atol=1e-8 + 1e-9 * scale, rtol=1e-5
    )


def moved(name, pairs, rate=1e-6):
    """How far a step against the gradient moves the log-prob of [chosen, rejected] of each pair."""
    given = inputs(pairs, requires_grad=True)
    objective(name)(given).loss_sum.backward()
    return given.answer_sums(-rate * given.policy_nats.grad)


AT_START = [((-20.0, -20.0, 10), (-24.0, -24.0, 12)), ((-35.0, -35.0, 20), (-34.5, -34.5, 15))]


@pytest.mark.parametrize("pairs", [AT_START, GOLDEN], ids=["at the reference", "away from it"])
@pytest.mark.parametrize("name", [name for name in PAIRED if name != "discopop"])
def test_a_step_against_the_gradient_raises_chosen_and_lowers_rejected(name, pairs):
    step = moved(name, pairs)
    if name == "apo_down":  # means to lower both
        assert (step[:, 1] < step[:, 0]).all()
        assert (step[:, 1] < 0).all()
        return
    assert (step[:, 0] > 0).all()
    if name == "slic":  # a pair beyond the margin leaves its rejected answer alone: 4 nats, -5 or -0.5
        assert step[0, 1] == 0
        assert step[1, 1] < 0
    else:
        assert (step[:, 1] < 0).all()


def test_discopop_turns_round_near_the_reference():
    """By hand: f(d) at beta = tau = 0.05 has a minimum of 0.785929 at d = -2.3714 and a maximum of 0.87829 at 1.44012."""
    for d, expected in ((-2.3714, 0.785929), (1.44012, 0.87829)):
        pair = ((-20.0, -20.0 - d, 1), (-20.0, -20.0, 1))
        assert float(objective("discopop")(inputs([pair])).loss_sum) == pytest.approx(expected, abs=1e-5)
        assert moved("discopop", [pair], 1.0).abs().max() < 1e-4
    for d, rises in ((-4.0, True), (-2.0, False), (0.0, False), (1.0, False), (2.0, True), (40.0, True)):
        ((chosen, rejected),) = moved("discopop", [((-90.0, -90.0 - d, 1), (-20.0, -20.0, 1))]).tolist()
        assert (chosen > 0 > rejected) == rises


def test_beyond_the_margin_hinge_has_no_gradient_and_exo_and_ipo_turn_round():
    assert moved("hinge", [((-1.0, -12.0, 2), (-2.0, -2.0, 3))]).tolist() == [[0, 0]]
    for name, far in (("ipo", 6.0), ("exo", 80.0)):
        ((chosen, rejected),) = moved(name, [((-1.0, -1.0 - far, 2), (-2.0, -2.0, 3))]).tolist()
        assert chosen < 0 < rejected


FAR = (0.0, -1e4, 1e4)


@pytest.mark.parametrize("v", FAR)
@pytest.mark.parametrize("u", FAR)
@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_log_ratios_far_out_are_finite_in_float32(name, u, v):
    pairs = [((-2e4 + min(side, 0.0), -2e4 - max(side, 0.0), 1) for side in (u, v))]
    assert_finite(name, [tuple(pair) for pair in pairs])


@pytest.mark.parametrize("nats", [(0.0, 0.0), (0.0, -1e4), (-1e4, 0.0), (-1e4, -1e4), (-1e-9, -1e-4)])
@pytest.mark.parametrize("name", REFERENCE_FREE)
def test_log_probs_at_both_ends_are_finite_in_float32(name, nats):
    assert_finite(name, [tuple((side, side, 1) for side in nats)])


def assert_finite(name, pairs):
    for parameters in ({}, {"beta": 1.0}) if name not in ("orpo", "slic") else ({},):
        given = inputs(pairs, dtype=torch.float32, requires_grad=True)
        output = objective(name, **parameters)(given)
        output.loss_sum.backward()
        assert torch.isfinite(output.loss_sum)
        assert torch.isfinite(given.policy_nats.grad).all()
        assert torch.isfinite(given.policy_nats.grad.norm())
        assert all(torch.isfinite(torch.as_tensor(total)) for total, _ in output.metrics.values())


def test_clamps_are_counted_and_still_pull():
    """One answer of four beyond the clamp; its gradient keeps its sign."""
    near, ratio, prob = ((-5.0, -5.0, 1), (-6.0, -6.0, 1)), (-1e3, -5.0, 1), (-200.0, -200.0, 1)
    far = {"fdpo_forward_kl": ratio, "fdpo_alpha": ratio, "alphapo": prob, "orpo": (0.0, 0.0, 1)}
    assert set(far) == set(CLAMPED)
    for name, chosen in far.items():
        output = objective(name)(inputs([near, (chosen, near[1])]))
        total, count = output.metrics["clamped"]
        assert (float(total), count) == (1, 4)
        assert moved(name, [(chosen, near[1])])[0, 0] > 0
        assert float(objective(name)(inputs([near])).metrics["clamped"][0]) == 0


def test_the_line_beyond_the_clamp_joins_the_exponential():
    from raydpo.objectives.seam import EXPONENT_MAX, expm1_or_line

    x = torch.tensor([-3.0, 0.0, 5.0, EXPONENT_MAX], dtype=torch.float64)
    assert torch.equal(expm1_or_line(x), torch.expm1(x))
    above = (EXPONENT_MAX + torch.tensor([1e-6, 1.0, 2.0], dtype=torch.float64)).requires_grad_()
    (slope,) = torch.autograd.grad(expm1_or_line(above).sum(), above)
    assert torch.allclose(slope, torch.full_like(slope, torch.e**EXPONENT_MAX))
    assert (expm1_or_line(above) > torch.expm1(x[-1])).all()
