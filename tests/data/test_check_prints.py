"""What `raydpo check` prints of one file each, and its exit code: faults that files of other trainers have.

Decision: the command line is called in this process, with tokenizers of real families' templates and a config.json alone: a
check loads no weights. A row is three lines here; what is read of it is held down in the tests of its own part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from tests.data.conftest import CHATML, save_tokenizer, write_jsonl
from tests.data.test_ends import family
from tests.data.test_formats import said, user
from tests.data.test_trajectories import CALL, CALLING, TOOL, TOOLS
from tools import template_families

pytest.importorskip("trl", reason="the templates of families are read from TRL's wheel")

Row = dict[str, Any]
ASKED = [user("What is 1+1?")]
PAIR = {"prompt": "What is 1+1?", "chosen": "2", "rejected": "3"}
PAIRS = [{**PAIR, "prompt": f"What is {n}+1?"} for n in range(4)]


def write_columns(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def write_text(encoding: str, indent: int | None = None, before: str = "", after: str = "") -> Callable[..., None]:
    def write(path: Path, rows: list[Row]) -> None:
        lines = (f"{before}{json.dumps(row, indent=indent)}{after}\n" for row in rows)
        path.write_bytes("".join(lines).encode(encoding))

    return write


def write_tsv(path: Path, rows: list[Row]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class File:
    """rows: of the file. code: of the program's end. says, never: parts of what is printed, and what must not be.

    model: writes a tokenizer's folder, or the name of a family's template. more: words behind the config.
    """

    rows: list[Row]
    code: int
    says: tuple[str, ...]
    never: tuple[str, ...] = ()
    model: str | Callable[[Path], Any] = "qwen2_5"
    more: tuple[str, ...] = ()
    name: str = "rows.jsonl"
    write: Callable[[Path, list[Row]], Any] = field(default=write_jsonl)


def question(name: str, **more: Any) -> list[Row]:
    return [{**more, name: f"What is {n}+1?", "chosen": "2", "rejected": "3"} for n in range(4)]


def calls(*arguments: Any) -> list[Row]:
    return [
        {
            "prompt": ASKED,
            "chosen": [{**CALLING, "tool_calls": [{**CALL[0], "function": {"name": "weather", "arguments": given}}]}],
            "rejected": [said("No idea.")],
            "tools": TOOLS,
        }
        for given in arguments
    ]


def without_bos(folder: Path) -> Path:
    return save_tokenizer(
        folder, bos="<s>", eos="<|im_end|>", template=CHATML, specials=["<|im_start|>"], writes_bos=False
    )


THOUGHT = [{"prompt": ASKED, "chosen": [said("<think>\ngood\n</think>\n\nFour")], "rejected": [said("Five")]}]
REASONED = [{"prompt": ASKED, "chosen": [{**said("Four"), "reasoning_content": "good"}], "rejected": [said("Five")]}]
LABELS = [{"messages": [user(f"{n}?"), said("4")], "label": n % 2 == 0} for n in range(4)]
IMAGE = {
    "conversations": [{"from": "human", "value": "<image>What is it?"}],
    "chosen": {"from": "gpt", "value": "A cat."},
    "rejected": {"from": "gpt", "value": "A dog."},
    "images": ["a.jpg"],
}
RATED = {"generations": ["refused", "picked"], "rating": [9.0, 8.0], "chosen": "picked", "rejected": "refused"}
NO_CONTENT = [{key: value for key, value in CALLING.items() if key != "content"}]
VALUE_PARTS = [{"role": "assistant", "content": [{"type": "text", "value": "2"}]}]

FILES: dict[str, File] = {
    "a question and a system text of other names": File(
        question("question", system="You are terse."), 0, ("4 used", "What is 0+1?", "You are terse.")
    ),
    "an input": File(question("input"), 0, ("What is 0+1?",)),
    "an instruction": File(question("instruction"), 0, ("What is 0+1?",)),
    "a prompt of a name that nobody knows": File(
        question("riddle"), 2, ("names that say they matter: riddle", "data.columns: {")
    ),
    "a system text beside a prompt": File(
        [{**row, "system": "You are a pirate."} for row in PAIRS], 0, ("You are a pirate.",), ("Alibaba",)
    ),
    "labels beside messages, sft": File(LABELS, 0, ("undesirable", "2 used"), more=("objective.name=sft",)),
    "labels beside messages, kto": File(LABELS, 0, ("4 used",), more=("objective.name=kto",)),
    "images": File([IMAGE], 2, ("unsupported_media", "the row has images")),
    "a template that swallows thoughts": File(THOUGHT, 2, ("template_dropped", "good"), model="deepseek_r1_distill"),
    "a template without reasoning": File(REASONED, 2, ("template_dropped", "reasoning of turn 1"), model="llama3"),
    "a tool call that renders to nothing": File(calls({"city": "Paris"}), 2, ("template_dropped",), model="gemma3"),
    "structs that a schema filled with nulls": File(
        calls({"city": "Paris"}, {"tz": "CET"}),
        0,
        ("2 used", "Paris"),
        ("null",),
        name="rows.parquet",
        write=write_columns,
    ),
    "arguments as JSON text": File(calls('{"city": "Paris"}'), 0, ("1 used", "Paris"), ('\\"city',)),
    "ratings that contradict an explicit pair": File(
        [{**RATED, "input": "Q?"}], 0, ("1 used", "ratings that say", "picked")
    ),
    "a generation prompt that opens a thought": File(PAIRS, 0, ("4 used",), model="nemotron_3_nano"),
    "a tokenizer that writes no BOS": File(
        [{"prompt": ASKED, "chosen": [said("2")], "rejected": [said("3")]}],
        0,
        ("no BOS: the chat template writes none",),
        model=without_bos,
    ),
    "an end that only the model's files name": File(
        [{"prompt": ASKED, "chosen": [said("2")], "rejected": [said("3")]}],
        0,
        ("answers end with <end_of_turn> (generation_config.json)",),
        model=lambda folder: family("gemma", folder, ["<eos>", "<end_of_turn>"]),
    ),
    "a message without content": File(
        [{"prompt": ASKED, "chosen": NO_CONTENT, "rejected": [said("3")], "tools": TOOLS}], 0, ("1 used", "Paris")
    ),
    "argilla's names": File([{"prompt": "Q?", "chosen_response": "2", "rejected_response": "3"}], 0, ("1 used", "Q?")),
    "cells": File(PAIRS, 0, ("4 used",), name="rows.tsv", write=write_tsv),
    "names that data.columns maps": File(
        [{"q": "Q?", "good": "2", "bad": "3"}],
        0,
        ("1 used", "Q?"),
        more=("data.columns={prompt: q, chosen: good, rejected: bad}",),
    ),
    "an answer of several turns": File(
        [{"prompt": ASKED, "chosen": [CALLING, TOOL, said("Fine.")], "rejected": [said("3")], "tools": TOOLS}],
        0,
        ("1 used", "sunny"),
        model="qwen3",
    ),
    "pairs that part before the last turn": File(
        [{"chosen": [*ASKED, CALLING, TOOL, said("Fine.")], "rejected": [*ASKED, said("3")], "tools": TOOLS}],
        0,
        ("1 used", "sunny"),
        model="qwen3",
    ),
    "text of another width": File(PAIRS, 2, ("UTF-16", "iconv"), write=write_text("utf-16")),
    "objects over several lines": File(PAIRS, 2, ("over several lines", "jq -c"), write=write_text("utf-8", indent=2)),
    "a mark of order on each line": File(PAIRS, 0, ("4 used",), write=write_text("utf-8", before="\ufeff")),
    "parts whose text is elsewhere": File(
        [{"prompt": ASKED, "chosen": VALUE_PARTS, "rejected": [said("3")]}], 2, ("its text belongs under text",)
    ),
}


def model_in(folder: Path, file: File) -> Path:
    if callable(file.model):
        file.model(folder)
    else:
        template_families.save(template_families.source(file.model), folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 4096}))
    return folder


@pytest.mark.parametrize("name", FILES)
def test_a_check_says_what_becomes_of_the_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = FILES[name]
    model, path, config = model_in(tmp_path / "model", file), tmp_path / file.name, tmp_path / "run.yaml"
    file.write(path, file.rows)
    sections = {"run": {"dir": str(tmp_path / "run")}, "model": {"path": str(model)}, "data": {"train": [str(path)]}}
    config.write_text(json.dumps(sections))
    code = cli.main(["check", str(config), "--show", "1", *file.more])
    printed = "".join(capsys.readouterr())
    read = re.sub(r"⟨\d+⟩\s*", "", printed).replace("␣", " ")  # tokens as text
    assert code == file.code, read
    assert not [words for words in file.says if words not in read], read
    assert not [words for words in file.never if words in read], read
    assert "Traceback" not in printed
