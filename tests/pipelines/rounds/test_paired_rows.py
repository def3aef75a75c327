"""Samples and scores stand beside the prompts that they were made for: far beyond the digits of a name, and when swapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raydpo.driver.judges import Judging
from raydpo.errors import IntegrityError
from raydpo.generate.engine import EngineSpec
from raydpo.judge.verdict import Row
from raydpo.rounds.paired_rows import lots_of, rows_of, samples_of, scores_of
from raydpo.rundir.piece import Piece
from raydpo.rundir.piece_parts import in_order, table_of
from raydpo.schema.events import ignore
from raydpo.schema.round_rows import SAMPLES, SCORES
from raydpo.schema.samples import Prompt, Sample

PROMPTS = [Prompt(f"key {number}", f"prompt {number}", (number,)) for number in range(4)]
GROUPS = [(Sample((number, 1), "a" * number, "eos"), Sample((number,), "", "length")) for number in range(4)]


def generations(folder: Path, order: Sequence[int] = range(4), *, old: bool = False) -> Piece:
    """A piece with the samples of each prompt, two prompts a part. old: in JSON lines, as all parts were."""
    rows = [
        {"prompt": PROMPTS[n].key, "version": 0, "samples": [asdict(sample) for sample in GROUPS[n]]} for n in order
    ]
    piece = Piece(folder / "generations", "these")
    piece.begin()
    for part, start in enumerate(range(0, len(rows), 2)):
        lot = rows[start : start + 2]
        piece.write_part(part, lot if old else table_of(lot, SAMPLES))
    piece.commit({})
    return piece


def scores(folder: Path) -> Piece:
    """The scores of the lengths of all answers, two prompts a part."""
    judging = Judging(lambda prompt, answers: [float(len(one)) for one in answers], None, EngineSpec("none"))
    piece = Piece(folder / "scores", "these")
    judging.judge(piece, lots_of([generations(folder)], PROMPTS, 2), ignore)
    return piece


@contextmanager
def committed_rows(piece: Piece, schema: pa.Schema | None = None) -> Iterator[list[dict[str, Any]]]:
    """All rows of a piece, to be changed: they are committed again, a row a part. schema: None for JSON lines."""
    rows = list(piece.rows())
    yield rows
    piece.begin()
    for part, row in enumerate(rows):
        piece.write_part(part, [row] if schema is None else table_of([row], schema))
    piece.commit({})


def shown() -> Iterator[Row]:
    return rows_of(PROMPTS, GROUPS)


def test_parts_beyond_the_digits_of_their_names_keep_their_order(tmp_path: Path) -> None:
    names = [f"part-{number:05d}-0123456789ab.arrow" for number in range(100_002)]
    assert sorted(names) != names, "what text makes of them"
    assert in_order(tmp_path, [*sorted(names), "inputs.json"]) == names
    names[7], names[100_000] = "part-00007.jsonl", "part-100000.jsonl"
    assert in_order(tmp_path, sorted(names)) == names


def test_rows_come_in_the_order_of_numbers(tmp_path: Path) -> None:
    """Whatever the names: parts whose numbers are written with fewer digits, and of both kinds."""
    work, piece = tmp_path / ".generations-work", Piece(tmp_path / "generations", "these")
    piece.begin()
    for number in range(12):
        row = {"prompt": str(number), "version": 0, "samples": []}
        piece.write_part(number, [row] if number % 3 else table_of([row], SAMPLES))
    for path in list(work.glob("part-*")):
        path.rename(path.with_name(path.name.replace("part-0000", "part-").replace("part-000", "part-")))
    piece.commit({})
    assert [row["prompt"] for row in piece.rows()] == list(map(str, range(12)))
    assert [part[0]["prompt"] for part in piece.parts()[3:5]] == ["3", "4"]


def test_a_file_that_was_not_committed_is_no_part(tmp_path: Path) -> None:
    piece = generations(tmp_path)
    (first, _) = piece.files()
    (piece.folder / "part-00000-copy.jsonl").write_bytes(first.read_bytes())
    (piece.folder / first.name.replace("part-00000", "part-00002")).write_bytes(first.read_bytes())
    assert list(samples_of(piece, PROMPTS)) == GROUPS


def test_a_part_that_is_not_there_or_there_twice_is_said(tmp_path: Path) -> None:
    piece = Piece(tmp_path / "generations", "these")
    piece.begin()
    for number in (0, 2):
        piece.write_part(number, [])
    piece.commit({})
    with pytest.raises(IntegrityError, match="2 parts, up to number 2, and no part 1"):
        list(piece.rows())
    piece.begin()
    piece.write_part(0, [])
    piece.write_part(0, SAMPLES.empty_table())
    piece.commit({})
    with pytest.raises(IntegrityError, match=r"two files of part 0, part-00000-\w+\.arrow and part-00000\.jsonl"):
        list(piece.rows())


def test_a_part_of_an_earlier_attempt_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    Piece(tmp_path / "generations", "these").begin()
    before = Piece(tmp_path / "generations", "these")
    for number in range(2):
        before.write_part(number, table_of([{"prompt": str(number), "version": 0, "samples": []}], SAMPLES))
    (path,) = tmp_path.glob(".generations-work/part-00001-*")
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    piece = Piece(tmp_path / "generations", "these")
    piece.begin()
    assert piece.numbers() == {0, 1}
    with pytest.raises(IntegrityError, match="was damaged since an earlier attempt wrote it; it was removed"):
        piece.commit({})
    assert piece.numbers() == {0}
    assert not piece.folder.exists()


def test_a_damaged_part_is_not_read(tmp_path: Path) -> None:
    piece = generations(tmp_path)
    path = piece.files()[1]
    flipped = bytearray(path.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    path.write_bytes(flipped)
    assert not piece.is_done
    found = samples_of(piece, PROMPTS)
    assert [next(found), next(found)] == GROUPS[:2]
    with pytest.raises(
        IntegrityError, match=rf"{path.name} cannot be read: .*differs from what was written.*Remove it"
    ):
        next(found)


def test_a_piece_that_was_begun_in_json_lines_goes_on(tmp_path: Path) -> None:
    old, new = (tmp_path / name for name in ("old", "new"))
    assert generations(old, old=True).files()[0].suffix == ".jsonl"
    assert (
        list(samples_of(generations(old, old=True), PROMPTS)) == list(samples_of(generations(new), PROMPTS)) == GROUPS
    )
    begun = Piece(tmp_path / "scores", "these")
    begun.begin()
    done = list(scores(new).parts()[0])
    begun.write_part(0, done)
    asked: list[str] = []

    def judge(prompt: str, answers: list[str]) -> list[float]:
        asked.append(prompt)
        return [float(len(one)) for one in answers]

    judging = Judging(judge, None, EngineSpec("none"))
    judging.judge(Piece(tmp_path / "scores", "these"), lots_of([generations(old, old=True)], PROMPTS, 2), ignore)
    assert asked == ["prompt 2", "prompt 3"]
    assert list(begun.rows()) == list(scores(new).rows())
    assert [path.suffix for path in begun.files()] == [".jsonl", ".arrow"]


def test_samples_are_those_of_their_prompts(tmp_path: Path) -> None:
    assert list(samples_of(generations(tmp_path), PROMPTS)) == GROUPS


@pytest.mark.parametrize(
    ("order", "number"), [([0, 2, 1, 3], 2), ([0, 1, 2], 4), ([0, 1, 2, 3, 3], 5), ([1, 2, 3, 0], 1)]
)
def test_samples_of_other_prompts_are_refused(order: list[int], number: int, tmp_path: Path) -> None:
    piece = generations(tmp_path, order)
    with pytest.raises(IntegrityError, match=f"where those of prompt {number} are expected.*Remove the folder"):
        list(samples_of(piece, PROMPTS))


def test_what_a_judge_is_shown_is_read_part_by_part(tmp_path: Path) -> None:
    piece = generations(tmp_path)
    lots = lots_of([piece, piece], PROMPTS, 2)
    assert list(lots.sizes) == [2, 2]
    assert lots[1] == [("prompt 2", ["aa", "", "aa", ""]), ("prompt 3", ["aaa", "", "aaa", ""])]
    with pytest.raises(IntegrityError, match="holds 2 parts where 4 are expected, one for 1 prompts each"):
        lots_of([piece], PROMPTS, 1)
    swapped = lots_of([generations(tmp_path, [0, 1, 3, 2])], PROMPTS, 2)
    assert len(swapped[0]) == 2
    with pytest.raises(IntegrityError, match="samples of another prompt where those of prompt 3 are expected"):
        _ = swapped[1]


def test_scores_are_those_of_their_rows(tmp_path: Path) -> None:
    assert list(scores_of(scores(tmp_path), shown())) == [[float(number), 0.0] for number in range(4)]


def test_scores_of_other_rows_are_refused(tmp_path: Path) -> None:
    piece = scores(tmp_path)
    with committed_rows(piece, SCORES) as rows:
        rows[1], rows[2] = rows[2], rows[1]
    with pytest.raises(IntegrityError, match="scores of another prompt where those of prompt 2 are expected"):
        list(scores_of(piece, shown()))


def test_as_many_scores_as_answers(tmp_path: Path) -> None:
    piece = scores(tmp_path)
    with committed_rows(piece, SCORES) as rows:
        rows[3]["scores"] = [1.0]
    with pytest.raises(IntegrityError, match="prompt 4"):
        list(scores_of(piece, shown()))


def test_scores_from_before_they_said_what_they_are_of_are_taken(tmp_path: Path) -> None:
    piece = scores(tmp_path)
    with committed_rows(piece) as rows:
        for row in rows:
            del row["judged"]
    assert list(scores_of(piece, shown()))[3] == [3.0, 0.0]
