"""The learning rate of every step in closed form, and that the optimizer really uses it."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from raydpo.errors import ConfigError
from raydpo.train.schedule import learning_rate


def rates(num_steps, schedule, warmup_fraction=0.0, peak=1.0):
    options = {"peak": peak, "warmup_fraction": warmup_fraction, "schedule": schedule}
    return [learning_rate(step, num_steps, **options) for step in range(num_steps)]


def test_linear_with_warm_up():
    expected = [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rates(10, "linear", 0.2) == pytest.approx(expected)
    assert rates(4, "linear", peak=8e-7) == pytest.approx([8e-7, 6e-7, 4e-7, 2e-7])


def test_cosine_with_and_without_warm_up():
    root = math.sqrt(0.5)
    assert rates(4, "cosine") == pytest.approx([1, (1 + root) / 2, 1 / 2, (1 - root) / 2])
    assert rates(5, "cosine", 0.2) == pytest.approx([1 / 2, 1, (1 + root) / 2, 1 / 2, (1 - root) / 2])


def test_cosine_to_a_tenth_of_the_peak():
    root = math.sqrt(0.5)
    expected = [1, 0.1 + 0.45 * (1 + root), 0.55, 0.1 + 0.45 * (1 - root)]
    assert rates(4, "cosine_to_tenth") == pytest.approx(expected)
    assert rates(5, "cosine_to_tenth", 0.2)[0] == 0.5


def test_constant_and_nothing_but_warm_up():
    assert rates(4, "constant", 0.25) == pytest.approx([1 / 2, 1, 1, 1])
    assert rates(4, "cosine", 1.0) == pytest.approx([1 / 5, 2 / 5, 3 / 5, 4 / 5])
    assert rates(1, "linear") == [1]


def test_a_name_that_is_no_schedule_is_an_error_and_not_a_cosine():
    with pytest.raises(
        ConfigError, match=r"train.schedule: 'cosin' is not one of cosine, linear, constant, cosine_to_tenth, package"
    ):
        rates(4, "cosin")


def no_number_in_the_middle(step, num_steps):
    return float("nan") if 2 * step == num_steps + 1 else 1.0


def test_a_schedule_of_another_package_gives_shares_of_the_peak():
    name = f"{__name__}:no_number_in_the_middle"
    assert learning_rate(2, 6, peak=0.25, warmup_fraction=1 / 6, schedule=name) == 0.25
    assert learning_rate(0, 6, peak=0.25, warmup_fraction=1 / 6, schedule=name) == 0.125
    with pytest.raises(ConfigError, match=r"train.schedule: .*:no_number_in_the_middle gave nan for step 3 of 5"):
        learning_rate(4, 6, peak=0.25, warmup_fraction=1 / 6, schedule=name)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"]))
def test_rises_then_falls_and_no_step_is_spent_at_zero(num_steps, warmup_fraction, schedule):
    values, warmup = rates(num_steps, schedule, warmup_fraction), round(warmup_fraction * num_steps)
    assert all(0 < value <= 1 for value in values)
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    if warmup < num_steps:
        assert values[warmup] == 1


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_first_step_moves_weights_by_its_learning_rate(runs, world, stage):
    # The first Adam update of a weight is learning_rate * gradient / (|gradient| + 1e-8).
    run = runs.get(zero_stage=stage, save_every=1)
    start, after = (load_file(p / "model.safetensors") for p in (world.reference, run.staged(1) / "model"))
    moved = max(float((after[name] - start[name]).abs().max()) for name in start)
    assert run.series("learning_rate") == pytest.approx([1e-3 / 2, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert moved == pytest.approx(0.5e-3, rel=1e-2)
