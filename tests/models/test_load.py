"""Loading a model folder: whole, or not at all."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.errors import ConfigError
from raydpo.models.lora import add_lora
from raydpo.models.pretrained import load_model
from raydpo.models.resolve import adapter_base
from tests.models.test_layout import model_of


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_folder_that_lacks_weights_is_refused(family, tmp_path):
    """transformers would draw them at random, and the reference would be another model."""
    model_of(family).save_pretrained(tmp_path)
    assert isinstance(load_model(tmp_path, "float32", "auto"), torch.nn.Module)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in sorted(weights) if "layers.1" in name)
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=f"the files lack .*{name}"):
        load_model(tmp_path, "float32", "auto")


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_a_tied_head_is_not_missing(family, tmp_path):
    model = model_of(family)
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    torch.testing.assert_close(load_model(tmp_path, "float32", "auto").state_dict(), model.state_dict())


MAIN, OLD = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub cache that holds `owner/base` twice, as main and as the tag `old`; nothing is asked of the network."""
    repo = tmp_path / "hub/models--owner--base"
    (repo / "refs").mkdir(parents=True)
    for seed, (branch, commit) in enumerate((("main", MAIN), ("old", OLD))):
        model_of("llama", seed=seed).save_pretrained(repo / "snapshots" / commit)
        (repo / "refs" / branch).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return repo / "snapshots"


def adapter_of(folder, base, **described):
    """An adapter that changes nothing (B is 0), so that it shows which base it was merged into."""
    add_lora(load_model(base, "float32", "auto"), rank=2, alpha=4, target_modules="all-linear", seed=0).save_pretrained(
        folder
    )
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **described}))
    return folder


@pytest.mark.parametrize(("revision", "commit"), [("old", OLD), (OLD, OLD), ("main", MAIN), (None, MAIN)])
def test_an_adapter_says_which_revision_of_its_base(hub, tmp_path, revision, commit):
    adapter = adapter_of(tmp_path / "adapter", hub / OLD, base_model_name_or_path="owner/base", revision=revision)
    loaded, expected = (load_model(folder, "float32", "auto").state_dict() for folder in (adapter, hub / commit))
    torch.testing.assert_close(loaded, expected, rtol=0, atol=0)


def test_a_revision_of_a_folder_means_nothing_and_one_that_is_not_there_is_named(hub, tmp_path):
    adapter = adapter_of(tmp_path / "local", hub / OLD, base_model_name_or_path=str(hub / OLD), revision="main")
    assert adapter_base(adapter).folder == (hub / OLD).resolve()
    adapter = adapter_of(tmp_path / "gone", hub / OLD, base_model_name_or_path="owner/base", revision="gone")
    with pytest.raises(ConfigError, match=r"base of the adapter .*owner/base .*revision gone"):
        load_model(adapter, "float32", "auto")


def test_an_adapter_without_a_base_is_refused(hub, tmp_path):
    adapter = adapter_of(tmp_path / "adapter", hub / OLD, base_model_name_or_path=None)
    with pytest.raises(ConfigError, match="names no base model"):
        load_model(adapter, "float32", "auto")
