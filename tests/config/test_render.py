"""A dumped config loads back to itself, and the schema agrees with the loader."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.config import OBJECTIVES, Config
from raydpo.config.load import load
from raydpo.config.objective_check import readable
from raydpo.config.render import dump, schema
from raydpo.errors import ConfigError

TRICKY = ["no", "~", "null", "1e5", "5", "*.jsonl", "a:b", "#x", "true", "=", "<<", "0o7", "1:30", "'", '"', "-"]
TRICKY += ["1_0", ".inf", "!x", "@x", "%x", "[a", "{a", "a: b", " ", "\t", "\n", "a\n\nb", "\x85", "\u2028", "\ufeff"]
TEXT = st.one_of(
    st.sampled_from(TRICKY),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)


@settings(deadline=None, max_examples=40, database=None)
@given(
    texts=st.tuples(TEXT, TEXT, TEXT),
    files=st.lists(TEXT, max_size=3),
    rate=st.floats(min_value=1e-300, max_value=1e300),
    beta=st.floats(min_value=1e-9, max_value=1e4),
    lora=st.booleans(),
)
def test_dump_loads_back(texts: tuple[str, str, str], files: list[str], rate: float, beta: float, lora: bool) -> None:
    config = Config.model_validate(
        {
            "run": {"dir": re.sub(r"[\x00-\x1f\x7f]", "_", texts[0])},  # what a path of ours may hold
            "model": {"path": texts[1].replace("\0", "_"), "revision": texts[2]},
            "data": {"train": [name.replace("\0", "_") for name in files]},
            "objective": {"name": "dpo", "beta": beta},
            "train": {"learning_rate": rate, "lora": {"target_modules": files} if lora else None},
        }
    )
    origins = load_text(dump(config)).origins
    assert load_text(dump(config)).config == config
    assert load_text(dump(config, origins)).config == config


@pytest.mark.parametrize("settings", [{}, {"word": "please", "weights": [1, 2], "deep": {"er": 1.5, "est": {}}}])
def test_settings_of_a_judge_load_back(settings: dict[str, Any]) -> None:
    judge = {"kind": "my_pkg.judges:Wording", "settings": settings}
    config = Config.model_validate({"run": {"dir": "a"}, "model": {"path": "b"}, "judge": judge})
    loaded = load_text(dump(config))
    assert loaded.config == config
    assert load_text(dump(config, loaded.origins)).config == config


def load_text(text: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(text.encode())
        return load(path)


def minimal(**more: Any) -> dict[str, Any]:
    return {"run": {"dir": "a"}, "model": {"path": "b"}, **more}


SAMPLES = [
    minimal(),
    minimal(data={"train": "a.jsonl"}),
    minimal(data={"train": ["a.jsonl"], "eval": []}),
    minimal(objective="sft"),
    minimal(objective={"beta": 1}),
    minimal(objective={"name": "sft"}),
    minimal(train={"lora": {"rank": 4}, "learning_rate": 5e-7}),
    minimal(train={"lora": None}),
    {"run": {"dir": "a"}},
    minimal(objective={"name": "sft", "beta": 1}),
    minimal(objective={"beta": 0}),
    minimal(objective={"label_smoothing": 0.5}),
    minimal(objective="ppo"),
    minimal(train={"epochs": 0}),
    minimal(train={"zero_stage": 4}),
    minimal(train={"lora": {"rnk": 4}}),
    minimal(trian={}),
    minimal(data={"format": "my_pkg.rows:my_format"}),
    minimal(data={"format": "my_pkg.rows"}),
    minimal(train={"schedule": "my_pkg.schedules:wsd", "sinks": ["jsonl", "my_pkg.sinks:MySink"]}),
    minimal(train={"schedule": "my_pkg:schedules:wsd"}),
    minimal(train={"sinks": "jsonl"}),
    minimal(train={"sinks": ["jsonl", "wandb"]}),
    minimal(judge={"kind": "my_pkg.judges:Wording", "settings": {"word": "please"}}),
    minimal(judge={"kind": "my_pkg judges"}),
    minimal(data={"train": 5}),
    minimal(generate={"stop": "x"}),
    minimal(generate={"stop": [5]}),
    minimal(rounds={"prompts": "p.jsonl", "reference": "initial"}),
    minimal(rounds={"prompts": ["p.jsonl"], "eval_prompts": "q.jsonl", "reference": "initial"}),
    minimal(rounds={"reference": "initial"}),
]


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_schema_and_loader_agree(sample: dict[str, Any]) -> None:
    import yaml

    try:
        load_text(yaml.safe_dump(sample))
        loads = True
    except ConfigError:
        loads = False
    assert jsonschema.Draft202012Validator(schema()).is_valid(sample) is loads


def test_schema_is_valid_and_lists_the_table() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    rows = schema()["$defs"]["ObjectiveSection"]["anyOf"]
    listed = {
        row["title"]: set(row["properties"]) - {"name"}
        for row in rows
        if "const" in row.get("properties", {}).get("name", {})
    }
    assert listed == {name: {*readable(row), "plus"} for name, row in OBJECTIVES.items()}


def test_every_key_of_the_schema_has_help() -> None:
    for name, section in schema()["$defs"].items():
        for key, field in section.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"


def test_origins_stand_in_one_column() -> None:
    loaded = load_text("run: {dir: a}\nmodel: {path: b}\n")
    lines = [line for line in dump(loaded.config, loaded.origins).splitlines() if "# " in line]
    assert len({line.index("# ") for line in lines}) == 1
    assert len(lines) == len(loaded.origins)
