"""QLoRA: a run on a base that is packed in 4 bits, from its start to what is exported; and who says no to it.

Decision: pairs and tokenizer are the toy's, the model is a llama whose opinions 4 bits change by far more than rounding.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from raydpo.errors import ConfigError, ResumeError
from raydpo.models import four_bit
from raydpo.models.four_bit import FourBit
from raydpo.models.pretrained import load_model
from raydpo.models.resolve import resolve_model
from raydpo.pipelines import check, evaluate, precompute, train
from raydpo.reference import way
from raydpo.rundir.resume import differences
from raydpo.rundir.workspace import find_workspace
from tests.adapter_kinds import KINDS, make_adapter, make_base, packed
from tests.pipelines.pushed import Pushed
from tests.pipelines.toy import Notes, Toy, config_with_cache

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("machine")]
config = partial(config_with_cache, "packed")
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("packed") / "base", "llama", toy.model)


def changes(base: Path, **lora: Any) -> dict[str, Any]:
    settings = {"rank": 4, "alpha": 8, "quantize_base": "nf4", "merge": True, **lora}
    return {"model.path": str(base), "train.lora": settings, "train.max_steps": 2, "train.learning_rate": 1e-2}


@torch.no_grad()
def nats(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.double().log_softmax(-1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_on_a_packed_base_is_one_model_from_its_start_to_its_exports(
    toy: Toy, base: Path, tmp_path: Path, dtype: str
) -> None:
    """Step 0 is ln 2 with a reference of the same packed model; the loss falls; model/, model_merged/ and what is pushed say
    what was trained; an evaluation of the export does, too; and a resume gives the same bits."""
    wanted = config(toy, tmp_path / "run", {**changes(base), "model.dtype": dtype})
    pushed, notes = Pushed(), Notes()
    summary = train(wanted, notes, receive=pushed)
    first, last = summary["eval"]["first"], summary["eval"]["last"]
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6 if dtype == "float32" else 1e-2)
    assert last["eval/loss"] < math.log(2) - 1e-2
    assert summary["train"]["probe"]["max_difference_nats"] < (1e-4 if dtype == "float32" else 0.3)
    assert [text for text in notes.info if "weights are packed in 4 bits (nf4)" in text]
    worst = {name: proof["max_difference_nats"] for name, proof in summary["train"]["exports"].items()}
    assert worst.keys() == {"model", "model_merged"}
    assert max(worst.values()) < (1e-4 if dtype == "float32" else 0.5)

    folder = tmp_path / "run/model"
    described = json.loads((folder / "base_quantization.json").read_text())
    assert (described["bnb_4bit_quant_type"], described["bnb_4bit_compute_dtype"]) == ("nf4", dtype)
    assert described["llm_int8_skip_modules"] == ["lm_head"]
    start = load_file(base / "model.safetensors")
    merged = load_file(tmp_path / "run/model_merged/model.safetensors")
    assert torch.equal(
        merged["lm_head.weight"].float(), start["lm_head.weight"].to(merged["lm_head.weight"].dtype).float()
    )
    assert "quantization_config" not in json.loads((tmp_path / "run/model_merged/config.json").read_text())
    for key, value in pushed.items():
        torch.testing.assert_close(value, merged[key], rtol=0, atol=1e-6)
    assert len(pushed) == 14
    evaluated = evaluate(wanted)["eval"]["last"]
    assert evaluated["eval/loss"] == pytest.approx(last["eval/loss"], abs=1e-5 if dtype == "float32" else 2e-2)

    if dtype == "float32":
        beside = PeftModel.from_pretrained(packed(base, FourBit("float32", ("lm_head",))), folder)
        for ours in (folder, tmp_path / "run/model_merged"):
            torch.testing.assert_close(nats(load_model(ours, "float32", "auto")), nats(beside), rtol=0, atol=1e-5)
        plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        assert (nats(plain) - nats(beside)).abs().max() > 0.1, "the base that is not packed is another model"
    whole = (folder / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints/step-000002")
    assert train(wanted)["train"]["resumed_from_step"] == 1
    assert (folder / "adapter_model.safetensors").read_bytes() == whole


def test_values_of_a_packed_and_a_plain_base_never_share_a_cache(toy: Toy, base: Path, tmp_path: Path) -> None:
    own = {"reference.cache_dir": str(tmp_path / "cache")}
    settings = changes(base)
    packed_base = config(toy, tmp_path / "packed", {**settings, **own})
    plain = config(toy, tmp_path / "plain", {**settings, **own, "train.lora": {"rank": 4}})
    full = config(toy, tmp_path / "full", {**settings, **own, "train.lora": None})
    copies = {**settings["train.lora"], "modules_to_save": ["layers.1.mlp"]}
    kept = config(toy, tmp_path / "kept", {**settings, **own, "train.lora": copies})
    identities = [find_workspace(each, "train").identity for each in (packed_base, plain, full, kept)]
    assert identities[1] == identities[2]
    assert len({found.digest for found in identities if found is not None}) == 3
    assert all(find_workspace(each, "train").starts_at_reference for each in (packed_base, plain, kept))
    rows = precompute(plain)["reference"]["rows_scored"]
    assert rows > 0
    assert precompute(packed_base)["reference"]["rows_scored"] == rows
    assert precompute(packed_base)["reference"]["rows_scored"] == 0


def test_packing_a_model_in_memory_and_its_folder_on_loading_give_the_same_bits(
    toy: Toy, base: Path, tmp_path: Path
) -> None:
    """An adapter that a run starts from is merged, then packed: by reference workers in memory, by trainers from a folder."""
    made = make_adapter(tmp_path, KINDS["lora"], base, str(base))
    packing = find_workspace(config(toy, tmp_path / "run", changes(made.folder)), "train").model.four_bit
    found = resolve_model("model.path", str(made.folder))
    in_memory = load_model(type(found)(found.name, None, found.folder, found.base, packing), "float32", "auto")
    load_model(found, "float32", "auto").save_pretrained(tmp_path / "merged")
    plain = tmp_path / "merged"
    from_folder = load_model(type(found)(str(plain), None, plain, None, packing), "float32", "auto")
    theirs = from_folder.state_dict()
    ours = in_memory.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert torch.equal(nats(in_memory), nats(from_folder))
    assert np.abs((nats(in_memory) - made.nats(IDS)).numpy()).max() > 0.05
    summary = train(config(toy, tmp_path / "run", changes(made.folder)))
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["train"]["probe"]["max_difference_nats"] < 1e-4


def test_a_run_does_not_go_on_with_its_base_packed_otherwise(toy: Toy, base: Path, tmp_path: Path) -> None:
    settings = {**changes(base), "train.max_steps": 1}
    train(config(toy, tmp_path / "run", {**settings, "train.lora": {"rank": 4, "alpha": 8}}))
    with pytest.raises(ResumeError, match=r"train\.lora: .*'quantize_base': 'none'.*'nf4'(.|\n)*model weights: "):
        train(
            config(toy, tmp_path / "run", {**settings, "train.lora": {"rank": 4, "alpha": 8, "quantize_base": "nf4"}})
        )
    before = {"train.lora": {"rank": 4}}  # as a version wrote it that knew of no packed bases
    assert differences(before, {"train.lora": {"rank": 4, "quantize_base": "none"}}) == []
    assert len(differences(before, {"train.lora": {"rank": 4, "quantize_base": "nf4"}})) == 1


REFUSED = {
    "zero 3": ({"train.zero_stage": 3}, r"lora\.quantize_base: nf4 with zero_stage: 3.*Use zero_stage: 0, 1 or 2"),
    "another packing": ({"train.lora": {"quantize_base": "fp4"}}, "quantize_base"),
    "full": ({"train.lora": None, "train.quantize_base": "nf4"}, "quantize_base"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_config_alone_says_is_refused(toy: Toy, base: Path, tmp_path: Path, name: str) -> None:
    more, words = REFUSED[name]
    with pytest.raises((ConfigError, ValidationError), match=words):
        config(toy, tmp_path / "run", {**changes(base), **more})


def test_a_packed_reference_is_never_streamed(
    toy: Toy, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers that are read one by one are not packed: their values would be those of the plain base."""
    with pytest.raises(ConfigError, match=r"reference\.weights: streamed with train\.lora\.quantize_base: nf4"):
        check(config(toy, tmp_path / "run", {**changes(base), "reference.weights": "streamed"}))
    model = find_workspace(config(toy, tmp_path / "run", changes(base)), "train").reference
    monkeypatch.setattr(way, "free_bytes", lambda device: 1)
    monkeypatch.setattr(way, "MAY_STREAM_BYTES", 1)
    assert way.choose_way("auto", replace(model, four_bit=None), "float32", "cpu").is_streamed
    assert way.may_stream("auto", replace(model, four_bit=None), "float32")
    assert not way.choose_way("auto", model, "float32", "cpu").is_streamed
    assert not way.may_stream("auto", model, "float32")
    with pytest.raises(ConfigError, match="packed into 4 bits when it is loaded"):
        way.choose_way("streamed", model, "float32", "cpu")


def test_rounds_are_refused(toy: Toy, base: Path, tmp_path: Path) -> None:
    rounds = {"rounds.prompts": [str(toy.train)], "rounds.reference": "initial"}
    with pytest.raises(ConfigError, match=r"quantize_base: nf4 with rounds: .*without a gradient"):
        check(config(toy, tmp_path / "run", {**changes(base), **rounds}))


def test_a_machine_without_bitsandbytes_says_what_to_install(
    toy: Toy, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    asked = config(toy, tmp_path / "run", changes(base))
    notes = Notes()
    check(asked, notes)
    assert [text for text in notes.info if "linear layers but the head are packed in 4 bits" in text]
    monkeypatch.setattr(four_bit, "version", none)
    with pytest.raises(ConfigError, match=r"quantize_base: nf4 needs bitsandbytes, .*pip install .*\[qlora\]"):
        check(asked)
    monkeypatch.setattr(four_bit, "version", lambda name: "0.46.1")
    with pytest.raises(ConfigError, match=r"bitsandbytes 0\.50 or newer, and 0\.46\.1 is installed"):
        check(asked)


def test_experts_in_one_tensor_are_refused_before_anything_is_scored(toy: Toy, tmp_path: Path) -> None:
    mixtral = make_base(tmp_path / "base", "mixtral", toy.model)
    with pytest.raises(ConfigError, match="experts of MixtralForCausalLM stand in one tensor"):
        train(config(toy, tmp_path / "run", {**changes(mixtral), "reference.cache_dir": str(tmp_path / "cache")}))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "damage", [{"bnb_4bit_quant_type": "fp4"}, {"bnb_4bit_compute_dtype": "float16"}, {"load_in_8bit": True}], ids=str
)
def test_an_adapter_whose_base_was_packed_otherwise_is_refused(
    toy: Toy, base: Path, tmp_path: Path, damage: dict[str, Any]
) -> None:
    made = make_adapter(tmp_path, KINDS["lora"], base, str(base))
    FourBit("float32", ("lm_head",)).write(made.folder)
    resolve_model("model.path", str(made.folder))
    path = made.folder / "base_quantization.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(ConfigError, match="asks for another base than nf4"):
        resolve_model("model.path", str(made.folder))
    path.write_text("[")
    with pytest.raises(ConfigError, match=r"base_quantization\.json cannot be read"):
        resolve_model("model.path", str(made.folder))


KINDS_TRAINED = {
    "dora": ("llama", {"dora": True}),
    "rslora": ("llama", {"rslora": True, "init": "gaussian"}),
    "modules_to_save": ("llama", {"modules_to_save": ["embed_tokens", "lm_head", "layers.1.mlp"]}),
    "head": ("llama", {"target_modules": ["lm_head", "q_proj", "embed_tokens"]}),
    "tied": ("qwen2", {}),
    "turned matrices": ("gpt2", {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS_TRAINED)
def test_every_kind_of_adapter_on_a_packed_base_is_exported_as_it_was_trained(
    toy: Toy, tmp_path: Path, name: str
) -> None:
    family, lora = KINDS_TRAINED[name]
    own = make_base(tmp_path / "base", family, toy.model)
    pushed = Pushed()
    summary = train(config(toy, tmp_path / "run", changes(own, **lora)), receive=pushed)
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["eval"]["last"]["eval/loss"] < math.log(2) - 1e-2
    exports = summary["train"]["exports"]
    assert max(exports[folder]["max_difference_nats"] for folder in ("model", "model_merged")) < 1e-4
    merged = load_model(tmp_path / "run/model_merged", "float32", "auto").state_dict()
    start = load_model(own, "float32", "auto").state_dict()
    assert {key for key, value in merged.items() if not torch.equal(value, start[key])} <= pushed.keys()
    for key, value in pushed.items():
        torch.testing.assert_close(value, merged[key], rtol=0, atol=1e-6)
