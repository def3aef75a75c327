"""The config's table and the implementations name the same objectives and the same parameters."""

import dataclasses
from dataclasses import replace

import pytest
import torch

from raydpo.config import OBJECTIVES
from raydpo.metrics import METRICS
from raydpo.objectives import OBJECTIVE_CLASSES
from tests.objectives.cases import objective, whole
from tests.objectives.pairs import golden_inputs


def test_table_and_classes_have_the_same_names():
    assert set(OBJECTIVES) == set(OBJECTIVE_CLASSES)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_parameters_and_defaults_agree(name):
    fields = {f.name: f.default for f in dataclasses.fields(OBJECTIVE_CLASSES[name])}
    assert fields == {key: parameter.default for key, parameter in OBJECTIVES[name].parameters.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_metric_is_declared(name):
    given = replace(golden_inputs(), labels=torch.tensor([True, False]))
    given = given if OBJECTIVES[name].data == "pairs" else replace(given, answers=given.answers[:, :1])
    output = whole(objective(name), given)
    assert set(output.metrics) <= set(METRICS)
    assert "loss" in output.metrics
    assert f"loss/{name}" in METRICS


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_table_says_what_looks_at_the_whole_batch(name):
    assert hasattr(OBJECTIVE_CLASSES[name], "observe") == (OBJECTIVES[name].batch != "none")
