"""Loading a model folder: whole, or not at all."""

import json

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from raydpo.errors import ConfigError
from raydpo.models.lora import add_lora, check_lora
from raydpo.models.merging import merge_lora
from raydpo.models.pretrained import load_model
from raydpo.models.resolve import adapter_base
from raydpo.quickstart.bpe import train_bpe
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


@pytest.mark.parametrize(
    "targets", [["lm_head"], ["q_proj", "embed_tokens"], ".*(q_proj|lm_head)", ["lm_head", "embed_tokens"]]
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_adapter_of_others_on_a_tied_matrix_is_merged_into_what_it_was(family, targets, tmp_path):
    """Trained elsewhere, where nothing refuses it: merged it must give the log-probs that it gives beside its base."""
    tied_model(family).save_pretrained(tmp_path / "base")
    train_bpe(["a few words"], 280).save_pretrained(tmp_path / "base")
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM")
    adapted = get_peft_model(load_model(tmp_path / "base", "float32", "auto"), settings)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_lora(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged", "float32")
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        expected = adapted(ids).logits.log_softmax(-1)
        for folder in ("adapter", "merged"):
            found = load_model(tmp_path / folder, "float32", "auto")(ids).logits.log_softmax(-1)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        base = load_model(tmp_path / "base", "float32", "auto")(ids).logits.log_softmax(-1)
    assert (expected - base).abs().max() > 0.1


def tied_model(family, *, tied=True):
    model = model_of(family)
    config = type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": tied})
    return type(model)(config)


TIED = [
    ("lm_head",),
    ("q_proj", "lm_head"),
    ("embed_tokens",),
    r".*(q_proj|lm_head)",
    r"model\.embed_.*",
    ("model.embed_tokens",),
]


@pytest.mark.parametrize("targets", TIED)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_tied_matrix_is_not_adapted(family, targets, tmp_path):
    tied_model(family).save_pretrained(tmp_path)
    words = (
        r"train\.lora\.target_modules: .* (lm_head is one matrix with model\.embed|model\.embed_tokens is one matrix)"
    )
    with pytest.raises(ConfigError, match=words):
        check_lora(tmp_path, rank=2, alpha=4, target_modules=targets)
    with pytest.raises(ConfigError, match=words):
        add_lora(load_model(tmp_path, "float32", "auto"), rank=2, alpha=4, target_modules=targets, seed=0)
    check_lora(tmp_path, rank=2, alpha=4, target_modules="all-linear")
    check_lora(tmp_path, rank=2, alpha=4, target_modules=("q_proj",))


@pytest.mark.parametrize("targets", TIED)
def test_the_same_modules_of_an_untied_model_are(targets, tmp_path):
    tied_model("llama", tied=False).save_pretrained(tmp_path)
    check_lora(tmp_path, rank=2, alpha=4, target_modules=targets)


def test_names_that_fit_no_module_are_refused_without_weights(tmp_path):
    tied_model("llama").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    with pytest.raises(ConfigError, match="fits no module"):
        check_lora(tmp_path, rank=2, alpha=4, target_modules=("no_such",))
    assert torch.equal(torch.random.get_rng_state(), state)
