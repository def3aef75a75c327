"""Objectives on single answers with labels: golden values, reference points, both labels or one, metrics."""

import math
from dataclasses import replace

import pytest
import torch

from raydpo.metrics import METRICS
from tests.objectives.cases import LABELLED, objective, whole
from tests.objectives.pairs import GOLDEN, labelled

CHOSEN = [pair[0] for pair in GOLDEN]  # u = 1, -1
REJECTED = [pair[1] for pair in GOLDEN]  # v = -1, 1.5


def kto(answers, labels, mismatched_nats, **parameters):
    seen = torch.tensor(mismatched_nats, dtype=torch.float64)[:, None]
    places = torch.arange(len(answers))
    return objective("kto", **parameters)(replace(labelled(answers, labels), batch=seen, positions=places))


@pytest.mark.parametrize(
    ("answer", "label", "expected"),
    [
        (CHOSEN[0], True, 0.482507),
        (CHOSEN[1], True, 0.532454),
        (REJECTED[0], False, 0.467546),
        (REJECTED[1], False, 0.529964),
    ],
)
def test_kto_golden_values_at_z_of_three_tenths(answer, label, expected):
    assert float(kto([answer], [label], [0.3]).loss_sum) == pytest.approx(expected, abs=1e-5)


def test_the_reference_point_is_clamped_after_the_mean():
    for seen, z in (([0.5, 0.1], 0.3), ([2.0, -1.4], 0.3), ([1.0, -5.0], 0.0)):
        output = kto(CHOSEN, [True, True], seen)
        total, count = output.metrics["kl"]
        assert float(total) / count == pytest.approx(z)
        assert float(output.loss_sum) == pytest.approx(
            sum(1 / (1 + math.exp(0.1 * (u - z))) for u in (1.0, -1.0)), rel=1e-9
        )


def test_kto_weights_of_the_two_labels():
    both = kto([CHOSEN[0], REJECTED[0]], [True, False], [0.3, 0.3], desirable_weight=2.0, undesirable_weight=0.5)
    assert float(both.loss_sum) == pytest.approx(2 * 0.482507 + 0.5 * 0.467546, abs=1e-5)


def test_bco_by_hand():
    """r = 0.1, -0.1 desirable, -0.1 undesirable: delta = (0 - 0.1) / 2. TRL's mean over all three would be -1 / 30."""
    output = whole(objective("bco"), labelled([*CHOSEN, REJECTED[0]], [True, True, False]))
    softplus = [math.log1p(math.exp(-x)) for x in (0.1 + 0.05, -0.1 + 0.05, -(-0.1 + 0.05))]
    assert float(output.loss_sum) == pytest.approx(sum(softplus), rel=1e-9)
    total, count = output.metrics["rewards/shift"]
    assert float(total) / count == pytest.approx(-0.05)


def test_apo_zero_unpaired_is_apo_zero_answer_by_answer():
    for pair, expected in zip(GOLDEN, (0.950042, 1.062409), strict=True):
        output = objective("apo_zero_unpaired")(labelled(pair, [True, False]))
        assert float(output.loss_sum) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("name", "expected"), [("kto", 0.5), ("bco", math.log(2)), ("apo_zero_unpaired", 0.5)])
@pytest.mark.parametrize("label", [True, False])
def test_closed_form_at_zero_with_one_label_alone(name, expected, label):
    same = [(-8.0, -8.0, 4), (-3.0, -3.0, 1)]
    output = whole(objective(name), labelled(same, [label, label]))
    assert float(output.loss_sum) == pytest.approx(2 * expected, rel=1e-12)
    assert float(output.metrics["rewards/ties"][0]) == 2
    other = "rejected" if label else "chosen"
    assert [float(x) for x in output.metrics[f"rewards/{other}"]] == [0, 0]


@pytest.mark.parametrize("name", LABELLED)
def test_gradient_raises_desirable_and_lowers_undesirable_and_equals_finite_differences(name):
    base = labelled([*CHOSEN, *REJECTED], [True, True, False, False])
    if name != "apo_zero_unpaired":
        seen = objective(name).observe(base).detach().double()  # fixed: no gradient goes through it
        base = replace(base, batch=seen, positions=torch.arange(4))

    def loss(policy):
        return objective(name)(replace(base, policy_nats=policy)).loss_sum

    policy = base.policy_nats.clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (policy,), eps=1e-6)
    (gradient,) = torch.autograd.grad(loss(policy), policy)
    by_answer = base.answer_sums(gradient)[:, 0]
    assert (by_answer[:2] < 0).all()
    assert (by_answer[2:] > 0).all()


@pytest.mark.parametrize("name", LABELLED)
def test_metrics(name):
    output = whole(objective(name), labelled([*CHOSEN, *REJECTED], [True, True, False, False]))
    metrics = {key: (float(total), float(count)) for key, (total, count) in output.metrics.items()}
    assert set(metrics) <= set(METRICS)
    assert metrics["rewards/chosen"] == (pytest.approx(0.0, abs=1e-12), 2)
    assert metrics["rewards/rejected"] == (pytest.approx(0.1 * 0.5), 2)
    assert metrics["log_ratios/rejected"] == (pytest.approx(0.5), 2)
    assert metrics["log_ratios/abs"] == (pytest.approx(4.5), 4)
    assert metrics["logps/chosen"] == (-55.0, 2)
    # u = 1, -1 and v = -1, 1.5 about 0.125 (the mean, 0.125 nats), (0 + 0.25) / 2 = 0.125 and 0: two are on their side.
    assert metrics["rewards/accuracies"] == (2.0, 4)
