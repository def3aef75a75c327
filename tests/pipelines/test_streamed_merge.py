"""A merge matrix by matrix writes the folder that a merge of the whole model writes, and holds one matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, get_peft_model
from peft.tuners.lora import Linear
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydpo.errors import ConfigError
from raydpo.models import merging, pretrained
from raydpo.models.blend import tensor_files
from raydpo.models.hollow import WholeNeeded
from raydpo.models.merging import write_merged
from raydpo.models.resolve import ResolvedModel
from raydpo.models.streamed_merge import stream_merged
from raydpo.pipelines import train
from raydpo.reference.held import hold
from tests.adapter_kinds import KINDS, LINEAR, Kind, Made, make_adapter, make_base
from tests.pipelines.toy import Notes, Toy, config

EMBEDDED = {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "v_proj", "lm_head"]}
STREAMED = {
    **{name: KINDS[name] for name in ("lora", "rslora", "dora")},
    "embedding": Kind("llama", EMBEDDED),
    "turned": Kind("gpt2", {**LINEAR, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "tied, unchanged": Kind("qwen2", LINEAR),
}


def adapter(toy: Toy, folder: Path, kind: Kind) -> tuple[Made, ResolvedModel]:
    base = make_base(folder / "base", kind.family, toy.model)
    made = make_adapter(folder, kind, base, str(base))
    if kind is STREAMED["embedding"]:  # PEFT saves what it adapts there as well
        path = made.folder / "adapter_model.safetensors"
        save_file({name: value for name, value in load_file(path).items() if "lora_" in name}, path)
    return made, ResolvedModel(str(made.folder), None, made.folder, ResolvedModel(str(base), None, base))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: load_file(path)[name] for name, path in tensor_files(folder).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STREAMED)
def test_the_folder_is_that_of_a_whole_merge(
    toy: Toy, tmp_path: Path, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, found = adapter(toy, tmp_path, STREAMED[name])
    write_merged(found, tmp_path / "whole", dtype)
    monkeypatch.setattr(pretrained, "load_model", None)
    write_merged(found, tmp_path / "streamed", dtype, 10_000)
    ours, theirs, base = (tensors(folder) for folder in (tmp_path / "streamed", tmp_path / "whole", made.base))
    assert len(set(tensor_files(tmp_path / "streamed").values())) > 2
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], value) and ours[key].dtype == value.dtype for key, value in theirs.items())
    assert any(
        not torch.equal(ours[key].float(), value.to(getattr(torch, dtype)).float()) for key, value in base.items()
    )
    for path in (tmp_path / "whole").iterdir():
        if path.suffix != ".safetensors":
            assert (tmp_path / "streamed" / path.name).read_bytes() == path.read_bytes(), path.name
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        said = [
            AutoModelForCausalLM.from_pretrained(tmp_path / side, dtype="auto")(ids).logits.log_softmax(-1)
            for side in ("streamed", "whole")
        ]
    assert torch.equal(*said)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", STREAMED)
@torch.no_grad()
def test_layers_that_are_merged_while_they_are_read_say_what_a_whole_merge_says(
    toy: Toy, tmp_path: Path, name: str, dtype: str
) -> None:
    """In every pass again: what was added in the one before is not there, in memory or in the mapped files."""
    made, found = adapter(toy, tmp_path, STREAMED[name])
    before = (made.base / "model.safetensors").read_bytes()
    whole, held = pretrained.load_model(found, dtype, "auto"), hold(found, dtype, "auto", "streamed", 1, "cpu")
    assert held.stream is not None
    ids = torch.arange(3, 20)[None]
    expected = whole(ids, use_cache=False).logits
    for _ in range(3):
        (said,) = held.together([lambda: held.model(ids, use_cache=False).logits])
        assert said.dtype == expected.dtype == getattr(torch, dtype)
        assert torch.equal(said, expected)
    base = pretrained.load_model(made.base, dtype, "auto")(ids, use_cache=False).logits
    assert float((base - expected).abs().max()) > 1e-2
    assert {name: (t.dtype, t.shape) for name, t in held.model.state_dict().items() if not t.is_meta}.items() <= {
        name: (t.dtype, t.shape) for name, t in whole.state_dict().items()
    }.items()
    weights = held.stream.weights
    layers = sum(map(weights.layer_bytes, range(len(weights.layers))))
    assert held.has_read == (3, weights.stays_bytes + 3 * layers)
    assert (made.base / "model.safetensors").read_bytes() == before


def test_one_matrix_is_there_at_a_time(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = adapter(toy, tmp_path, KINDS["lora"])
    whole = []
    honest = Linear.merge

    def counted(self: Any, *args: Any, **settings: Any) -> None:
        layers = [module.get_base_layer().weight for module in model[0].modules() if isinstance(module, Linear)]
        whole.append(sum(weight.untyped_storage().nbytes() > 4 for weight in layers))
        honest(self, *args, **settings)

    model: list[Any] = []
    beside = merging.with_adapter
    monkeypatch.setattr(Linear, "merge", counted)
    monkeypatch.setattr(
        "raydpo.models.streamed_merge.with_adapter", lambda *args: model.append(beside(*args)) or model[0]
    )
    stream = stream_merged(found, tmp_path / "out", "bfloat16", 10_000)
    assert whole == [1] * 14
    assert stream.most_bytes_held <= 2 * max(tensor.nbytes for tensor in tensors(tmp_path / "out").values())


@pytest.mark.parametrize("name", ["modules_to_save", "resized", "tied head", "experts"])
def test_what_takes_a_whole_model_is_left_to_it(toy: Toy, tmp_path: Path, name: str) -> None:
    _, found = adapter(toy, tmp_path, KINDS[name])
    with pytest.raises(WholeNeeded):
        stream_merged(found, tmp_path / "out", "float32", 10_000)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_kind_takes_a_whole_model(toy: Toy, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", toy.model)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    get_peft_model(model, LoHaConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    found = ResolvedModel("a", None, tmp_path / "adapter", ResolvedModel("b", None, base))
    with pytest.raises(WholeNeeded, match=r"brings .*hada"):
        stream_merged(found, tmp_path / "out", "float32", 10_000)


def test_a_merge_that_says_something_else_is_refused(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PEFT whose merge leaves the scale out, as bugs of its versions did."""
    honest = Linear.merge

    def halved(self: Any, *args: Any, **settings: Any) -> None:
        self.scaling = {name: scale / 2 for name, scale in self.scaling.items()}
        honest(self, *args, **settings)

    monkeypatch.setattr(Linear, "merge", halved)
    _, found = adapter(toy, tmp_path, KINDS["lora"])
    with pytest.raises(ConfigError, match="cannot be used as a model: a merged layer gives outputs that are"):
        stream_merged(found, tmp_path / "out", "float32", 10_000)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [None, {"rank": 2, "merge": True}], ids=["full", "lora"])
def test_a_run_whose_models_are_larger_than_a_file(toy: Toy, machine: None, tmp_path: Path, lora: object) -> None:
    """Trained, proven, resumed and evaluated from shards, with a reference that is made of them: the numbers of one file."""
    moving = {} if lora else {"reference.sync_every": 1, "reference.sync_alpha": 0.5}
    changes = {"train.max_steps": 2, "train.learning_rate": 1e-2, "train.save_every": 1, "train.lora": lora, **moving}
    one_file = train(config(toy, tmp_path / "one", changes))
    notes = Notes()
    found = train(config(toy, tmp_path / "many", {**changes, "train.max_shard_size": "20KB"}), notes)
    assert found["eval"] == one_file["eval"]
    name = "model_merged" if lora else "model"
    ours, theirs = (tensors(tmp_path / run / name) for run in ("many", "one"))
    assert len(set(tensor_files(tmp_path / "many" / name).values())) > 2
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    assert [text for text in notes.info if text.startswith(f"{name}/ was loaded again and says what was trained")]
    if moving:
        means = (tensors(tmp_path / run / "references/step-000001") for run in ("many", "one"))
        assert all(
            torch.equal(*pair) for pair in zip(*(dict(sorted(mean.items())).values() for mean in means), strict=True)
        )
