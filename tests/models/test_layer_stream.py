"""A model that is held one layer at a time: the values of a whole one, weights read once for all calls, nothing left behind."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import torch
from transformers import Zamba2Config, Zamba2ForCausalLM

from benchmarks.families.recipe import write_random_model
from raydpo.batches import lay_out
from raydpo.errors import ConfigError
from raydpo.models.layer_stream import LayerStream
from raydpo.models.layer_weights import LayerWeights
from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs, check_head
from raydpo.models.pretrained import DTYPES, load_model
from raydpo.models.reloaded import nats_of_folder, streamed_nats_of_folder

KINDS = {
    "llama": "tied embeddings",
    "gemma3": "a tower that text does not reach, windows",
    "qwen2_moe": "experts that transformers stacks when it reads them",
    "qwen3_next": "linear attention",
    "gpt2": "matrices that are turned",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """family -> folder of a tiny random model, written at the first use."""
    root = tmp_path_factory.mktemp("families")

    def find(family):
        if not (root / family).is_dir():
            write_random_model(family, root / family)
        return root / family

    return find


def rows(seed):
    """Three prompts with two answers each."""
    draw = np.random.default_rng(seed)
    prompts = [draw.integers(5, 200, draw.integers(3, 20)) for _ in range(3)]
    return [(prompt, draw.integers(5, 200, draw.integers(2, 12))) for prompt in prompts for _ in range(2)]


def stream_of(folder, dtype="float32"):
    return LayerStream(LayerWeights(folder, DTYPES[dtype], "auto", "cpu"))


def layer_bytes(stream):
    return sum(stream.weights.layer_bytes(number) for number in range(len(stream.weights.layers)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", KINDS)
@torch.no_grad()
def test_values_are_those_of_a_whole_model_and_each_layer_is_read_once(folder_of, family, dtype):
    whole, stream = load_model(folder_of(family), dtype, "auto"), stream_of(folder_of(family), dtype)
    layout, _ = choose_layout(whole, "auto")
    check_head(AnswerLogProbs(stream.model), stream.run)
    assert choose_layout(stream.model, "auto", stream.run)[0] == layout
    batches = [lay_out(rows(seed), layout) for seed in range(3)]
    before = stream.weights.files.bytes_read
    found = stream.run([partial(AnswerLogProbs(stream.model), batch) for batch in batches])
    assert stream.weights.files.bytes_read - before == layer_bytes(stream) > 0
    expected = [AnswerLogProbs(whole)(batch) for batch in batches]
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert torch.equal(AnswerLogProbs(stream.model)(batches[1]), expected[1]), "one call alone"
    assert len({float(nats.sum()) for nats in found}) == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", KINDS)
def test_a_folder_says_by_plain_transformers_what_it_says_streamed(folder_of, family, dtype):
    sequences = [tuple(side.tolist() for side in row) for row in rows(3)]
    whole = nats_of_folder(folder_of(family), sequences, dtype, "cpu")
    streamed, weight_bytes = streamed_nats_of_folder(folder_of(family), sequences, dtype, "cpu")
    assert all(np.array_equal(one, two) for one, two in zip(whole, streamed, strict=True))
    assert len(whole) == len(sequences)
    weights = stream_of(folder_of(family), dtype).weights
    assert weight_bytes == weights.stays_bytes + sum(map(weights.layer_bytes, range(len(weights.layers))))


def test_weights_of_layers_are_gone_after_a_pass_and_those_of_towers_never_come(folder_of):
    stream = stream_of(folder_of("gemma3"))
    files, before = stream.weights.files, stream.weights.files.bytes_read
    assert before == stream.weights.stays_bytes
    tower = sum(files.num_bytes([name]) for name in files if "vision" in name or "projector" in name)
    assert tower > 0
    assert before + layer_bytes(stream) + tower == files.num_bytes(files)
    with stream.weights.holding(1):
        there = [number for number, layer in enumerate(stream.weights.layers) if not is_empty(layer)]
    assert there == [1]
    assert all(is_empty(layer) for layer in stream.weights.layers)


def is_empty(layer):
    return all(parameter.is_meta for parameter in layer.parameters())


@torch.no_grad()
def test_a_call_that_fails_ends_the_others_and_the_next_pass_is_well(folder_of):
    stream = stream_of(folder_of("llama"))
    scoring, batch = AnswerLogProbs(stream.model), lay_out(rows(0), "padded")
    layer, forward = stream.weights.layers[1], stream.weights.layers[1].forward

    def fail(*args, **kwargs):
        raise RuntimeError("out of memory")

    layer.forward = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.run([partial(scoring, batch)] * 3)
    assert not [thread for thread in threading.enumerate() if thread.name == "layer-stream"]
    assert all(is_empty(layer) for layer in stream.weights.layers)
    layer.forward = forward
    one, two = stream.run([partial(scoring, batch)] * 2)
    assert torch.equal(one, two)
    assert not [thread for thread in threading.enumerate() if thread.name == "layer-stream"]


def test_layers_that_share_weights_are_refused_with_the_name(tmp_path):
    config = Zamba2Config(
        **{"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48},
        **{"num_attention_heads": 2, "mamba_d_state": 8, "n_mamba_heads": 2, "mamba_ngroups": 1, "num_mem_blocks": 1},
        **{"adapter_rank": 4, "chunk_size": 16, "layer_types": ["mamba", "hybrid", "mamba", "hybrid"]},
    )
    Zamba2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(NotImplementedError, match=r"layers of Zamba2ForCausalLM share weights \(model\.layers\."):
        LayerWeights(tmp_path, torch.float32, "auto", "cpu")


def test_a_folder_that_lacks_a_layer_or_the_head_is_refused(folder_of, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder_of("gpt2") / "model.safetensors")
    for name, at_start in (("transformer.ln_f.weight", True), ("transformer.h.1.mlp.c_fc.weight", False)):
        (tmp_path / "config.json").write_bytes((folder_of("gpt2") / "config.json").read_bytes())
        kept = {key: tensor for key, tensor in tensors.items() if key != name}
        assert len(kept) == len(tensors) - 1
        save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ConfigError, match="the files lack weight of a") if at_start else nullcontext():
            weights = LayerWeights(tmp_path, torch.float32, "auto", "cpu")
        if not at_start:
            with pytest.raises(ConfigError, match="the files lack weight of a Conv1D"), weights.holding(1):
                pass
