"""Which samples and scores belong to which prompt: rows of committed pieces, compared with what they are paired with.

Comes in: a committed piece and the prompts, or the rows that were judged. Goes out: samples or scores in that order.
Decision: a place in a file is no proof, so each row carries what it was made from, and one that carries something else ends
the run. Rows of scores from before they did are taken by their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from raydpo.driver.judges import judged_digest, texts
from raydpo.errors import IntegrityError
from raydpo.judge.verdict import Row
from raydpo.rundir.piece import Piece
from raydpo.schema.samples import Prompt, Sample

Scores = Sequence[float] | None
"""Of the answers to a prompt; None where the judge failed."""


def rows_of(prompts: Sequence[Prompt], groups: Sequence[Sequence[Sample]]) -> list[Row]:
    """What a judge is shown of each prompt."""
    return [(prompt.text, texts(samples)) for prompt, samples in zip(prompts, groups, strict=True)]


def samples_of(piece: Piece, prompts: Sequence[Prompt]) -> Iterator[tuple[Sample, ...]]:
    """The samples of each of `prompts`. Raises IntegrityError where the piece holds those of another one."""
    for number, (prompt, row) in enumerate(zip_longest(prompts, piece.rows()), start=1):
        if prompt is None or row is None or row.get("prompt") != prompt.key:
            raise _misplaced(piece, number, "samples", row)
        yield tuple(Sample(tuple(s["ids"]), s["text"], s["ending"]) for s in row["samples"])


def scores_of(piece: Piece, judged: Sequence[Row]) -> list[Scores]:
    """The scores of each row. Raises IntegrityError where the piece holds those of another one."""
    found: list[Scores] = []
    for number, (shown, row) in enumerate(zip_longest(judged, piece.rows()), start=1):
        if shown is None or row is None or row.get("judged", digest := judged_digest(shown)) != digest:
            raise _misplaced(piece, number, "scores", row)
        scores: Scores = row["scores"]
        if scores is not None and len(scores) != len(shown[1]):
            raise _misplaced(piece, number, "scores", row)
        found.append(scores)
    return found


def _misplaced(piece: Piece, number: int, what: str, row: Mapping[str, Any] | None) -> IntegrityError:
    there = "nothing" if row is None else f"{what} of another prompt"
    return IntegrityError(
        f"{piece.folder} holds {there} where those of prompt {number} are expected; answers and scores of different "
        "prompts would have been paired. Nothing was made from it. Remove the folder: the same command makes it again."
    )
