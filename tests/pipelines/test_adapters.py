"""A PEFT adapter is a model like any other: eight kinds are trained on, measured from, evaluated and exported."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from peft import LoraModel, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydpo.artifacts import ExampleTable
from raydpo.errors import ConfigError, IntegrityError
from raydpo.models.agreement import tolerance_nats
from raydpo.models.merging import merge_adapter, write_merged
from raydpo.models.pretrained import load_model
from raydpo.models.resolve import resolve_model
from raydpo.pipelines import check, evaluate, precompute, train
from raydpo.rundir.workspace import find_workspace
from raydpo.train import trainer
from raydpo.train.export import write_model
from tests.adapter_kinds import KINDS, Kind, Made, make_adapter, make_base
from tests.pipelines.pushed import Pushed
from tests.pipelines.toy import Notes, Toy, config_with_cache

pytestmark = pytest.mark.filterwarnings("ignore")
COMMIT = "c" * 40
STEPS = {"train.max_steps": 2, "train.learning_rate": 1e-2}

config = partial(config_with_cache, "adapters")


@pytest.fixture(scope="module")
def made(toy: Toy, machine: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """The adapters by kind; a base per family."""
    root = tmp_path_factory.mktemp("adapters")
    found = {}
    for name, kind in KINDS.items():
        base = root / kind.family
        if not base.exists():
            make_base(base, kind.family, toy.model)
        if kind.on_hub:
            repo = root / "hub/models--owner--base"
            shutil.copytree(base, repo / "snapshots" / COMMIT)
            make_base(repo / "snapshots" / ("d" * 40), kind.family, toy.model, seed=5)
            (repo / "refs").mkdir()
            (repo / "refs/main").write_text("d" * 40)
            (repo / "refs/tagged").write_text(COMMIT)
            found[name] = make_adapter(root / name, kind, base, "owner/base", "tagged")
        else:
            found[name] = make_adapter(root / name, kind, base, str(base))
    return found


@pytest.fixture(autouse=True)
def hub(made: dict[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub cache that the base of one of them lies in; nothing is asked of the network."""
    root = made["revision"].folder.parent.parent
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_loads_as_what_it_is_beside_its_base(made: dict[str, Made], name: str) -> None:
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found = load_model(made[name].folder, "float32", "auto")(input_ids=ids).logits.double().log_softmax(-1)
        base = load_model(made[name].base, "float32", "auto")(input_ids=ids).logits.double().log_softmax(-1)
    torch.testing.assert_close(found, made[name].nats(ids), rtol=0, atol=1e-5)
    assert (found[..., : base.shape[-1]] - base).abs().max() > 0.1


@pytest.mark.parametrize("name", KINDS)
def test_in_bfloat16_it_is_merged_in_float32_and_rounded_once(made: dict[str, Made], name: str, tmp_path: Path) -> None:
    """In memory and in a folder the same bits. Beside its base every product is rounded instead: the two are apart by what
    bfloat16 can say, within the bound that the proof of an export has."""
    found = load_model(made[name].folder, "bfloat16", "auto")
    write_merged(resolve_model("model.path", str(made[name].folder)), tmp_path / "merged", "bfloat16")
    plain = load_model(tmp_path / "merged", "bfloat16", "auto")
    state = plain.state_dict()
    assert state.keys() == found.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in found.state_dict().items())
    exact = load_model(made[name].folder, "float32", "auto")
    for key, value in exact.named_parameters():
        assert torch.equal(value.to(torch.bfloat16), state[key]), key
    torch.testing.assert_close(dict(plain.named_buffers()), dict(found.named_buffers()), rtol=0, atol=0)
    if not KINDS[name].new_tokens and not KINDS[name].four_bit:  # PEFT alone loads them otherwise
        ids = torch.randint(3, 270, (8, 48), generator=torch.Generator().manual_seed(0))
        ours, beside = (answer_nats(model, ids) for model in (found, nothing_merged(made[name])))
        allowed = tolerance_nats("bfloat16", beside.sum(axis=1))
        assert (np.abs(ours.sum(axis=1) - beside.sum(axis=1)) <= allowed).all()
        assert np.abs(ours - beside).mean() < 0.02


@torch.no_grad()
def answer_nats(model: Any, ids: torch.Tensor) -> np.ndarray:
    """Log-probs of every token but the first: [rows, tokens - 1]."""
    logits = model(input_ids=ids).logits[:, :-1].float().log_softmax(-1)
    return logits.gather(2, ids[:, 1:, None])[..., 0].double().numpy()


def nothing_merged(made: Made) -> Any:
    """The adapter beside its base in bfloat16, by PEFT alone."""
    base = AutoModelForCausalLM.from_pretrained(made.base, dtype=torch.bfloat16)
    return PeftModel.from_pretrained(base, made.folder, autocast_adapter_dtype=False).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_training_on_an_adapter_starts_at_it_and_goes_on_from_a_checkpoint(
    toy: Toy, made: dict[str, Made], name: str, tmp_path: Path
) -> None:
    wanted = config(toy, tmp_path / "run", {**STEPS, "model.path": str(made[name].folder)})
    assert check(wanted)["plan"]["steps"] == 2
    summary = train(wanted)
    first = summary["eval"]["first"]
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(first["eval/logps/chosen"] - expected_chosen(tmp_path / "run/data", made[name])) < 1e-3
    assert summary["eval"]["last"]["eval/loss"] < math.log(2) - 1e-3
    whole = load_file(tmp_path / "run/model/model.safetensors")
    assert next(iter(whole.values())).dtype == torch.float32
    for gone in ("checkpoints/step-000002", "model"):
        shutil.rmtree(tmp_path / "run" / gone)
    again = train(wanted)
    assert again["train"]["resumed_from_step"] == 1
    found = load_file(tmp_path / "run/model/model.safetensors")
    assert found.keys() == whole.keys()
    assert all(torch.equal(value, whole[key]) for key, value in found.items())


def expected_chosen(data: Path, made: Made) -> float:
    """Mean log-prob of the chosen held-out answers by the adapter beside its base."""
    table, sums = ExampleTable.open(data, "eval"), []
    for example in range(len(table)):
        prompt, answer = table.prompt_ids(example).tolist(), table.answer_ids(example)[0].tolist()
        nats = made.nats(torch.tensor([[*prompt, *answer]]))[0, len(prompt) - 1 : -1]
        sums.append(float(nats.gather(1, torch.tensor(answer)[:, None]).sum()))
    return sum(sums) / len(sums)


def test_a_resized_embedding_without_the_rows_of_its_head_is_refused(made: dict[str, Made], tmp_path: Path) -> None:
    """PEFT leaves them out when the embedding is adapted and the head is not; they would be drawn at random."""
    kind = Kind("llama", {"r": 2, "target_modules": ["embed_tokens"]}, ("<think>",))
    adapter = make_adapter(tmp_path, kind, made["lora"].base, str(made["lora"].base))
    with pytest.raises(ConfigError, match="no head of as many"):
        load_model(adapter.folder, "float32", "auto")


def test_an_adapter_that_lacks_tensors_is_refused(made: dict[str, Made], tmp_path: Path) -> None:
    folder = shutil.copytree(made["lora"].folder, tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    del weights[next(name for name in weights if "q_proj.lora_B" in name)]
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"is not whole: .*q_proj"):
        load_model(folder, "float32", "auto")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "dora", "resized", "tied head", "experts"])
def test_an_adapter_on_an_adapter_is_exported_with_a_base_that_anybody_loads(
    toy: Toy, made: dict[str, Made], name: str, tmp_path: Path
) -> None:
    lora = {"rank": 2, "alpha": 4, "rslora": True, "merge": True}
    changes = {**STEPS, "model.path": str(made[name].folder), "train.lora": lora}
    wanted, notes = config(toy, tmp_path / "run", changes), Notes()
    summary = train(wanted, notes)
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["eval"]["last"]["eval/loss"] < math.log(2) - 1e-3
    exports = summary["train"]["exports"]
    assert all(exports[folder]["max_difference_nats"] < 1e-4 for folder in ("model", "model_merged"))
    assert [text for text in notes.info if text.startswith("LoRA adapts 8 attention")]
    described = json.loads((tmp_path / "run/model/adapter_config.json").read_text())
    assert Path(described["base_model_name_or_path"]).parent == tmp_path / "run/merged"
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        merged, beside = (
            load_model(tmp_path / "run" / folder, "float32", "auto")(input_ids=ids).logits.log_softmax(-1)
            for folder in ("model_merged", "model")
        )
    torch.testing.assert_close(merged, beside, rtol=0, atol=1e-5)
    evaluated = evaluate(wanted)["eval"]["last"]
    assert evaluated["eval/loss"] == pytest.approx(summary["eval"]["last"]["eval/loss"], abs=1e-5)
    shutil.rmtree(tmp_path / "run/checkpoints/step-000002")
    whole = (tmp_path / "run/model/adapter_model.safetensors").read_bytes()
    assert train(wanted)["train"]["resumed_from_step"] == 1
    assert (tmp_path / "run/model/adapter_model.safetensors").read_bytes() == whole


OWN = {
    "rslora": ("lora", {"rslora": True, "init": "gaussian"}),
    "dora": ("lora", {"dora": True}),
    "modules_to_save": ("lora", {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]}),
    "dora of an embedding": ("lora", {"dora": True, "target_modules": ["embed_tokens", "v_proj"]}),
    "experts": ("experts", {"rslora": True}),
    "no experts": ("experts", {"experts": False}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", OWN)
def test_every_kind_that_a_run_trains_is_exported_as_it_was_trained(
    toy: Toy, made: dict[str, Made], kind: str, tmp_path: Path
) -> None:
    """Reloaded by PEFT, merged, pushed and resumed: one policy."""
    name, lora = OWN[kind]
    changes = {
        **STEPS,
        "model.path": str(made[name].base),
        "train.lora": {"rank": 2, "alpha": 4, "merge": True, **lora},
    }
    wanted, pushed = config(toy, tmp_path / "run", changes), Pushed()
    summary = train(wanted, receive=pushed)
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["eval"]["last"]["eval/loss"] < math.log(2) - 1e-4
    exports = summary["train"]["exports"]
    assert max(exports[folder]["max_difference_nats"] for folder in ("model", "model_merged")) < 1e-4
    merged = load_model(tmp_path / "run/model_merged", "float32", "auto").state_dict()
    start = load_model(made[name].base, "float32", "auto").state_dict()
    assert {key for key, value in merged.items() if not torch.equal(value, start[key])} <= pushed.keys()
    for key, value in pushed.items():
        torch.testing.assert_close(value, merged[key], rtol=0, atol=1e-6)
    whole = (tmp_path / "run/model/adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoints/step-000002")
    assert train(wanted)["train"]["resumed_from_step"] == 1
    assert (tmp_path / "run/model/adapter_model.safetensors").read_bytes() == whole


def test_an_adapter_is_a_reference_and_keeps_its_cache(toy: Toy, made: dict[str, Made], tmp_path: Path) -> None:
    """Measured from the adapter by each verb; the base alone is another reference."""
    changes = {**STEPS, "model.path": str(made["lora"].base), "reference.model": str(made["dora"].folder)}
    wanted = config(toy, tmp_path / "run", {**changes, "reference.cache_dir": str(tmp_path / "cache")})
    assert precompute(wanted)["reference"]["rows_scored"] > 0
    summary = train(wanted)
    assert summary["reference"]["rows_scored"] == 0
    assert abs(summary["eval"]["first"]["eval/rewards/margins"]) > 1e-4
    found = find_workspace(wanted, "train")
    assert found.identity is not None
    assert found.identity.adapter != "none"
    assert found.identity.weights == found.model_digest, "its base is the model that training starts from"
    assert not found.starts_at_reference


def test_an_adapter_names_the_hub_id_and_commit_of_its_base(toy: Toy, made: dict[str, Made], tmp_path: Path) -> None:
    changes = {**STEPS, "model.path": "owner/base", "model.revision": "tagged", "train.lora": {"rank": 2}}
    train(config(toy, tmp_path / "run", changes))
    described = json.loads((tmp_path / "run/model/adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["revision"]) == ("owner/base", COMMIT)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "merge": True}], ids=["full", "lora"])
def test_an_export_that_is_another_model_is_not_published(
    toy: Toy, machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: object
) -> None:
    def negated(model: object, state: dict[str, torch.Tensor], *rest: object) -> None:
        name = next(name for name in state if "q_proj" in name and "lora_A" not in name)
        write_model(model, {**state, name: -state[name]}, *rest)

    monkeypatch.setattr(trainer, "write_model", negated)
    wanted = config(toy, tmp_path / "run", {**STEPS, "train.lora": lora})
    with pytest.raises(IntegrityError, match=r"model/ would be another model .* they differ by"):
        train(wanted)
    assert not list((tmp_path / "run").glob("model*"))
    notes = Notes()
    assert train(config(toy, tmp_path / "run", {**STEPS, "train.lora": lora, "train.verify_export": False}), notes)
    assert [text for text in notes.warning if "verify_export is off" in text]


def test_a_merge_that_says_something_else_is_refused(made: dict[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """A PEFT whose merge leaves the scale out, as bugs of its versions did."""
    merge = LoraModel.merge_and_unload

    def halved(self: LoraModel, *args: Any, **settings: Any) -> Any:
        for module in self.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling = {name: scale / 2 for name, scale in module.scaling.items()}
        return merge(self, *args, **settings)

    monkeypatch.setattr(LoraModel, "merge_and_unload", halved)
    base = load_model(made["lora"].base, "float32", "auto")
    with pytest.raises(ConfigError, match="nats from those that it gives beside its base"):
        merge_adapter(base, made["lora"].folder)
