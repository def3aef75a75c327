"""What a rank moves, reads and computes until its optimizer is made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.pretrained import load_tokenizer
from raydpo.models.resolve import ResolvedModel
from raydpo.quickstart.fresh_model import create_model
from raydpo.schema.rank_events import Noted
from raydpo.train.activations import fit_activations
from raydpo.train.run_feeds import make_feed
from raydpo.train.start import start_of
from tests.train import start_jobs
from tests.train.conftest import Run
from tests.train.gang import Place

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_under_zero_3_no_rank_moves_more_than_one_tensor(runs, gangs, dtype):
    for moves in gangs[2].run(start_jobs.count_moves, runs.spec(zero_stage=3, dtype=dtype)):
        assert moves.whole == 0
        assert (
            moves.alone <= max(moves.largest, -(-moves.weights // 2)) < moves.weights
        )  # a tensor, or a rank's own part


def test_the_count_sees_a_model_that_is_moved_whole(runs, gangs):
    for moves in gangs[2].run(start_jobs.count_moves, runs.spec(zero_stage=2)):
        assert moves.whole >= moves.weights


LORA = {"rank": 4, "alpha": 8}
DORA = {**LORA, "dora": True}


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("options", [{}, {"lora": LORA}], ids=["full", "lora"])
def test_under_zero_3_ranks_read_every_weight_once_between_them(runs, gangs, num_ranks, options):
    reads = gangs[num_ranks].run(start_jobs.count_reads, runs.spec(zero_stage=3, **options))
    assert sum(each.read for each in reads) == reads[0].weights
    assert max(each.read for each in reads) <= reads[0].weights / num_ranks + 1024
    assert not any(each.whole for each in reads)


def mixture(world, folder: Path, family: str) -> Path:
    """A random model with experts, one tensor each in its files, that reads the world's ids."""
    vocabulary = len(load_tokenizer(world.reference))
    experts = (
        {"num_local_experts": 6}
        if family == "mixtral"
        else {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
    )
    shape = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 8,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **shape, **experts, num_key_value_heads=2, vocab_size=vocabulary)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    load_tokenizer(world.reference).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"lora": LORA}], ids=["full", "lora"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_stacked_experts_are_read_once_between_the_ranks(world, runs, gangs, family, options, tmp_path):
    spec = runs.spec(zero_stage=3, policy=mixture(world, tmp_path, family), **options)
    for num_ranks in (2, 3):
        reads = gangs[num_ranks].run(start_jobs.count_reads, spec)
        assert sum(each.read for each in reads) == reads[0].weights
        assert max(each.read for each in reads) <= 1.3 * (reads[0].weights / num_ranks + reads[0].largest)
        assert max(each.read for each in reads) <= reads[0].weights / num_ranks + 1024
        assert not any(each.whole for each in reads)


def test_a_training_of_experts_is_the_same_whichever_way_they_were_read(world, runs, gangs, tmp_path):
    spec = runs.spec(zero_stage=3, policy=mixture(world, tmp_path, "mixtral"), max_steps=2)
    parts = runs.fresh(spec, 2)
    spec = replace(spec, staging=tmp_path / "whole")
    spec.staging.mkdir()
    whole = Run(spec, *gangs[2].run(start_jobs.train_read_whole, spec)[0])
    assert len(parts.losses) == 2
    assert whole.losses == parts.losses
    assert whole.series("grad_norm") == parts.series("grad_norm")
    assert not any("reads the whole model" in event.text for event in parts.of(Noted))


@pytest.mark.parametrize(
    "options",
    [
        {"zero_stage": 3},
        {"zero_stage": 3, "dtype": "bfloat16"},
        {"zero_stage": 3, "lora": LORA},
        {"zero_stage": 3, "lora": DORA},
    ],
    ids=["fp32", "bf16", "lora", "dora"],
)
def test_a_training_is_the_same_whichever_way_weights_were_read(runs, gangs, options):
    parts = runs.get(num_ranks=2, **options)
    spec = runs.spec(**options)
    spec.staging.mkdir(parents=True)
    whole = Run(spec, *gangs[2].run(start_jobs.train_read_whole, spec)[0])
    assert whole.losses == parts.losses
    assert whole.series("grad_norm") == parts.series("grad_norm")
    said = "every rank reads the whole model instead of its own part: this test says so"
    assert said in [event.text for event in whole.of(Noted)]
    assert said not in [event.text for event in parts.of(Noted)]


def damaged(world, folder: Path) -> Path:
    """The world's model with a NaN in the embedding of an id that nothing uses."""
    for path in world.reference.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][-1, -1] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_that_are_not_finite_are_refused_on_all_ranks_alike(world, runs, stage, tmp_path):
    spec = runs.spec(zero_stage=stage, policy=damaged(world, tmp_path))
    error = runs.fresh(spec, 2).error
    assert error.startswith("ConfigError: model.path: model.embed_tokens.weight hold NaN or infinity")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_dora_begins_with_the_magnitudes_of_whole_matrices(world, runs, gangs, dtype, num_ranks):
    """3 ranks cut matrices of 32 and 48 columns within rows."""
    spec = runs.spec(zero_stage=3, dtype=dtype, lora=DORA)
    expected = magnitudes_in(start_of(replace(spec, config=world.config(dtype=dtype, zero_stage=2, lora=DORA))).model)
    assert len(expected) == 2 * 7
    assert all((each > 0).all() for each in expected.values())
    for found, read, weights in gangs[num_ranks].run(start_jobs.magnitudes, spec):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], each) for name, each in expected.items())
        assert read <= 1.3 * weights / num_ranks


def test_dora_on_turned_matrices_and_embeddings_reads_them_one_at_a_time(world, runs, gangs, tmp_path):
    config = AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=2, n_head=4, vocab_size=len(load_tokenizer(world.reference))
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    load_tokenizer(world.reference).save_pretrained(tmp_path)
    lora = DORA | {"target_modules": ["c_attn", "wpe"]}
    spec = runs.spec(zero_stage=3, policy=tmp_path, lora=lora)
    expected = magnitudes_in(start_of(replace(spec, config=world.config(zero_stage=2, lora=lora))).model)
    for found, _, _ in gangs[2].run(start_jobs.magnitudes, spec):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], each) for name, each in expected.items())


def magnitudes_in(model) -> dict[str, torch.Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if "magnitude" in name}


@pytest.mark.parametrize("stage", [0, 3])
def test_a_start_computes_as_much_for_two_layers_as_for_forty(world, runs, stage, tmp_path):
    flops = []
    for num_layers in (2, 40):
        folder = tmp_path / str(num_layers)
        shape = {"hidden_size": 32, "num_heads": 4, "intermediate_size": 48, "max_positions": 512}
        create_model(folder, load_tokenizer(world.reference), num_layers=num_layers, seed=0, **shape)
        spec = replace(runs.spec(zero_stage=stage), model=ResolvedModel("start", None, folder))
        with FlopCounterMode(display=False) as counter:
            start = start_of(spec)
            feed = make_feed(Place(0, 1), spec, "train", None, start.layout, start.work)
            _, line = fit_activations(AnswerLogProbs(start.model), feed, spec.config.train, start.small)
        assert f"0 of {num_layers} layers" in line
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


def test_settings_of_deepspeed_reach_the_engine(runs):
    """Buckets of three elements: other sums in another order, and the same training."""
    for stage in (2, 3):
        small = {"zero_optimization": {"reduce_bucket_size": 3}}
        found = runs.get(num_ranks=2, zero_stage=stage, deepspeed=small)
        assert found.losses == pytest.approx(runs.get(num_ranks=2, zero_stage=stage).losses, rel=1e-6)
    both = {"zero_optimization": {"zero_hpz_partition_size": 2}}  # ZeRO++: weights are gathered within a node
    assert runs.get(num_ranks=2, zero_stage=3, deepspeed=both).losses == runs.get(num_ranks=2, zero_stage=3).losses
    wrong = runs.fresh(runs.spec(zero_stage=2, deepspeed={"zero_optimization": {"no_such": 1}}), 2)
    assert wrong.error.startswith("ConfigError: train.deepspeed: zero_optimization.no_such: Extra inputs")
