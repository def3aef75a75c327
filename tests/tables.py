"""Tables of examples that tests write by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from raydpo.artifacts import ExampleWriter
from raydpo.schema.rows import row_key

Ids = list[int]
Mask = list[bool] | None


def write_examples(
    folder: Path,
    examples: Iterable[tuple[Ids, list[Ids]]],
    split: str = "train",
    masks: Sequence[Sequence[Mask]] = (),
    labels: Sequence[bool] = (),
) -> None:
    """Token shards of (prompt, answers), one source line an example; masks and labels of each, if there are any."""
    writer = ExampleWriter(folder, split)
    for number, (prompt, answers) in enumerate(examples):
        own: Sequence[Mask] = masks[number] if masks else [None] * len(answers)
        keys = [row_key(prompt, *row) for row in zip(answers, own, strict=True)]
        label = labels[number] if labels else True
        writer.add(prompt, answers, keys, f"pairs.jsonl:{number + 1}", label, answer_masks=own)
    writer.close()
