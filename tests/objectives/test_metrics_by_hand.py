"""Metrics of pairs and of labels, by hand: which side is which, what a tie is, where a bound is met."""

import math
from dataclasses import replace

import pytest
import torch

from raydpo.config.objective_check import check_objective, make_term
from raydpo.objectives.loss import Loss
from raydpo.objectives.seam import EXPONENT_MAX, expm1_or_line, from_labels, from_log_ratios
from tests.objectives.pairs import inputs, labelled

# One token each, so that sums are exact: log-ratios 1 and -1, then -0.5 and 2; margins 2 and -2.5.
PAIRS = (((-20.0, -21.0, 1), (-24.0, -23.0, 1)), ((-35.0, -34.5, 1), (-30.0, -32.0, 1)))
LABELLED = labelled([(-1.0, -2.0, 1), (-3.0, -1.0, 1), (-4.0, -8.0, 1)], [True, False, False])  # ratios 1, -2 and 4


def values(output):
    return {name: (float(total), int(count)) for name, (total, count) in output.metrics.items()}


def of_pairs(tolerance=0.5):
    given = replace(inputs(PAIRS), tie_tolerance_nats=tolerance)
    return values(from_log_ratios(given, 0.5, lambda u, v: v - u))


def test_each_side_has_its_own_log_ratios():
    found = of_pairs()
    assert found["log_ratios/chosen"] == (0.5, 2)
    assert found["log_ratios/rejected"] == (1.0, 2)
    assert found["log_ratios/margins"] == (-0.5, 2)
    assert found["log_ratios/abs"] == (4.5, 4)
    assert found["rewards/chosen"] == (0.25, 2)
    assert found["rewards/rejected"] == (0.5, 2)
    assert found["logps/chosen"] == (-55.0, 2)
    assert found["logps/rejected"] == (-54.0, 2)
    assert found["loss"] == (0.5, 2)


@pytest.mark.parametrize(
    ("tolerance", "ties", "accuracies"), [(0.5, 0, 1.0), (1.99, 0, 1.0), (2.0, 1, 0.5), (2.5, 2, 1.0)]
)
def test_a_margin_at_the_tolerance_is_a_tie_and_no_win(tolerance, ties, accuracies):
    found = of_pairs(tolerance)
    assert found["rewards/ties"] == (ties, 2)
    assert found["rewards/accuracies"] == (accuracies, 2)


def test_labels_are_two_sides():
    found = values(from_labels(replace(LABELLED, tie_tolerance_nats=0.5), 0.5, lambda u, is_good: u * is_good))
    assert found["log_ratios/chosen"] == (1.0, 1)
    assert found["log_ratios/rejected"] == (2.0, 2)
    assert found["rewards/chosen"] == (0.5, 1)
    assert found["rewards/rejected"] == (1.0, 2)
    assert found["logps/chosen"] == (-1.0, 1)
    assert found["logps/rejected"] == (-7.0, 2)
    assert found["log_ratios/abs"] == (7.0, 3)
    assert found["rewards/accuracies"] == (2.0, 3), "1 is above 0 as it should, -2 below as it should, 4 is not"
    assert found["rewards/ties"] == (0.0, 3)


def test_labels_tie_at_the_middle():
    """From a middle of 0.5 the answers are 0.5, 2.5 and -3.5 on their label's side."""
    at = replace(LABELLED, tie_tolerance_nats=0.5)
    found = values(from_labels(at, 1.0, lambda u, is_good: u, middle_nats=0.5))
    assert found["rewards/ties"] == (1.0, 3)
    assert found["rewards/accuracies"] == (1.5, 3)


def test_an_exponential_becomes_its_tangent_at_30():
    assert EXPONENT_MAX == 30.0
    x = torch.tensor([1.0, 29.0, 30.0, 30.5, 40.0], dtype=torch.float64, requires_grad=True)
    y = expm1_or_line(x)
    top = math.expm1(30.0)
    expected = [math.expm1(1.0), math.expm1(29.0), top, top + 0.5 * math.exp(30.0), top + 10 * math.exp(30.0)]
    assert y.tolist() == pytest.approx(expected, rel=1e-12)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert slope[3:].tolist() == pytest.approx([math.exp(30.0)] * 2, rel=1e-12)


def test_what_is_not_seen_yet_lies_where_it_is_asked_for():
    loss = Loss([make_term(check_objective({"name": "aot"}))])
    (kind,) = loss.batch_kinds
    table = loss.unseen(kind, 3, "meta")
    assert (table.device.type, table.dtype, len(table)) == ("meta", torch.float64, 3)
