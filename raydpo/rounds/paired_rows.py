"""Which samples and scores belong to which prompt: rows of committed pieces, compared with what they are paired with.

Comes in: committed pieces and the prompts. Goes out: samples, scores, and what a judge is shown, in that order, of one part of
a piece at a time. Decision: a place in a file is no proof, so each row carries what it was made from, and one that carries
something else ends the run. Rows of scores from before they did are taken by their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from raydpo.driver.judge_lots import JudgeLots
from raydpo.driver.judges import texts
from raydpo.driver.open_judging import judged_digest
from raydpo.errors import IntegrityError
from raydpo.judge.verdict import Row
from raydpo.rundir.on_demand import OnDemand
from raydpo.rundir.piece import Piece
from raydpo.rundir.rounds_folder import chunks
from raydpo.schema.samples import Prompt, Sample

Scores = Sequence[float] | None
"""Of the answers to a prompt; None where the judge failed."""


def samples_of(piece: Piece, prompts: Sequence[Prompt]) -> Iterator[tuple[Sample, ...]]:
    """The samples of each of `prompts`. Raises IntegrityError where the piece holds those of another one."""
    return _samples(piece, prompts, piece.rows(), first=1)


def _samples(
    piece: Piece, prompts: Sequence[Prompt], rows: Iterable[Mapping[str, Any]], first: int
) -> Iterator[tuple[Sample, ...]]:
    """first: number of the first prompt, for messages."""
    for number, (prompt, row) in enumerate(zip_longest(prompts, rows), start=first):
        if prompt is None or row is None or row.get("prompt") != prompt.key:
            raise _misplaced(piece, number, "samples", row)
        yield tuple(Sample(tuple(s["ids"]), s["text"], s["ending"]) for s in row["samples"])


def rows_of(prompts: Iterable[Prompt], groups: Iterable[Sequence[Sample]]) -> Iterator[Row]:
    """What a judge is shown of each prompt."""
    return ((prompt.text, texts(samples)) for prompt, samples in zip(prompts, groups, strict=True))


def beside(pieces: Sequence[Piece], prompts: Sequence[Prompt]) -> Iterator[tuple[Sample, ...]]:
    """The samples of each prompt, those of several pieces one after the other."""
    return map(_joined, *(samples_of(piece, prompts) for piece in pieces))


def batches_of(piece: Piece, prompts: Sequence[Prompt], size: int) -> OnDemand[list[tuple[Sample, ...]]]:
    """The samples of each `size` prompts, which are a part of the piece; one is read when it is asked for. IntegrityError as
    `samples_of`, then."""
    lots, parts = chunks(prompts, size), piece.parts()
    if len(parts) != len(lots):
        raise IntegrityError(
            f"{piece.folder} holds {len(parts)} parts where {len(lots)} are expected, one for {size} prompts each. Nothing was "
            "made from it. Remove the folder: the same command makes it again."
        )
    return OnDemand(len(lots), lambda number: list(_samples(piece, lots[number], parts[number], number * size + 1)))


def lots_of(pieces: Sequence[Piece], prompts: Sequence[Prompt], prompts_per_lot: int) -> JudgeLots:
    """What a judge is shown of all prompts: a part of each of `pieces` at a time, their samples one after the other. Raises
    IntegrityError, also when a batch is asked for."""
    lots, batches = chunks(prompts, prompts_per_lot), [batches_of(piece, prompts, prompts_per_lot) for piece in pieces]

    def make(number: int) -> list[Row]:
        return list(rows_of(lots[number], map(_joined, *(of_piece[number] for of_piece in batches))))

    return JudgeLots([len(lot) for lot in lots], make)


def open_lots(piece: Piece, prompts: Sequence[Prompt], prompts_per_lot: int) -> JudgeLots:
    """The same of one piece that need not be committed: a batch is read from its part, which must be there then."""
    lots = chunks(prompts, prompts_per_lot)

    def make(number: int) -> list[Row]:
        return list(rows_of(lots[number], open_groups(piece, lots[number], number, prompts_per_lot)))

    return JudgeLots([len(lot) for lot in lots], make)


def open_groups(piece: Piece, prompts: Sequence[Prompt], number: int, size: int) -> Iterator[tuple[Sample, ...]]:
    """The samples of each of `prompts`, which are those of part `number` of a piece that need not be committed."""
    return _samples(piece, prompts, piece.part(number), number * size + 1)


def _joined(*groups: tuple[Sample, ...]) -> tuple[Sample, ...]:
    return tuple(sample for group in groups for sample in group)


def scores_of(piece: Piece, judged: Iterable[Row]) -> Iterator[Scores]:
    """The scores of each row. Raises IntegrityError where the piece holds those of another one."""
    for number, (shown, row) in enumerate(zip_longest(judged, piece.rows()), start=1):
        yield _scores(piece, number, shown, row)


def scored_samples(
    generations: Piece, scores: Piece | None, prompts: Sequence[Prompt]
) -> Iterator[tuple[Prompt, tuple[Sample, ...], Scores]]:
    """Each prompt with its samples and their scores, None where nobody judged. Raises IntegrityError as both."""
    if scores is None:
        yield from ((*both, None) for both in zip(prompts, samples_of(generations, prompts), strict=True))
        return
    triples = zip_longest(prompts, samples_of(generations, prompts), scores.rows())
    for number, (prompt, samples, row) in enumerate(triples, start=1):
        shown = None if prompt is None else (prompt.text, texts(samples))
        yield prompt, samples, _scores(scores, number, shown, row)


def _scores(piece: Piece, number: int, shown: Row | None, row: Mapping[str, Any] | None) -> Scores:
    if shown is None or row is None or row.get("judged", digest := judged_digest(shown)) != digest:
        raise _misplaced(piece, number, "scores", row)
    scores: Scores = row["scores"]
    if scores is not None and len(scores) != len(shown[1]):
        raise _misplaced(piece, number, "scores", row)
    return scores


def _misplaced(piece: Piece, number: int, what: str, row: Mapping[str, Any] | None) -> IntegrityError:
    there = "nothing" if row is None else f"{what} of another prompt"
    return IntegrityError(
        f"{piece.folder} holds {there} where those of prompt {number} are expected; answers and scores of different "
        "prompts would have been paired. Nothing was made from it. Remove the folder: the same command makes it again."
    )
