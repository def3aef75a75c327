"""Digests follow content: of weights, of a tokenizer, of values."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raydpo.artifacts import digest_of, digest_of_rows, file_sha256, tokenizer_digest, weights_digest
from raydpo.errors import ConfigError
from raydpo.schema.samples import Conversation, Prompt

CONFIG = {"model_type": "llama", "hidden_size": 64, "rope_theta": 10000.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    rng = random.Random(0)
    for part in (1, 2):
        (tmp_path / f"model-0000{part}-of-00002.safetensors").write_bytes(rng.randbytes(300))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_any_byte_of_any_weight_file_counts(model: Path) -> None:
    seen = {weights_digest(model)}
    flips = 0
    for path in sorted(model.glob("*.safetensors")):
        data = path.read_bytes()
        for place in range(0, len(data), 7):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            seen.add(weights_digest(model))
            flips += 1
        path.write_bytes(data)
    assert len(seen) == flips + 1
    assert weights_digest(model) in seen


def test_weights_that_changed_places_count(model: Path) -> None:
    before = weights_digest(model)
    first, second = sorted(model.glob("*.safetensors"))
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)
    assert weights_digest(model) != before


def test_names_dates_and_other_files_do_not_count(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = weights_digest(model)
    copy = tmp_path_factory.mktemp("another") / "name"
    copy.mkdir()
    for path in model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("new")
    (copy / "tokenizer.json").write_text("{}")
    assert weights_digest(copy) == before


VOLATILE = ["transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache"]


@pytest.mark.parametrize("key", VOLATILE)
def test_what_changes_without_changing_the_model_does_not_count(model: Path, key: str) -> None:
    before = weights_digest(model)
    for value in ("one", "two"):
        (model / "config.json").write_text(json.dumps({key: value, **dict(reversed(CONFIG.items()))}, indent=7))
        assert weights_digest(model) == before


@pytest.mark.parametrize("change", [{"hidden_size": 65}, {"rope_theta": 1e6}, {"rope_scaling": None}])
def test_what_the_model_is_counts(model: Path, change: dict[str, object]) -> None:
    before = weights_digest(model)
    (model / "config.json").write_text(json.dumps({**CONFIG, **change}))
    assert weights_digest(model) != before


def test_an_adapter_is_its_weights_and_its_settings_not_where_its_base_lies(tmp_path: Path) -> None:
    def adapter(**changed: object) -> str:
        settings = {"r": 8, "lora_alpha": 16, "base_model_name_or_path": "/a", "revision": None, **changed}
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        return weights_digest(tmp_path)

    (tmp_path / "adapter_model.safetensors").write_bytes(b"adapter")
    assert adapter(base_model_name_or_path="/b", revision="main") == adapter()
    assert adapter(lora_alpha=32) != adapter()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"pickle")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=rf"only {name}.*run code.*safe_serialization"):
        weights_digest(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no weights"):
        weights_digest(tmp_path)


TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "vocab.json"]


def tokenizer_in(folder: Path) -> Path:
    for name in (*TOKENIZER, "merges.txt", "additional_chat_templates/tools.jinja"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("name", [*TOKENIZER, "merges.txt", "additional_chat_templates/tools.jinja"])
def test_each_tokenizer_file_counts(tmp_path: Path, name: str) -> None:
    before = tokenizer_digest(tokenizer_in(tmp_path))
    (tmp_path / name).write_text("changed")
    changed = tokenizer_digest(tmp_path)
    (tmp_path / name).unlink()
    assert len({before, changed, tokenizer_digest(tmp_path)}) == 3


def test_weights_are_no_part_of_the_tokenizer(tmp_path: Path) -> None:
    before = tokenizer_digest(tokenizer_in(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"w")
    (tmp_path / "config.json").write_text("{}")
    assert tokenizer_digest(tmp_path) == before


def test_digest_of_is_of_the_value_not_of_its_order(tmp_path: Path) -> None:
    assert digest_of({"a": 1, "b": [1, 2]}) == digest_of({"b": [1, 2], "a": 1})
    assert len({digest_of(value) for value in (1, "1", 1.0, True, None, [1], {"1": 1}, [2, 1], [1, 2])}) == 9
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("rows", [[], [1], [{"b": "ä", "a": [1.5, None]}, "x", []]], ids=["none", "one", "several"])
def test_rows_have_the_digest_of_their_list(rows: list[Any]) -> None:
    assert digest_of_rows(iter(rows)) == digest_of(rows)


def test_prompts_have_the_digest_that_runs_have_kept() -> None:
    turns = [{"role": "user", "content": "q"}]
    prompts = [
        Prompt("1", Conversation("user: q", turns), (1, 2), {"prompt": turns, "chosen": "a"}),
        Prompt("2", "plain", (), {}),
    ]
    assert digest_of_rows(map(vars, prompts)) == digest_of([asdict(prompt) for prompt in prompts])
