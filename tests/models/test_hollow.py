"""A model without its weights, and its weights out of the files: together what loading gives, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import MergeModulelist

from raydpo.errors import ConfigError
from raydpo.models import slices
from raydpo.models.hollow import HollowModel, WholeNeeded, hollow_model
from raydpo.models.lora import add_lora
from raydpo.models.pretrained import load_model
from raydpo.models.slices import SliceReader, not_finite, places_in, refuse_not_finite
from tests.models.test_attention import FAMILIES
from tests.models.test_layout import OTHERS, model_of


def filled(hollow: HollowModel) -> torch.nn.Module:
    """The hollow model with all its weights."""
    for parameter in hollow.model.parameters():
        parameter.data = hollow.reader.whole(hollow.places[id(parameter)], parameter.dtype)
    return hollow.model


def assert_equal_models(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    for kind in ("named_parameters", "named_buffers"):
        mine, expected = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert mine.keys() == expected.keys()
        for name, tensor in expected.items():
            assert mine[name].dtype == tensor.dtype, name
            assert torch.equal(mine[name], tensor), name
    assert ours.config.to_dict() == theirs.config.to_dict()
    unset = (None, False)  # what a folder without generation_config.json says of a switch
    generation, expected = (each.generation_config.to_dict() for each in (ours, theirs))
    assert {name for name in expected if generation[name] != expected[name]} <= {
        name for name in expected if generation[name] in unset and expected[name] in unset
    }
    assert type(ours) is type(theirs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", sorted({**FAMILIES, **OTHERS}))
def test_a_hollow_model_with_its_weights_is_the_loaded_one(family, dtype, tmp_path):
    model_of(family).save_pretrained(tmp_path)
    hollow = hollow_model(tmp_path, dtype, "auto")
    assert all(parameter.untyped_storage().nbytes() <= 4 for parameter in hollow.model.parameters())
    theirs = load_model(tmp_path, dtype, "auto")
    assert_equal_models(filled(hollow), theirs)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64], ids=["fp16", "bf16", "fp64"])
def test_weights_are_cast_as_loading_casts_them(stored, tmp_path):
    model_of("llama", stored).save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16"):
        assert_equal_models(filled(hollow_model(tmp_path, dtype, "auto")), load_model(tmp_path, dtype, "auto"))


def test_a_checkpoint_in_several_files_and_one_of_the_body_alone(tmp_path):
    model_of("llama").save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    model_of("qwen2").model.save_pretrained(tmp_path / "body")  # tied, so that nothing is missing; names lack "model."
    described = json.loads((tmp_path / "body/config.json").read_text()) | {"architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "body/config.json").write_text(json.dumps(described))
    for name in ("parts", "body"):
        ours = filled(hollow_model(tmp_path / name, "float32", "auto"))
        assert_equal_models(ours, load_model(tmp_path / name, "float32", "auto"))


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors") | {name.replace("__", "."): new for name, new in changes.items()}
    left = {name: weight for name, weight in weights.items() if weight is not None}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_head_in_the_files_of_a_tied_model_needs_a_look_at_both(tmp_path):
    model = model_of("qwen2")
    model.save_pretrained(tmp_path)
    rewrite(tmp_path, lm_head__weight=model.lm_head.weight.detach() + 1)
    with pytest.raises(WholeNeeded, match=r"lm_head\.weight .* one matrix"):
        hollow_model(tmp_path, "float32", "auto")


def test_what_loading_would_refuse_is_left_to_it(tmp_path):
    model_of("llama").save_pretrained(tmp_path)
    rewrite(tmp_path, model__norm__weight=None)
    with pytest.raises(WholeNeeded, match=r"lack model\.norm\.weight"):
        hollow_model(tmp_path, "float32", "auto")
    (tmp_path / "model.safetensors").write_bytes(b"no head")
    with pytest.raises(WholeNeeded, match="holds no safetensors that can be read in parts"):
        hollow_model(tmp_path, "float32", "auto")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_that_are_stacked_on_loading_are_read_out_of_many_tensors(family, dtype, tmp_path):
    mixture(family).save_pretrained(tmp_path)
    stored = {name: place for name, place in places_in(tmp_path).items() if ".experts." in name}
    assert len(stored) == 2 * 3 * 3  # layers, experts, matrices of an expert
    hollow = hollow_model(tmp_path, dtype, "auto")
    assert_equal_models(filled(hollow), load_model(tmp_path, dtype, "auto"))


def test_a_weight_that_is_computed_out_of_others_is_read_whole(tmp_path, monkeypatch):
    mixture("mixtral").save_pretrained(tmp_path)
    honest = MergeModulelist.convert

    def doubled(self: MergeModulelist, *args: Any, **options: Any) -> dict[str, torch.Tensor]:
        return {name: tensor * 2 for name, tensor in honest(self, *args, **options).items()}

    monkeypatch.setattr(MergeModulelist, "convert", doubled)
    with pytest.raises(WholeNeeded, match=r"transformers computes .*experts"):
        hollow_model(tmp_path, "float32", "auto")


def mixture(family: str) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = (
        {"num_local_experts": 3}
        if family == "mixtral"
        else {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    )
    config = AutoConfig.for_model(family, **shape, **experts, num_key_value_heads=2, vocab_size=61, head_dim=8)
    return AutoModelForCausalLM.from_config(config)


def test_modules_that_an_adapter_trains_whole_have_the_place_of_what_they_copy(tmp_path):
    model_of("llama").save_pretrained(tmp_path)
    hollow = hollow_model(tmp_path, "float32", "auto")
    settings = {"rank": 2, "alpha": 4, "target_modules": "all-linear", "seed": 0, "modules_to_save": ("lm_head",)}
    adapted = add_lora(hollow.model, **settings)
    places = hollow.places_of(adapted)
    named = dict(adapted.named_parameters())
    (copy,) = (name for name in named if "modules_to_save" in name)
    assert places[id(named[copy])].name == "lm_head.weight"
    assert {name for name, parameter in named.items() if id(parameter) not in places} == {
        name for name in named if "lora_" in name
    }


def test_ranges_are_read_alone_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "BLOCK_ELEMENTS", 7)
    weight = torch.arange(50, dtype=torch.float32).reshape(5, 10)
    save_file({"a": torch.ones(3), "b": weight.bfloat16(), "c": torch.zeros(2)}, tmp_path / "model.safetensors")
    place = places_in(tmp_path)["b"]
    reader = SliceReader()
    for first in (0, 17, 34):
        out = torch.empty(min(17, 50 - first))
        reader.read(place, first, out)
        assert torch.equal(out, weight.flatten()[first : first + 17])
    assert reader.bytes_read == 50 * 2
    assert reader.not_finite == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3.4e38], ids=["nan", "inf", "beyond bf16"])
def test_weights_that_are_not_finite_are_found_where_they_are_read(bad, tmp_path):
    weight = torch.zeros(20)
    weight[13] = bad
    save_file({"b": weight}, tmp_path / "model.safetensors")
    place = places_in(tmp_path)["b"]
    here, elsewhere = SliceReader(), SliceReader()
    here.read(place, 10, torch.empty(10, dtype=torch.bfloat16))
    elsewhere.read(place, 0, torch.empty(10, dtype=torch.bfloat16))
    assert (here.not_finite, elsewhere.not_finite) == (["b"], [])
    assert "b hold NaN or infinity" in str(not_finite(here.not_finite))
    layer = torch.nn.Linear(4, 5, bias=False)
    layer.weight.data = weight.bfloat16().view(5, 4)
    with pytest.raises(ConfigError, match="weight hold NaN or infinity"):
        refuse_not_finite(layer)


def test_a_file_that_ends_early_is_named(tmp_path):
    save_file({"b": torch.zeros(20)}, tmp_path / "model.safetensors")
    place = places_in(tmp_path)["b"]
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(ConfigError, match="ends before b does"):
        SliceReader().whole(place, torch.float32)
