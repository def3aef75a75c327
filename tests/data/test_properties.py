"""Whatever the lines are: nothing raises but a finished sentence, and the counts add up."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydpo.config.doors import FORMATS as DOOR
from raydpo.data import prepare
from raydpo.data.bad_rows import REASONS
from raydpo.data.formats import FORMATS, detect
from raydpo.data.read import parse_line
from raydpo.errors import DataError
from tests.data.conftest import config_of, write_jsonl

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
texts = st.text(max_size=30) | st.sampled_from(
    ["<|im_start|>", "<s>", "\n\nHuman: a\n\nAssistant: b", "\ud800", "\0", "", " ", "\U0010fffc0\U0010fffd<|im_end|>"]
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "alien"]) | scalars,
        "content": texts | scalars,
        "from": st.sampled_from(["human", "gpt"]) | scalars,
        "value": texts | scalars,
        "tool_calls": st.lists(scalars, max_size=2),
    },
)
values = (
    texts
    | scalars
    | st.lists(turns, max_size=3)
    | turns
    | st.lists(texts, max_size=3)
    | st.lists(scalars, max_size=3)
    | st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2))
)
NAMES = ["prompt", "chosen", "rejected", "messages", "conversations", "completion", "text", "instruction", "input"]
NAMES += ["output", "answers", "responses", "completions", "scores", "system", "history", "tools", "agreement"]
objects = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)
rows = objects | values
good = st.builds(
    lambda prompt, first, second: {"prompt": prompt, "chosen": first, "rejected": second}, texts, texts, texts
)
lines = st.one_of(rows, good, good, st.binary(max_size=40).filter(lambda raw: b"\n" not in raw))


@settings(max_examples=150, deadline=None)
@given(raw=st.binary(max_size=60) | rows.map(lambda row: json.dumps(row).encode()))
def test_any_bytes_are_a_line(raw: bytes) -> None:
    line = parse_line(2, raw)
    assert (line.row is None) != (line.bad is None)
    assert line.bad is None or line.bad.reason in REASONS
    assert isinstance(line.sample().encode("utf-8", "backslashreplace"), bytes)


@settings(max_examples=100, deadline=None)
@given(found=st.lists(objects, max_size=5))
def test_detection_never_raises(found: list[dict[str, Any]]) -> None:
    assert detect(found) in {None, *FORMATS}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    found=st.lists(lines, min_size=1, max_size=12),
    layout=st.sampled_from(["auto", *FORMATS]),
    objective=st.sampled_from(["dpo", "sft"]),
    policy=st.sampled_from(["plain", "quarantine", "allow"]),
    overlong=st.sampled_from(["drop", "truncate_prompt"]),
    confidence=st.booleans(),
)
def test_counts_always_add_up(
    chat_tokenizer: Path,
    found: list[Any],
    layout: str,
    objective: str,
    policy: str,
    overlong: str,
    confidence: bool,
) -> None:
    data: dict[str, Any] = {"format": layout, "control_tokens": policy, "overlong": overlong, "max_length": 60}
    if confidence:
        data |= {"confidence_column": "agreement", "min_confidence": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        row = {"prompt": "a", "chosen": " b", "rejected": " c", "agreement": 1}
        path = write_jsonl(Path(folder) / "rows.jsonl", [*found, json.dumps(row).encode()])
        config = config_of(objective, train=[str(path)], max_bad_fraction=1.0, **data)
        try:
            report = prepare(config, str(chat_tokenizer), Path(folder) / "run" / "data", write=False)
        except DataError as error:
            if "gives no example" not in str(error):  # the one thing that is wrong with data as a whole here
                raise
            return
    assert report.lines_read == len(found) + 1
    assert report.lines_read == report.pairs_used + sum(report.quarantined.values())
    assert set(report.quarantined) <= set(REASONS)
    assert report.lengths["total_tokens"]["max"] <= 60


def test_every_format_of_the_config_exists() -> None:
    assert set(DOOR.ours) == {"auto", *FORMATS}
