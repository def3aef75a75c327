"""Rows of every layout and alias, each from a system text, a prompt and two answers, and the files that may hold them.

What comes in: four texts. What goes out: the row that says so, and what each side must say in order.
Decision: a kind of row is one line of a table, so that one without a test is one that nobody wrote down.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raydpo.data.aliases import PAIRS, PROMPTS
from raydpo.data.tokenizer import TextTokenizer
from tests.data.conftest import write_jsonl
from tests.data.test_formats import said, user

Row = dict[str, Any]
Writer = Callable[[str, str, str, str], Row]
"""System text, prompt, better and worse answer -> the row that says so."""


def turns(system: str, prompt: str) -> list[dict[str, Any]]:
    return [*([{"role": "system", "content": system}] if system else []), user(prompt)]


def pair_of(chosen: str, rejected: str) -> Writer:
    return lambda s, p, a, b: {"system": s, "prompt": p, chosen: a, rejected: b}


def named(prompt: str) -> Writer:
    return lambda s, p, a, b: {"system": s, prompt: p, "chosen": a, "rejected": b}


def voted(first: str, second: str, vote: str) -> Writer:
    return lambda s, p, a, b: {"system": s, "prompt": p, first: b, second: a, vote: "b"}


def parts(text: str) -> list[dict[str, str]]:
    middle = len(text) // 2
    return [{"type": "text", "text": text[:middle]}, {"type": "text", "text": text[middle:]}]


WRITERS: dict[str, Writer] = {
    "whole conversations": lambda s, p, a, b: {"chosen": [*turns(s, p), said(a)], "rejected": [*turns(s, p), said(b)]},
    "turns next to a prompt": lambda s, p, a, b: {
        "prompt": turns(s, p),
        "chosen": [said(a)],
        "rejected": [said(b)],
    },
    "nested parts": lambda s, p, a, b: {
        "prompt": [{**turn, "content": parts(turn["content"])} for turn in turns(s, p)],
        "chosen": [{"role": "assistant", "content": parts(a)}],
        "rejected": [{"role": "assistant", "content": parts(b)}],
    },
    "ultrafeedback": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "chosen": [user(p), said(a)],
        "rejected": [user(p), said(b)],
    },
    "sharegpt": lambda s, p, a, b: {
        "system": s,
        "conversations": [{"from": "human", "value": p}],
        "chosen": {"from": "gpt", "value": a},
        "rejected": {"from": "gpt", "value": b},
    },
    "alpaca": lambda s, p, a, b: {"system": s, "instruction": p, "input": "", "output": [a, b]},
    "hh": lambda s, p, a, b: {
        "chosen": f"\n\nHuman: {p}\n\nAssistant: {a}",
        "rejected": f"\n\nHuman: {p}\n\nAssistant: {b}",
        "system": s,
    },
    "scored": lambda s, p, a, b: {"system": s, "prompt": p, "answers": [b, a], "scores": [1, 2]},
    "OpenAI": lambda s, p, a, b: {
        "input": {"messages": turns(s, p), "tools": []},
        "preferred_output": [said(a)],
        "non_preferred_output": [said(b)],
    },
    "HelpSteer3": lambda s, p, a, b: {
        "context": turns(s, p),
        "response1": b,
        "response2": a,
        "overall_preference": 2,
    },
    "votes in columns": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "response_a": a,
        "response_b": b,
        "winner_model_a": 1,
        "winner_model_b": 0,
    },
    "PKU-SafeRLHF": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "response_0": b,
        "response_1": a,
        "better_response_id": 1,
    },
    "SHP": lambda s, p, a, b: {"system": s, "history": p, "human_ref_A": a, "human_ref_B": b, "labels": 1},
    "Nectar": lambda s, p, a, b: {
        "system": s,
        "prompt": p,
        "answers": [{"answer": b, "rank": 2}, {"answer": a, "rank": 1}],
    },
    **{f"prompt by {name}": named(name) for name in ("prompt", *PROMPTS)},
    **{
        f"{alias.title}: {alias.needs}": pair_of(*alias.needs)
        for alias in PAIRS
        if len(alias.needs) == 2 and alias.convert is None
    },
    **{f"{alias.title}: {alias.needs}": voted(*alias.needs) for alias in PAIRS if alias.title == "arena votes"},
}

TOOL_TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m.reasoning_content %}{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] }}{% for call in m.tool_calls or [] %}"
    "{{ '\\n<call>' + call.function.name + ' ' + (call.function.arguments | tojson) + '</call>' }}"
    "{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML that writes tools, calls and reasoning."""
TOOLS = [{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}]


def calling(as_text: bool = False, **arguments: Any) -> dict[str, Any]:
    given = json.dumps(arguments) if as_text else arguments
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": given}}],
    }


def told(text: str) -> dict[str, Any]:
    return {"role": "tool", "content": text, "name": "look"}


def tooled(chosen: Callable[[str, str], list[Any]], rejected: Callable[[str, str], list[Any]]) -> Writer:
    return lambda s, p, a, b: {
        "prompt": turns(s, p),
        "chosen": chosen(a, b),
        "rejected": rejected(a, b),
        "tools": TOOLS,
    }


TOOL_WRITERS: dict[str, Writer] = {
    "tool call": tooled(lambda a, b: [calling(at=a)], lambda a, b: [said(b)]),
    "two tool calls of other arguments": tooled(lambda a, b: [calling(at=a, n=1)], lambda a, b: [calling(to=b)]),
    "arguments as JSON text": tooled(lambda a, b: [calling(True, at=a)], lambda a, b: [calling(True, at=b)]),
    "trajectory": tooled(lambda a, b: [calling(at=a), told(b), said(a)], lambda a, b: [said(b)]),
    "tools as JSON text": lambda s, p, a, b: {
        **TOOL_WRITERS["tool call"](s, p, a, b),
        "tools": json.dumps(TOOLS),
    },
    "whole conversations with tools": lambda s, p, a, b: {
        "chosen": [*turns(s, p), calling(at="x"), told(p), said(a)],
        "rejected": [*turns(s, p), calling(at="x"), told(p), said(b)],
        "tools": TOOLS,
    },
    "reasoning beside an answer": lambda s, p, a, b: {
        "prompt": turns(s, p),
        "chosen": [{**said(a), "reasoning_content": f"because {b}"}],
        "rejected": [said(b)],
    },
}
"""Rows for a template that writes tools."""


def sides(name: str, system: str, prompt: str, better: str, worse: str) -> list[list[str]]:
    """What each side of a row of kind `name` says, in order."""
    before = [system, prompt]
    if name == "trajectory":
        return [[*before, "look", better, worse, better], [*before, worse]]
    if name == "whole conversations with tools":
        return [[*before, "look", prompt, better], [*before, "look", prompt, worse]]
    if name == "reasoning beside an answer":
        return [[*before, f"because {worse}", better], [*before, worse]]
    return [[*before, better], [*before, worse]]


def token_writers(tokenizer: TextTokenizer) -> dict[str, Writer]:
    """Rows of token ids, a character at a time, so that nobody tokenised them again."""

    def ids(text: str) -> list[int]:
        return [one for piece in tokenizer.encode(list(text)) for one in piece] if text else []

    def plain(s: str, p: str, a: str, b: str) -> Row:
        found = {"prompt_ids": ids(p), "chosen_ids": ids(a), "rejected_ids": ids(b)}
        return {"system": s, "prompt": "not read", "chosen": "not read", **found, "tokenizer": tokenizer.ids_digest}

    def masked(s: str, p: str, a: str, b: str) -> Row:
        row = plain(s, p, a, b)
        return {**row, "chosen_mask": [number % 2 for number, _ in enumerate(row["chosen_ids"])]}

    def beyond(s: str, p: str, a: str, b: str) -> Row:
        row = plain(s, p, a, b)
        return {**row, "rejected_ids": [*row["rejected_ids"], 10**6]} if len(b) % 2 else row

    return {"token ids": plain, "token ids with a mask": masked, "ids beyond the vocabulary": beyond}


def _columns(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, table.schema) as file:
        file.write_table(table)


def _cells(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows(
            [value if isinstance(value, str) else json.dumps(value) for value in row.values()] for row in rows
        )


CONTAINERS: dict[str, Callable[[Path, list[Row]], Any]] = {
    "jsonl": write_jsonl,
    "json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8"),
    "jsonl.gz": lambda path, rows: path.write_bytes(
        gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    ),
    "parquet": _columns,
    "arrow": _columns,
    "csv": _cells,
    "tsv": _cells,
}
"""Ending of a file -> what writes rows into it; in cells lists and objects are JSON text."""
CELLS = ("csv", "tsv")
"""Endings of files of cells."""
