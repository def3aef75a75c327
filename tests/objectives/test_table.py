"""The config's table and the implementations name the same objectives and the same parameters."""

import dataclasses

import pytest

from raydpo.config import OBJECTIVES
from raydpo.metrics import METRICS
from raydpo.objectives import OBJECTIVE_CLASSES, make_objective
from tests.objectives.pairs import golden_inputs


def test_table_and_classes_have_the_same_names():
    assert set(OBJECTIVES) == set(OBJECTIVE_CLASSES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parameters_and_defaults_agree(name):
    fields = {f.name: f.default for f in dataclasses.fields(OBJECTIVE_CLASSES[name])}
    assert fields == {key: parameter.default for key, parameter in OBJECTIVES[name].parameters.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_metric_is_declared(name):
    output = make_objective(name, {k: p.default for k, p in OBJECTIVES[name].parameters.items()})(golden_inputs())
    assert set(output.metrics) <= set(METRICS)
    assert "loss" in output.metrics
