"""Samples and scores stand beside the prompts that they were made for: far beyond the digits of a name, and when swapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from raydpo.driver.judges import Judging
from raydpo.errors import IntegrityError
from raydpo.generate.engine import EngineSpec
from raydpo.rounds.paired_rows import rows_of, samples_of, scores_of
from raydpo.rundir.piece import Piece, in_order
from raydpo.schema.events import ignore
from raydpo.schema.samples import Prompt, Sample

PROMPTS = [Prompt(f"key {number}", f"prompt {number}", (number,)) for number in range(4)]
GROUPS = [(Sample((number, 1), "a" * number, "eos"), Sample((number,), "", "length")) for number in range(4)]


def generations(folder: Path, order: Sequence[int] = range(4)) -> Piece:
    """A piece with the samples of each prompt, two prompts a part."""
    rows = [
        {"prompt": PROMPTS[n].key, "version": 0, "samples": [asdict(sample) for sample in GROUPS[n]]} for n in order
    ]
    piece = Piece(folder / "generations", "these")
    piece.begin()
    for part, start in enumerate(range(0, len(rows), 2)):
        piece.write_part(part, rows[start : start + 2])
    piece.commit({})
    return piece


def scores(folder: Path) -> Piece:
    """The scores of the lengths of all answers, two prompts a part."""
    judging = Judging(lambda prompt, answers: [float(len(one)) for one in answers], None, EngineSpec("none"))
    rows, piece = rows_of(PROMPTS, GROUPS), Piece(folder / "scores", "these")
    judging.judge(piece, [rows[:2], rows[2:]], ignore)
    return piece


@contextmanager
def committed_rows(piece: Piece) -> Iterator[list[dict[str, Any]]]:
    """All rows of a piece, to be changed: they are committed again, a row a part."""
    rows = list(piece.rows())
    yield rows
    piece.begin()
    for part, row in enumerate(rows):
        piece.write_part(part, [row])
    piece.commit({})


def test_parts_beyond_the_digits_of_their_names_keep_their_order(tmp_path: Path) -> None:
    names = [f"part-{number:05d}.jsonl" for number in range(100_002)]
    assert sorted(names) != names, "what text makes of them"
    assert in_order(tmp_path, [*sorted(names), "inputs.json"]) == names


def test_rows_come_in_the_order_of_numbers(tmp_path: Path) -> None:
    piece = Piece(tmp_path / "generations", "these")
    piece.begin()
    for number in range(12):
        piece.write_part(number, [{"part": number}])
    work = tmp_path / ".generations-work"
    for number in range(12):
        (work / f"part-{number:05d}.jsonl").rename(work / f"part-{number}.jsonl")
    piece.commit({})
    assert [row["part"] for row in piece.rows()] == list(range(12))


def test_a_file_that_was_not_committed_is_no_part(tmp_path: Path) -> None:
    piece = generations(tmp_path)
    (piece.folder / "part-00000-copy.jsonl").write_bytes((piece.folder / "part-00000.jsonl").read_bytes())
    (piece.folder / "part-00002.jsonl").write_bytes((piece.folder / "part-00000.jsonl").read_bytes())
    assert list(samples_of(piece, PROMPTS)) == GROUPS


def test_a_part_that_is_not_there_is_said(tmp_path: Path) -> None:
    piece = Piece(tmp_path / "generations", "these")
    piece.begin()
    for number in (0, 2):
        piece.write_part(number, [])
    piece.commit({})
    with pytest.raises(IntegrityError, match="2 parts, up to number 2, and no part 1"):
        list(piece.rows())


def test_samples_are_those_of_their_prompts(tmp_path: Path) -> None:
    assert list(samples_of(generations(tmp_path), PROMPTS)) == GROUPS


@pytest.mark.parametrize(
    ("order", "number"), [([0, 2, 1, 3], 2), ([0, 1, 2], 4), ([0, 1, 2, 3, 3], 5), ([1, 2, 3, 0], 1)]
)
def test_samples_of_other_prompts_are_refused(order: list[int], number: int, tmp_path: Path) -> None:
    piece = generations(tmp_path, order)
    with pytest.raises(IntegrityError, match=f"where those of prompt {number} are expected.*Remove the folder"):
        list(samples_of(piece, PROMPTS))


def test_scores_are_those_of_their_rows(tmp_path: Path) -> None:
    assert scores_of(scores(tmp_path), rows_of(PROMPTS, GROUPS)) == [[float(number), 0.0] for number in range(4)]


def test_scores_of_other_rows_are_refused(tmp_path: Path) -> None:
    piece = scores(tmp_path)
    with committed_rows(piece) as rows:
        rows[1], rows[2] = rows[2], rows[1]
    with pytest.raises(IntegrityError, match="scores of another prompt where those of prompt 2 are expected"):
        scores_of(piece, rows_of(PROMPTS, GROUPS))


def test_as_many_scores_as_answers(tmp_path: Path) -> None:
    piece = scores(tmp_path)
    with committed_rows(piece) as rows:
        rows[3]["scores"] = [1.0]
    with pytest.raises(IntegrityError, match="prompt 4"):
        scores_of(piece, rows_of(PROMPTS, GROUPS))


def test_scores_from_before_they_said_what_they_are_of_are_taken(tmp_path: Path) -> None:
    piece = scores(tmp_path)
    with committed_rows(piece) as rows:
        for row in rows:
            del row["judged"]
    assert scores_of(piece, rows_of(PROMPTS, GROUPS))[3] == [3.0, 0.0]
