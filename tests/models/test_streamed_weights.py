"""Weights that are written one by one are those that save_pretrained writes, and a model's worth of them is never held."""

from __future__ import annotations

import errno

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from raydpo.models import shard_files
from raydpo.models.blend import tensor_files
from raydpo.models.streamed_weights import StreamedWeights, kept_buffers, without_data
from tests.models.test_attention import FAMILIES
from tests.models.test_hollow import mixture
from tests.models.test_layout import OTHERS, model_of

MIXTURES = ("mixtral", "qwen3_moe", "gpt_oss")
IDS = torch.arange(3, 15)[None]


def made(family):
    torch.manual_seed(0)
    return mixture(family) if family in MIXTURES else model_of(family)


def streamed(model, folder, max_bytes):
    """The folder of `model`, with its weights streamed: the one who streamed them."""
    state = dict(model.named_parameters()) | dict(kept_buffers(model))
    stream = StreamedWeights(model, without_data(model), folder.with_name("weights"), max_bytes)
    for name, tensor in state.items():
        stream.add(name, tensor.detach().clone())
    model.save_pretrained(folder, state_dict={})
    stream.move_into(folder)
    return stream


@pytest.mark.parametrize("family", sorted({*FAMILIES, *OTHERS, *MIXTURES}))
def test_one_file_is_what_save_pretrained_writes(family, tmp_path):
    model = made(family)
    model.save_pretrained(tmp_path / "theirs")
    stream = streamed(model, tmp_path / "ours", 10**9)
    for path in (tmp_path / "theirs").iterdir():
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes(), path.name
    assert not (tmp_path / "weights").exists()
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert stream.most_bytes_held <= 2 * largest, "a tensor, and what it is converted to"


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mixtral"])
@pytest.mark.parametrize("loaded", [False, True], ids=["made", "loaded"])
def test_shards_are_the_model(family, loaded, tmp_path):
    model = made(family).eval()
    if loaded:
        model.save_pretrained(tmp_path / "start")
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "start").eval()
    model.save_pretrained(tmp_path / "theirs")
    streamed(model, tmp_path / "ours", 10_000)
    ours, theirs = (
        {name: load_file(path)[name] for name, path in tensor_files(tmp_path / side).items()}
        for side in ("ours", "theirs")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    shards = sorted((tmp_path / "ours").glob("model-*.safetensors"))
    assert len(shards) > 3
    sizes = [[tensor.nbytes for tensor in load_file(path).values()] for path in shards]
    assert all(sum(size) <= 10_000 or len(size) == 1 for size in sizes)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.equal(again(IDS).logits.log_softmax(-1), model(IDS).logits.log_softmax(-1))


def test_a_full_disk_is_told_when_the_files_are_wanted(tmp_path, monkeypatch):
    """Not while weights are gathered: the other ranks would wait for ever."""
    honest, left = shard_files.put, [3]

    def put(*args):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(*args)

    monkeypatch.setattr(shard_files, "put", put)
    with pytest.raises(OSError, match="No space left"):
        streamed(made("llama"), tmp_path / "ours", 10**9)
    assert left == [-1]


def test_a_conversion_of_several_tensors_holds_a_layer(tmp_path, monkeypatch):
    """A family whose files join what transformers keeps apart; none of the others here does."""
    from transformers.core_model_loading import Chunk, WeightConverter

    model = made("llama")
    model._weight_conversions = [
        WeightConverter(["mlp.joined.weight"], ["mlp.gate_proj.weight", "mlp.up_proj.weight"], [Chunk(dim=0)])
    ]
    model.save_pretrained(tmp_path / "theirs")
    stream = streamed(model, tmp_path / "ours", 10**9)
    assert "model.layers.1.mlp.joined.weight" in tensor_files(tmp_path / "ours")
    ours, theirs = ((tmp_path / side / "model.safetensors").read_bytes() for side in ("ours", "theirs"))
    assert ours == theirs
    layer = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    assert layer <= stream.most_bytes_held <= 2 * layer
