"""DPO: golden values, closed forms at zero, gradients by finite differences, signs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.objectives.dpo import DPO
from tests.objectives.pairs import GOLDEN, golden_inputs, inputs


@pytest.mark.parametrize(
    ("smoothing", "values"), [(0.0, (0.598139, 0.825939)), (0.1, (0.618139, 0.800939))], ids=["dpo", "cdpo"]
)
def test_golden_values(smoothing, values):
    objective = DPO(beta=0.1, label_smoothing=smoothing)
    for pair, value in zip(GOLDEN, values, strict=True):
        assert float(objective(inputs([pair])).loss_sum) == pytest.approx(value, abs=1e-6)
    assert float(objective(golden_inputs()).loss_sum) == pytest.approx(sum(values), abs=2e-6)


def test_metrics_of_the_golden_pairs():
    metrics = {name: float(s) / n for name, (s, n) in DPO(beta=0.1)(golden_inputs()).metrics.items()}
    # u = 1, -1; v = -1, 1.5: margins 2 and -2.5
    assert metrics["rewards/chosen"] == pytest.approx(0.1 * (1 - 1) / 2)
    assert metrics["rewards/rejected"] == pytest.approx(0.1 * (-1 + 1.5) / 2)
    assert metrics["rewards/margins"] == pytest.approx(0.1 * (2 - 2.5) / 2)
    assert metrics["rewards/accuracies"] == 0.5
    assert metrics["rewards/ties"] == 0.0
    assert metrics["logps/chosen"] == pytest.approx(-27.5)
    assert metrics["logps/rejected"] == pytest.approx(-27.0)
    assert metrics["log_ratios/abs"] == pytest.approx((1 + 1 + 1 + 1.5) / 4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_at_the_reference_the_loss_is_ln_2_and_everything_ties(smoothing):
    output = DPO(label_smoothing=smoothing)(inputs([((-5.0, -5.0, 3), (-7.0, -7.0, 4))]))
    assert float(output.loss_sum) == pytest.approx(math.log(2), abs=1e-12)
    assert float(output.metrics["rewards/accuracies"][0]) == 0.5
    assert float(output.metrics["rewards/ties"][0]) == 1.0


def test_a_step_against_the_gradient_raises_chosen_and_lowers_rejected():
    given_inputs = golden_inputs(requires_grad=True)
    DPO()(given_inputs).loss_sum.backward()
    gradient = given_inputs.policy_nats.grad
    chosen = torch.isin(given_inputs.sequences, given_inputs.answers[:, 0])
    assert (gradient[chosen] < 0).all()
    assert (gradient[~chosen] > 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_gradient_equals_finite_differences(smoothing):
    base = golden_inputs()

    def loss(policy):
        from dataclasses import replace

        return DPO(0.1, smoothing)(replace(base, policy_nats=policy)).loss_sum

    assert torch.autograd.gradcheck(loss, (base.policy_nats.clone().requires_grad_(),), eps=1e-6, atol=1e-9)


def test_swapping_the_sides_mirrors_the_logits():
    swapped = inputs([(rejected, chosen) for chosen, rejected in GOLDEN])
    forward, backward = DPO()(golden_inputs()).metrics, DPO()(swapped).metrics
    assert float(forward["rewards/margins"][0]) == pytest.approx(-float(backward["rewards/margins"][0]))
    total = DPO()(golden_inputs()).loss_sum - DPO()(swapped).loss_sum.item()
    assert total == pytest.approx(-0.1 * (2 - 2.5))  # -ls(x) + ls(-x) = -x


@pytest.mark.parametrize("far", [1e4, -1e4])
def test_loss_and_gradient_stay_finite_far_out(far):
    given_inputs = inputs([((far - 1e4, -1e4, 1), (-1e4, -1e4, 1))], dtype=torch.float32, requires_grad=True)
    loss = DPO(beta=1.0, label_smoothing=0.1)(given_inputs).loss_sum
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(given_inputs.policy_nats.grad).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6), st.integers(0, 2**31 - 1))
def test_any_lengths_sum_of_parts_is_the_whole(lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = (-20 * torch.rand(len(lengths), 4, generator=generator, dtype=torch.float64)).tolist()
    pairs = [((d[0], d[1], a), (d[2], d[3], b)) for d, (a, b) in zip(draws, lengths, strict=True)]
    whole = DPO()(inputs(pairs))
    parts = [DPO()(inputs([pair])) for pair in pairs]
    assert float(whole.loss_sum) == pytest.approx(sum(float(p.loss_sum) for p in parts), rel=1e-12)
    by_hand = [math.log1p(math.exp(-0.1 * ((d[0] - d[1]) - (d[2] - d[3])))) for d in draws]
    assert float(whole.loss_sum) == pytest.approx(sum(by_hand), rel=1e-9)
