"""Tables of examples that tests write by hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from raydpo.artifacts import ExampleWriter
from raydpo.schema import row_key

Ids = list[int]


def write_examples(folder: Path, examples: Iterable[tuple[Ids, list[Ids]]], split: str = "train") -> None:
    """Token shards of (prompt, answers), one source line an example."""
    writer = ExampleWriter(folder, split)
    for number, (prompt, answers) in enumerate(examples):
        writer.add(prompt, answers, [row_key(prompt, answer) for answer in answers], f"pairs.jsonl:{number + 1}")
    writer.close()
