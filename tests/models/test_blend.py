"""The mean of two model folders: against the same sum in torch, for one file and many, for every dtype and naming."""

import json
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydpo.artifacts import weights_digest
from raydpo.errors import ConfigError
from raydpo.models import blend as blend_module
from raydpo.models.blend import blend, other_shapes, tensor_files
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model

SHAPE = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24, "max_positions": 32}


def model(folder: Path, seed: int, **changes) -> Path:
    create_model(folder, train_bpe(["sort 12 34"] * 2, 270), seed=seed, **(SHAPE | changes))
    return folder


@pytest.fixture
def pair(tmp_path):
    return model(tmp_path / "policy", 1), model(tmp_path / "reference", 2)


def tensors(folder):
    return {name: load_file(path)[name] for name, path in tensor_files(folder).items()}


def assert_is_mean(out, policy, reference, alpha):
    found, ours, theirs = tensors(out), tensors(policy), tensors(reference)
    assert found.keys() == ours.keys()
    for name, value in found.items():
        assert value.dtype == torch.float32
        exact = alpha * ours[name].double() + (1 - alpha) * theirs[name].double()
        scale = max(ours[name].abs().max().item(), theirs[name].abs().max().item())
        torch.testing.assert_close(value.double(), exact, rtol=0, atol=2**-23 * scale)


@pytest.mark.parametrize("alpha", [0.6, 0.001])
def test_every_tensor_is_the_mean(pair, tmp_path, alpha):
    policy, reference = pair
    blend(policy, reference, alpha, tmp_path / "out")
    assert_is_mean(tmp_path / "out", policy, reference, alpha)
    assert not any(torch.equal(v, tensors(policy)[n]) for n, v in tensors(tmp_path / "out").items() if v.std() > 0)


def test_the_folder_is_a_model_with_everything_of_the_policy(pair, tmp_path):
    policy, reference = pair
    blend(policy, reference, 0.5, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in policy.iterdir()}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in tensors(tmp_path / "out").items())
    first = weights_digest(tmp_path / "out")
    blend(policy, reference, 0.5, tmp_path / "again")
    assert weights_digest(tmp_path / "again") == first
    assert len({first, weights_digest(policy), weights_digest(reference)}) == 3


def test_alpha_1_is_the_policy_bit_for_bit_and_needs_no_reference(pair, tmp_path):
    blend(pair[0], None, 1, tmp_path / "out")
    assert all(torch.equal(value, tensors(pair[0])[name]) for name, value in tensors(tmp_path / "out").items())


def test_sharded_folders(pair, tmp_path):
    policy, reference = (tmp_path / f"sharded-{folder.name}" for folder in pair)
    for source, target, size in ((pair[0], policy, "5KB"), (pair[1], reference, "9KB")):
        AutoModelForCausalLM.from_pretrained(source).save_pretrained(target, max_shard_size=size)
        assert len(list(target.glob("*.safetensors"))) > 1
    blend(policy, reference, 0.6, tmp_path / "out")
    assert_is_mean(tmp_path / "out", policy, reference, 0.6)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in policy.iterdir()}
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * value.numel() for value in tensors(policy).values())
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in tensors(tmp_path / "out").items())


def test_a_bfloat16_policy_moves_a_reference_by_less_than_bfloat16_can_say(pair, tmp_path):
    policy, reference = pair
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16).save_pretrained(half)
    blend(half, reference, 1e-4, tmp_path / "out")
    assert_is_mean(tmp_path / "out", half, reference, 1e-4)


def test_whole_numbers_and_copies_of_tied_weights(tmp_path):
    for name, values in (("policy", 3), ("reference", 4)):
        (tmp_path / name).mkdir()
        held = {
            "steps": torch.tensor(values),
            "flags": torch.tensor([True, False, True]),
            "w": torch.full((3,), values / 1),
        }
        if name == "reference":
            held["copy"] = held["w"].clone()
        save_file(held, tmp_path / name / "model.safetensors")
    blend(tmp_path / "policy", tmp_path / "reference", 0.25, tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert found.keys() == {"steps", "flags", "w"}
    assert found["steps"].item() == 3
    assert found["flags"].tolist() == [True, False, True]
    assert found["w"].tolist() == [3.75] * 3


def test_a_reference_under_other_names_is_read_as_transformers_reads_it(pair, tmp_path):
    """Folders of base models have the names of their tensors without the prefix of the causal model."""
    policy, reference = pair
    renamed = {name.removeprefix("model."): value for name, value in tensors(reference).items()}
    save_file(renamed, reference / "model.safetensors", {"format": "pt"})
    blend(policy, reference, 0.6, tmp_path / "out")
    save_file({f"model.{name}": value for name, value in renamed.items()}, reference / "model.safetensors")
    assert_is_mean(tmp_path / "out", policy, reference, 0.6)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in policy.iterdir()}


def test_models_that_do_not_fit_are_named(pair, tmp_path):
    wide = model(tmp_path / "wide", 3, intermediate_size=32)
    assert other_shapes(*pair) == []
    lines = other_shapes(pair[0], wide)
    assert len(lines) == 6
    assert lines[0] == "model.layers.0.mlp.down_proj.weight: [16, 24] and [16, 32]"
    with pytest.raises(ConfigError, match=r"mlp\.down_proj\.weight is \[16, 24\] in the policy and \[16, 32\]"):
        blend(pair[0], wide, 0.6, tmp_path / "out")
    deep = model(tmp_path / "deep", 3, num_layers=3)
    with pytest.raises(ConfigError, match=r"the reference has no tensor model\.layers\.2"):
        blend(deep, pair[1], 0.6, tmp_path / "deeper")


def test_a_mean_of_one_file_is_that_of_torch_and_holds_no_second_tensor(pair, tmp_path, monkeypatch):
    """The same bytes as all means at once would give, by safetensors itself."""
    alive, most = [], [0]
    honest = blend_module._mean

    def counted(*args):
        found = honest(*args)
        alive.append(weakref.ref(found))
        most[0] = max(most[0], sum(mean() is not None for mean in alive))
        return found

    monkeypatch.setattr(blend_module, "_mean", counted)
    blend(*pair, 0.3, tmp_path / "out")
    ours, theirs = (tensors(folder) for folder in pair)
    means = {name: (value * 0.3).add_(theirs[name], alpha=0.7) for name, value in ours.items()}
    save_file(means, tmp_path / "expected", {"format": "pt"})
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "expected").read_bytes()
    assert len(alive) == len(means) > 10
    assert most == [1]
