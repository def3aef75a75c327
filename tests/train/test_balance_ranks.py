"""The balancing loss of experts in a real training: ranks, ZeRO stages, micro-batches, LoRA."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.models.pretrained import load_tokenizer
from raydpo.models.resolve import ResolvedModel
from tests.train import jobs
from tests.train.test_balance import EXPERTS, SHAPE

pytestmark = pytest.mark.slow

COEFFICIENT = 0.2


@pytest.fixture(scope="module")
def mixture(world, tmp_path_factory):
    """A qwen3_moe with experts that are asked unevenly, and the world's tokenizer."""
    folder = tmp_path_factory.mktemp("mixture") / "model"
    tokenizer = load_tokenizer(world.reference)
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": len(tokenizer), "intermediate_size": 24, "head_dim": 8}
    config = AutoConfig.for_model("qwen3_moe", **shape, **EXPERTS, router_aux_loss_coef=COEFFICIENT)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 4.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(runs, gangs, mixture):
    """(number of ranks, settings) -> metrics of three steps."""

    def train(num_ranks=1, **settings):
        spec = replace(runs.spec(objective="simpo", **settings), model=ResolvedModel("mixture", None, mixture))
        return gangs[num_ranks].run(jobs.balanced_step, spec, 3)[0]

    return train


@pytest.fixture(scope="module")
def alone(trained):
    return trained(tokens_per_microbatch=10**6)


def series(metrics, name):
    return [each[name] for each in metrics]


@pytest.mark.parametrize(
    ("num_ranks", "settings"),
    [
        (1, {"tokens_per_microbatch": 1}),
        (1, {"gradient_checkpointing": True}),
        (2, {"tokens_per_microbatch": 500}),
        (2, {"zero_stage": 2}),
        (2, {"zero_stage": 3}),
        (2, {"zero_stage": 3, "gradient_checkpointing": True}),
        (2, {"zero_stage": 2, "num_workers": 2, "sequence_parallel_size": 2}),
    ],
    ids=str,
)
def test_ranks_stages_and_micro_batches_are_one_update(trained, alone, num_ranks, settings):
    metrics = trained(num_ranks, **settings)
    for name in ("router_aux_loss", "loss", "grad_norm"):
        assert series(metrics, name) == pytest.approx(series(alone, name), rel=1e-4), name


def test_the_model_decides_and_a_key_may_decide_otherwise(trained, alone):
    metrics = alone
    assert metrics[0]["router_aux_loss"] > 2.01
    off = trained(router_aux_loss="off")
    assert "router_aux_loss" not in off[0]
    assert off[0]["loss"] == pytest.approx(metrics[0]["loss"], rel=1e-5)
    assert abs(off[0]["grad_norm"] - metrics[0]["grad_norm"]) > 1e-3 * off[0]["grad_norm"]
    named = trained(router_aux_loss=COEFFICIENT)
    assert series(named, "grad_norm") == pytest.approx(series(metrics, "grad_norm"), rel=1e-5)


def test_it_falls_when_it_weighs_more(trained):
    """A sign, of a whole training: the stronger it pulls, the more evenly experts are asked."""
    weak, strong = (
        trained(router_aux_loss=coefficient, learning_rate=3e-3)[-1]["router_aux_loss"] for coefficient in (1e-6, 100.0)
    )
    assert strong < weak - 1e-3


def test_an_adapter_trains_with_it(trained, alone):
    metrics = trained(lora={"rank": 2, "alpha": 4})
    assert metrics[0]["router_aux_loss"] == pytest.approx(alone[0]["router_aux_loss"], rel=1e-5)
