"""A soup of models: its weights against the mean in torch, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydpo.artifacts import verify_folder
from raydpo.cli import main
from raydpo.models.blend import tensor_files
from raydpo.models.soup import soup
from tests.models.test_blend import model


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: load_file(path)[name] for name, path in tensor_files(folder).items()}


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    return [model(tmp_path / f"m{seed}", seed) for seed in (1, 2, 3)]


def test_is_the_weighted_mean_rounded_once(three: list[Path], tmp_path: Path) -> None:
    soup(three, [1.0, 2.0, 5.0], tmp_path / "soup")
    found, given = weights(tmp_path / "soup"), [weights(folder) for folder in three]
    assert found.keys() == given[0].keys()
    for name, value in found.items():
        mean = sum(each[name].double() * share for each, share in zip(given, (0.125, 0.25, 0.625), strict=True))
        torch.testing.assert_close(value, mean.to(value.dtype), rtol=0, atol=0)
    AutoModelForCausalLM.from_pretrained(tmp_path / "soup")


def test_of_one_model_twice_is_that_model(three: list[Path], tmp_path: Path) -> None:
    soup([three[0], three[0]], [1.0, 1.0], tmp_path / "soup")
    given = weights(three[0])
    assert all(torch.equal(value, given[name]) for name, value in weights(tmp_path / "soup").items())


def test_keeps_the_first_dtype_and_whole_numbers(tmp_path: Path) -> None:
    for number, dtype in (("a", torch.bfloat16), ("b", torch.float32)):
        (tmp_path / number).mkdir()
        tensors = {"w": torch.full((3,), 1.0 if number == "a" else 2.0, dtype=dtype), "n": torch.tensor([len(number)])}
        save_file(tensors, tmp_path / number / "model.safetensors", metadata={"format": "pt"})
    soup([tmp_path / "a", tmp_path / "b"], [1.0, 1.0], tmp_path / "soup")
    found = weights(tmp_path / "soup")
    assert found["w"].dtype == torch.bfloat16
    assert found["w"].tolist() == [1.5] * 3
    assert found["n"].tolist() == [1]


def test_other_shapes_names_and_adapters_are_refused_at_once(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide, deep = model(tmp_path / "wide", 1, hidden_size=32), model(tmp_path / "deep", 1, num_layers=3)
    assert main(["soup", str(three[0]), str(wide), str(deep), "-o", str(tmp_path / "soup")]) == 2
    said = capsys.readouterr().err
    assert "has other shapes than" in said
    assert "tensors are in one of" in said
    (three[1] / "adapter_config.json").write_text("{}")
    assert main(["soup", str(three[0]), str(three[1]), "-o", str(tmp_path / "soup")]) == 2
    assert "not the adapter of the mean" in capsys.readouterr().err
    assert not (tmp_path / "soup").exists()


def test_run_directories_stand_for_what_they_published(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    three[0].rename(run / "model")
    assert main(["soup", str(run), str(three[1]), "-o", str(tmp_path / "soup"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not verify_folder(tmp_path / "soup")
    assert said["models"] == [str(run / "model"), str(three[1])]
    mean = (
        weights(run / "model")["model.layers.0.mlp.up_proj.weight"].double()
        + weights(three[1])["model.layers.0.mlp.up_proj.weight"].double()
    ) / 2
    assert torch.equal(weights(tmp_path / "soup")["model.layers.0.mlp.up_proj.weight"], mean.float())


def test_every_problem_of_the_command_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    words = ["soup", str(tmp_path / "no"), "-o", str(tmp_path / "there"), "--shares", "1,2"]
    assert main(words) == 2
    said = capsys.readouterr().err
    for text in ("is no model folder", "Name at least two", "2 numbers for 1 models", "name another --out"):
        assert text in said
