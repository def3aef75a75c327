"""Modifiers and sums of terms: by hand, against the objectives that they turn into, and in the metrics."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.config import OBJECTIVES
from raydpo.config.modifier_table import MODIFIERS
from raydpo.config.objective_check import check_objective, make_term
from raydpo.config.sections import ObjectiveSection
from raydpo.metrics import METRICS, Sums, means
from raydpo.objectives.loss import Loss
from raydpo.objectives.modifiers import modified
from tests.objectives.cases import objective
from tests.objectives.pairs import GOLDEN, golden_inputs, inputs, part


def loss_of(section, given, examples=2, tokens=30):
    """(loss of a global batch that is one micro-batch, metrics) of an objective section."""
    loss = Loss(ObjectiveSection.model_validate(section).terms)
    seen = {kind: loss.observe(kind, given).detach().double() for kind in loss.batch_kinds}
    given = replace(given, positions=torch.arange(len(given.answers)))
    output = loss(given, loss.counts(examples, tokens), seen)
    sums = Sums()
    sums.add(output.metrics)
    return float(output.loss_sum), loss.total(means(METRICS, sums.vector(METRICS)))


def value(name, given, **parameters):
    return float(objective(name, **parameters)(given).loss_sum)


# --- LD-DPO ----------------------------------------------------------------------------------------------------


def test_ld_by_hand():
    """Chosen has 1 token and rejected 3: two of rejected's log-ratios of -1/3 count half under both models."""
    given = inputs([((-2.0, -1.0, 1), (-6.0, -5.0, 3))])
    u, v = -1.0, -1 / 3 * (1 + 0.5 + 0.5)
    loss, metrics = loss_of({"name": "dpo", "ld_alpha": 0.5}, given, examples=1)
    assert loss == pytest.approx(math.log1p(math.exp(-0.1 * (u - v))), rel=1e-12)
    assert metrics["rewards/margins"] == pytest.approx(0.1 * (u - v))
    assert metrics["log_ratios/margins"] == pytest.approx(0.0)  # the answers as they are
    assert metrics["logps/rejected"] == -6


@given(lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_ld_starts_at_margin_0_whatever_the_lengths(lengths):
    pairs = [((-7.0 * a, -7.0 * a, a), (-3.0 * b, -3.0 * b, b)) for a, b in lengths]
    _, metrics = loss_of({"name": "dpo", "ld_alpha": 0.3}, inputs(pairs), examples=len(pairs))
    assert metrics["loss"] == pytest.approx(math.log(2))


def test_ld_of_one_is_off_and_of_zero_cuts_at_the_shorter_answer():
    assert loss_of({"name": "ipo", "ld_alpha": 1.0}, golden_inputs()) == loss_of({"name": "ipo"}, golden_inputs())
    cut = inputs([((-20.0, -21.0, 10), (-24.0 * 10 / 12, -23.0 * 10 / 12, 10))])
    whole = inputs([GOLDEN[0]])
    assert loss_of({"name": "hinge", "ld_alpha": 0}, whole)[0] == pytest.approx(loss_of("hinge", cut)[0])


def test_ld_sorts_weighted_margins_in_aot():
    given = golden_inputs()
    expected = loss_of({"name": "aot"}, replace(given, token_weights=modified(given, {"ld_alpha": 0.5}).token_weights))
    assert loss_of({"name": "aot", "ld_alpha": 0.5}, given) == expected
    assert expected[0] != loss_of({"name": "aot"}, given)[0]


# --- length normalisation --------------------------------------------------------------------------------------


def test_length_normalized_objectives_are_the_named_ones():
    for plain, named, beta in (("dpo", "dpo_norm", 5.0), ("ipo", "ipo_mean", 0.1)):
        section = {"name": plain, "beta": beta, "length_normalized": True}
        loss, metrics = loss_of(section, golden_inputs())
        assert loss == pytest.approx(loss_of({"name": named, "beta": beta}, golden_inputs())[0], rel=1e-12)
        assert metrics == pytest.approx(loss_of({"name": named, "beta": beta}, golden_inputs())[1])


# --- WPO and weights from the data -----------------------------------------------------------------------------


def with_collisions(given, seed=0):
    draws = torch.rand(len(given.policy_nats), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return replace(given, log_collisions=-3 * draws)


def test_wpo_by_hand():
    given = with_collisions(inputs([((-2.0, -1.0, 2), (-6.0, -5.5, 3))]))
    a, b, c, d, e = given.log_collisions.tolist()
    weight = math.exp(((-1 - a) + (-1 - b)) / 2 + ((-2 - c) + (-2 - d) + (-2 - e)) / 3)
    loss, metrics = loss_of({"name": "dpo", "wpo": True}, given, examples=1)
    assert loss == pytest.approx(weight * math.log1p(math.exp(0.1 * 0.5)), rel=1e-12)
    assert metrics["weights"] == pytest.approx(weight)
    assert metrics["rewards/margins"] == pytest.approx(0.1 * -0.5)


def test_no_gradient_goes_through_the_weights():
    given = with_collisions(golden_inputs(requires_grad=True))
    loss = Loss(ObjectiveSection.model_validate({"name": "dpo", "wpo": True}).terms)
    loss(given, [2], {}).loss_sum.backward()
    fixed = golden_inputs(requires_grad=True)
    weights = modified(given, {"wpo": True}).example_weights.detach()
    (objective("dpo")(replace(fixed, example_weights=weights)).loss_sum / 2).backward()
    assert torch.allclose(given.policy_nats.grad, fixed.policy_nats.grad, rtol=1e-12)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_weights_of_examples_multiply_their_loss(name):
    row = OBJECTIVES[name]
    given = replace(golden_inputs(), labels=torch.tensor([True, False]))
    given = given if row.data == "pairs" else replace(given, answers=given.answers[:, :1])
    weights = torch.tensor([3.0, 0.5], dtype=torch.float64)
    if row.batch == "none":
        expected = sum(w * value(name, part(given, [e])) for e, w in enumerate(weights.tolist()))
    else:  # what is observed does not know the weights
        seen = objective(name).observe(given).double()
        each = [value(name, replace(part(given, [e]), batch=seen)) for e in range(2)]
        expected = 3.0 * each[0] + 0.5 * each[1]
        given = replace(given, batch=seen, positions=torch.arange(2))
    assert value(name, replace(given, example_weights=weights)) == pytest.approx(expected, rel=1e-12)


# --- sums of terms ---------------------------------------------------------------------------------------------

MPO = {"name": "dpo", "weight": 0.8, "plus": [{"name": "bco_pair", "weight": 0.2}, "sft"]}


def test_a_sum_divides_each_term_by_its_own_count():
    """MPO: 0.8 dpo + 0.2 bco_pair a pair of 2, and sft a token of 30."""
    loss, metrics = loss_of(MPO, golden_inputs())
    parts = {"dpo": (0.598139 + 0.825939) / 2, "bco_pair": (1.288793 + 1.515354) / 2, "sft": (20 + 35) / 30}
    assert loss == pytest.approx(0.8 * parts["dpo"] + 0.2 * parts["bco_pair"] + parts["sft"], abs=1e-5)
    assert metrics["loss"] == pytest.approx(loss)
    for name, mean in parts.items():
        assert metrics[f"loss/{name}"] == pytest.approx(mean, abs=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(0.1 * -0.25)


def test_sft_in_a_sum_reads_the_chosen_answer_alone():
    given = golden_inputs(requires_grad=True)
    loss = Loss(ObjectiveSection.model_validate({"name": "dpo", "plus": ["sft"]}).terms)
    loss(given, [2, 30], {}).loss_sum.backward()
    alone = golden_inputs(requires_grad=True)
    (objective("dpo")(alone).loss_sum / 2).backward()
    extra = (given.policy_nats.grad - alone.policy_nats.grad).split([10, 12, 20, 15])
    assert [float(side.unique()) for side in extra] == pytest.approx([-1 / 30, 0, -1 / 30, 0])


def test_nll_is_the_mean_of_means():
    loss, metrics = loss_of({"name": "dpo", "plus": [{"name": "nll", "weight": 0.5}]}, golden_inputs())
    assert metrics["loss/nll"] == pytest.approx((20 / 10 + 35 / 20) / 2)
    assert loss == pytest.approx((0.598139 + 0.825939) / 2 + 0.5 * 1.875, abs=1e-5)


def test_metrics_are_those_of_the_first_term():
    _, metrics = loss_of({"name": "simpo", "plus": [{"name": "fdpo_alpha", "wpo": False}]}, golden_inputs())
    assert not [name for name in metrics if name.startswith(("log_ratios", "clamped"))]
    assert {"loss", "loss/simpo", "loss/fdpo_alpha"} <= set(metrics)


@pytest.mark.parametrize("name", ["sft", "nll", "dpo", "simpo"])
def test_the_mean_weight_is_a_metric(name):
    weights = torch.tensor([3.0, 0.5], dtype=torch.float64)
    _, metrics = loss_of(name, replace(golden_inputs(), example_weights=weights))
    assert metrics["weights"] == 1.75


def test_terms_that_look_at_the_whole_batch_keep_their_columns():
    section = {"name": "aot", "beta": 0.1, "plus": [{"name": "aot_unpaired", "beta": 0.1}, "dpo"]}
    loss, _ = loss_of(section, golden_inputs())
    assert loss == pytest.approx((0.825939 + 0.598139 + 0.693147 + 0.718460 + 0.598139 + 0.825939) / 2, abs=2e-5)


def test_the_weight_of_a_single_term_scales_the_loss():
    loss, metrics = loss_of({"name": "dpo", "weight": 3.0}, golden_inputs())
    assert loss == pytest.approx(3 * (0.598139 + 0.825939) / 2, abs=1e-5)
    assert metrics["loss"] == pytest.approx(loss)


# --- what is refused -------------------------------------------------------------------------------------------

REFUSED = {
    "does not read ld_alpha; objectives that read it: dpo, cdpo, robust, hinge, ipo, exo": {
        "name": "dpo_norm",
        "ld_alpha": 0.5,
    },
    "objective simpo does not read ld_alpha": {"name": "simpo", "ld_alpha": 0.5},
    "objective kto does not read wpo": {"name": "kto", "wpo": True},
    "objective aot does not read length_normalized": {"name": "aot", "length_normalized": True},
    "set one of them": {"name": "dpo", "length_normalized": True, "ld_alpha": 0.5},
    "1 is not true or false": {"name": "dpo", "wpo": 1},
    "2 is out of range": {"name": "dpo", "ld_alpha": 2},
    "0 is out of range": {"name": "dpo", "weight": 0},
    "term 1: kto reads labels, dpo reads pairs": {"name": "dpo", "plus": ["kto"]},
    "term 1: dpo reads pairs, sft reads answers": {"name": "sft", "plus": ["dpo"]},
    "dpo is there more than once": {"name": "dpo", "plus": [{"name": "dpo", "beta": 0.5}]},
    "term 2: name: 'dop' is not an objective": {"name": "dpo", "plus": ["sft", "dop"]},
    "term 1: gamma: objective sft does not read gamma; no objective": {"plus": [{"name": "sft", "gamma": 1}]},
    "names no objective": {"plus": [{"weight": 0.5}]},
    "is not a list": {"plus": "sft"},
    "term 1: plus: objective sft does not read plus": {"plus": [{"name": "sft", "plus": []}]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_say_why(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_objective(REFUSED[message])


@pytest.mark.parametrize("name", MODIFIERS)
def test_every_modifier_has_readers_and_a_default_that_is_off(name):
    readers = [row for row in OBJECTIVES.values() if MODIFIERS[name].reads(row)]
    assert readers
    if name != "weight":
        term = make_term(check_objective(readers[0].name))
        given = golden_inputs()
        assert modified(given, term.modifiers) is given
