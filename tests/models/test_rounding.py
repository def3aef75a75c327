"""The measured noise of rounding against the distance from float64, and what it must not change."""

import copy

import numpy as np
import pytest
import torch

from raydpo.batches import collate_rows
from raydpo.models.agreement import MARGIN, Noise, compare
from raydpo.models.compiled import compile_layers
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.rounding import rounded_otherwise
from tests.models.test_logprobs import ROWS, make_model

ENDS = np.cumsum([len(answer) for _, answer in ROWS])[:-1]


@torch.no_grad()
def rows_of(model):
    return np.split(AnswerLogProbs(model)(collate_rows(ROWS)).double().numpy(), ENDS)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_about_the_distance_from_float64(family, dtype):
    model = make_model(family, dtype)
    plain, exact = rows_of(model), rows_of(copy.deepcopy(model).double())
    with rounded_otherwise(model):
        noise = Noise.between(plain, rows_of(model))
    error = Noise.between(exact, plain)
    assert error.token_nats / 3 < noise.token_nats < 6 * error.token_nats
    assert compare(plain, exact, noise.tolerance).problem is None


def test_the_model_is_as_before_and_a_seed_gives_the_same():
    model = make_model("llama", torch.float32)
    compile_layers(model, "padded")
    layer = model.model.layers[0]
    compiled = layer._compiled_call_impl
    assert compiled is not None
    moved = []
    for seed in (0, 0, 1):
        with rounded_otherwise(model, seed):
            assert layer._compiled_call_impl is None
            moved.append(np.concatenate(rows_of(model)))
    assert layer._compiled_call_impl is compiled
    assert not any(module._forward_hooks for module in model.modules())
    assert np.array_equal(moved[0], moved[1])
    assert not np.array_equal(moved[0], moved[2])


def test_a_tolerance_grows_as_a_random_walk_and_finds_what_is_beyond():
    noise = Noise.between([np.zeros(4), np.zeros(100)], [np.full(4, 0.01), np.tile([0.01, -0.01], 50)])
    assert noise.token_nats == pytest.approx(np.sqrt((4 * 0.01**2 / 1 + 0) / 2))
    rows = [np.full(n, -1.0) for n in (1, 100)]
    assert noise.tolerance(rows) == pytest.approx(MARGIN * noise.token_nats * np.array([1, 10]), rel=1e-4)
    far = [rows[0], rows[1] + noise.tolerance(rows)[1] / 90]
    found = compare(far, rows, noise.tolerance)
    assert found.problem is not None
    assert found.problem[0] == 1
