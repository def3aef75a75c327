"""LoRA: the adapter alone trains, the base stays bit for bit, and what is exported is what was trained."""

import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.artifacts import ExampleTable
from raydpo.models.lora import add_lora
from raydpo.models.merging import merge_lora
from raydpo.models.pretrained import load_model
from raydpo.quickstart.bpe import train_bpe
from tests.train import jobs
from tests.train.test_export import mean_logps

pytestmark = pytest.mark.slow

LORA = {"rank": 4, "alpha": 8}


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (1, 2), (2, 2), (2, 3)])
def test_only_the_adapter_trains(runs, world, gangs, num_ranks, stage):
    spec = runs.spec(zero_stage=stage, lora=LORA, max_steps=2)
    (_, weights, trainable), *_ = gangs[num_ranks].run(jobs.train_and_look, spec)
    assert trainable
    assert all(".lora_" in name for name in trainable)
    base, compared = load_file(world.reference / "model.safetensors"), 0
    for name, value in weights.items():
        if name not in trainable:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            np.testing.assert_array_equal(value, base[plain].numpy(), err_msg=name)
            compared += 1
    assert compared == len(base)
    assert all(np.abs(weights[name]).max() > 0 for name in trainable)  # B started at 0


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 0), (2, 2), (2, 3)])
def test_losses_are_the_same_and_start_at_ln_2(runs, num_ranks, stage):
    run, plain = runs.get(num_ranks=num_ranks, zero_stage=stage, lora=LORA), runs.get(zero_stage=0, lora=LORA)
    assert run.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run.losses[-1] < run.losses[0] - 0.05
    assert run.losses == pytest.approx(plain.losses, abs=1e-5)
    assert run.probed.max_difference_nats < 1e-4


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 2), (2, 3)])
def test_peft_loads_the_adapter_and_gives_the_trainers_log_probs(runs, world, num_ranks, stage, tmp_path):
    run = runs.get(num_ranks=num_ranks, zero_stage=stage, lora=LORA)
    adapter = run.staged() / "model"
    assert not list(adapter.glob("model*.safetensors"))
    assert all("lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
    table = ExampleTable.open(world.data, "eval")
    expected = [run.last_evaluation[f"eval/logps/{side}"] for side in ("chosen", "rejected")]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(world.reference), adapter).eval()
    assert mean_logps(model, table) == pytest.approx(expected, abs=1e-3)
    with model.disable_adapter():
        off = [run.first_evaluation[f"eval/logps/{side}"] for side in ("chosen", "rejected")]
        assert mean_logps(model, table) == pytest.approx(off, abs=1e-3)
    merge_lora(world.reference, adapter, tmp_path / "merged", "float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert mean_logps(merged, table) == pytest.approx(expected, abs=1e-3)
    assert abs(np.subtract(expected, off)).max() > 1


def test_an_exported_adapter_can_be_evaluated_and_trained_further(runs, world):
    # An adapter folder is merged into its base on loading: it starts where the first run ended.
    adapter = runs.get(lora=LORA).staged() / "model"
    further = runs.get(lora=LORA, policy=adapter, max_steps=1)
    ended = runs.get(lora=LORA).last_evaluation
    assert further.first_evaluation == pytest.approx(ended, abs=1e-3)


def test_the_seed_alone_decides_where_the_adapter_starts(runs, gangs):
    # A learning rate of nearly nothing leaves the adapter where it started.
    starts = {}
    for num_ranks, stage in ((1, 0), (2, 3)):
        spec = runs.spec(zero_stage=stage, lora=LORA, max_steps=1, learning_rate=1e-30)
        (_, starts[num_ranks], trainable), *_ = gangs[num_ranks].run(jobs.train_and_look, spec)
    for name in trainable:
        np.testing.assert_allclose(starts[1][name], starts[2][name], rtol=0, atol=1e-29, err_msg=name)
        assert (np.abs(starts[1][name]).max() > 1e-3) == (".lora_A." in name)


def test_an_adapter_is_in_the_dtype_that_it_trains_in(tmp_path):
    """Activations are measured on it before DeepSpeed casts anything: in float32 they would count more than is kept."""
    model = load_model(saved(tmp_path, "llama"), "bfloat16", "auto")
    adapted = add_lora(model, rank=4, alpha=8, target_modules="all-linear", seed=0)
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}


def test_a_model_without_sdpa_is_merged(tmp_path):
    base = saved(tmp_path / "base", "codegen")
    adapted = add_lora(load_model(base, "float32", "auto"), rank=4, alpha=8, target_modules="all-linear", seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_lora(base, tmp_path / "adapter", tmp_path / "merged", "float32")
    merged = load_model(tmp_path / "merged", "float32", "auto")
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-4, rtol=1e-4)


def saved(folder, family):
    """A tiny model of random weights with a tokenizer."""
    shapes = {
        "llama": {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "intermediate_size": 48},
        "codegen": {"n_embd": 32, "n_head": 4, "n_layer": 1, "n_positions": 64, "rotary_dim": 4},
    }
    tokenizer = train_bpe(["a few words to learn from"], 280)
    vocab = len(tokenizer)
    config = AutoConfig.for_model(family, **shapes[family], vocab_size=vocab, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
