"""Weights of models whose files differ from what they are in memory, on their way into the transformers engine and vLLM."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from raydpo.errors import ConfigError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.generate.names import FolderNames
from raydpo.schema.samples import Sampling
from tests.generate.architectures import KINDS, pushed, write, write_raw
from tests.generate.conftest import PROMPTS

GREEDY = Sampling(num_answers=1, max_new_tokens=12, greedy=True)


def names_of(folder: Path) -> FolderNames:
    return FolderNames(str(folder), AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_and_a_folder_bring_the_new_policy_whatever_the_files_call_it(kind: str, tmp_path: Path) -> None:
    raw, saved = write_raw(kind, tmp_path / "raw", 1), write(kind, tmp_path / "saved", 2)
    expected = {folder: make_engine(EngineSpec(str(folder))).generate(PROMPTS, GREEDY, 0) for folder in (raw, saved)}
    assert expected[raw] != expected[saved]
    engine = make_engine(EngineSpec(str(raw)))
    for part in pushed(saved):
        engine.load_weights(part)
    engine.finish_loading()
    assert engine.generate(PROMPTS, GREEDY, 0) == expected[saved]
    for folder in (raw, saved):
        engine.load_folder(str(folder))
        assert engine.generate(PROMPTS, GREEDY, 0) == expected[folder]


@pytest.mark.parametrize("kind", KINDS)
def test_what_trainers_send_gets_the_names_of_the_folder_and_its_values(kind: str, tmp_path: Path) -> None:
    raw = write_raw(kind, tmp_path / "raw", 1)
    names = names_of(raw)
    weights = {name: weight for part in pushed(raw) for name, weight in part.items()}
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == names.expected.shapes
    found, held = names.of(weights), load_file(raw / "model.safetensors")
    assert {name for name in held if name not in found} == {name for name in held if "inv_freq" in name}
    assert all(torch.equal(weight, held[name]) for name, weight in found.items())


def test_a_tied_head_that_the_folder_holds_too_is_not_sent(tmp_path: Path) -> None:
    path = write("gpt2", tmp_path, 1) / "model.safetensors"
    held = load_file(path)
    save_file({**held, "lm_head.weight": held["transformer.wte.weight"].clone()}, path, {"format": "pt"})
    expected = names_of(tmp_path).expected
    assert "lm_head.weight" not in expected.shapes
    assert set(expected.check({"lm_head.weight": held["transformer.wte.weight"]})) == {"transformer.wte.weight"}


def test_a_folder_that_new_weights_could_not_replace_is_refused_at_the_start(tmp_path: Path) -> None:
    """Here experts are one tensor in the file too, which transformers reads and does not write."""
    path = write("qwen3_moe", tmp_path, 1) / "model.safetensors"
    save_file({name: weight for part in pushed(tmp_path) for name, weight in part.items()}, path, {"format": "pt"})
    assert make_engine(EngineSpec(str(tmp_path))).generate(PROMPTS, GREEDY, 0)
    with pytest.raises(ConfigError, match=r"experts\.0\.down_proj\.weight.* and 16 more\. .*generate\.engine: transf"):
        make_engine(EngineSpec(str(tmp_path), engine="vllm"))
