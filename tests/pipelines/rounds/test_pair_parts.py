"""Pairs become parts while they are made, and are read as any data: texts, and messages as JSON text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.data.aliases import canonical
from raydpo.data.read import file_rows
from raydpo.judge.pairs import record_of
from raydpo.rounds.pair_parts import OFFLINE, PairParts, files_of
from raydpo.rundir.piece import Piece
from raydpo.schema.round_rows import SCORED_PAIRS, SPIN_PAIRS
from raydpo.schema.samples import Prompt, Sample

TURNS = [{"role": "user", "content": "wie?"}, {"role": "assistant", "content": "so"}, {"role": "user", "content": "q"}]
BESIDE = {"round": 3, "version": 2, "chosen_score": 1.5, "rejected_score": -2.0}


def record(number: int, said: Any = None) -> dict[str, Any]:
    """A pair to prompt `number`, whose prompt the data had as `said`."""
    prompt = Prompt(f"{number}", f"prompt {number}", (number, 1), {"prompt": said} if said else {})
    chosen, rejected = Sample((number, 2, 3), f"good {number}", "eos"), Sample((4,), "bad", "length")
    return record_of(prompt, chosen, rejected, tokenizer_digest="ab", extra=BESIDE)


def begun(folder: Path, schema: Any = SCORED_PAIRS, pairs_per_part: int = 1) -> tuple[Piece, PairParts]:
    piece = Piece(folder / "pairs", "these")
    return piece, PairParts(piece, schema, pairs_per_part)


def read(folder: Path) -> list[dict[str, Any]]:
    """As the data of a training are read."""
    lines = [line for path in files_of(folder) for line in file_rows(path)]
    assert [line.bad for line in lines] == [None] * len(lines)
    return [line.row for line in lines if line.row is not None]


def test_pairs_are_read_as_they_were_made(tmp_path: Path) -> None:
    """More of them than are held as Python values, in several parts."""
    piece, parts = begun(tmp_path)
    records = [record(number) for number in range(300)]
    for start in range(0, 300, 3):
        parts.add(str(start), records[start : start + 3])
    parts.finish()
    piece.commit({})
    assert (parts.num_pairs, parts.is_of_one_prompt) == (300, False)
    assert parts.versions == {2: 300}
    assert [path.name[:10] for path in files_of(piece.folder)] == ["part-00000", "part-00001", "part-00002"]
    assert read(piece.folder) == records


def test_a_part_has_as_many_pairs_as_it_is_told(tmp_path: Path) -> None:
    piece, parts = begun(tmp_path, pairs_per_part=1000)
    for number in range(300):
        parts.add(str(number), [record(number)])
    parts.finish()
    piece.commit({})
    assert len(piece.files()) == 1
    assert [row["prompt"] for row in piece.rows()] == [f"prompt {number}" for number in range(300)]


def test_messages_are_read_as_messages(tmp_path: Path) -> None:
    """Next to a prompt that is text, with content that is no text, and with a mask."""
    odd = [{"role": "user", "content": [{"type": "text", "text": "ä"}], "extra": {"a": [1, "x"]}}]
    records = [record(0, TURNS), record(1), {**record(2, odd), "chosen_mask": [1, 0, 1]}]
    spun = [{key: value for key, value in each.items() if not key.endswith("_score")} for each in records]
    piece, parts = begun(tmp_path, SPIN_PAIRS)
    parts.add("all", spun)
    parts.finish()
    piece.commit({})
    found = [canonical(row, {}, frozenset(), is_ours=True)[0] for row in read(piece.folder)]
    assert [{key: value for key, value in row.items() if value is not None} for row in found] == spun


def test_pairs_that_cannot_be_used_are_forgotten(tmp_path: Path) -> None:
    piece, parts = begun(tmp_path)
    parts.add("empty", [])
    parts.add("one", [record(number) for number in range(200)])
    assert parts.is_of_one_prompt
    assert piece.numbers() == {0}
    parts.forget()
    parts.finish()
    piece.commit({})
    assert (parts.num_pairs, list(piece.rows()), len(piece.files())) == (0, [], 1)


@pytest.mark.parametrize("has_offline", [False, True])
def test_pairs_of_a_run_from_before_are_found(has_offline: bool, tmp_path: Path) -> None:
    piece = Piece(tmp_path / "pairs", "these")
    piece.begin()
    piece.write("pairs.jsonl", [record(1, TURNS)])
    if has_offline:
        piece.write(OFFLINE, [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    piece.commit({})
    names = [path.name for path in files_of(piece.folder)]
    assert names == ["pairs.jsonl", *[OFFLINE] * has_offline]
    assert read(piece.folder)[0] == record(1, TURNS)


def test_pairs_begin_anew(tmp_path: Path) -> None:
    """What an attempt that was ended had chosen does not stay beside what this one chooses."""
    _, ended = begun(tmp_path)
    for number in range(300):
        ended.add(str(number), [record(number)])
    piece, parts = begun(tmp_path)
    parts.add("7", [record(7)])
    parts.finish()
    piece.commit({})
    assert read(piece.folder) == [record(7)]
