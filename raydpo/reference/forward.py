"""The reference pass itself: rows in, per-token log-probs out. Knows neither files nor Ray.

Decision: rows are scored in the order they come, in batches cut by the tokens that the model reads, so that a value
depends on the rows of its own list alone. Answers to one prompt that follow each other share it. A batch that does not fit
into memory is done in halves, which changes values in their last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from raydpo.batches import lay_out
from raydpo.batches.micro_batches import Masks, Rows, loss_ends
from raydpo.errors import OutOfMemoryError
from raydpo.models.halving import in_halves
from raydpo.models.layout import Layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.schema.pulse import beat

TooMuch = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class RowList:
    """Rows that are cut into batches for themselves. masks: as of `lay_out`. tokens_per_batch: of one forward, at most."""

    rows: Rows
    masks: Masks
    tokens_per_batch: int


@torch.no_grad()
def score_rows(
    scoring: AnswerLogProbs,
    rows: Rows,
    tokens_per_batch: int,
    layout: Layout,
    device: torch.device | str,
    masks: Masks = (),
    too_much: TooMuch = lambda tokens, num_rows, reason: None,
) -> tuple[list[np.ndarray], int]:
    """Log-probs of the answer tokens of every row that the loss covers, float32 nats, and the number of forwards.

    too_much: called with tokens and rows of each batch that did not fit, and the reason. Raises OutOfMemoryError for a row
    that does not fit alone.
    """
    values: list[np.ndarray] = []
    forwards = 0

    def forward(start: int, stop: int) -> list[np.ndarray]:
        batch, of_batch = rows[start:stop], masks[start:stop]
        nats = scoring(lay_out(batch, layout, of_batch).to(device)).float().cpu().numpy()
        beat()
        return np.split(nats, loss_ends(batch, of_batch))

    def note(start: int, stop: int, reason: str) -> None:
        num_tokens = lay_out(rows[start:stop], layout, masks[start:stop]).input_ids.numel()
        if stop - start > 1:
            too_much(num_tokens, stop - start, reason)
        else:
            raise no_room_for_row(num_tokens, reason)

    for start, stop in cut(rows, tokens_per_batch, layout):
        for part in in_halves(start, stop, forward, note):
            forwards += 1
            values += part
    return values, forwards


def no_room_for_row(num_tokens: int, reason: str) -> OutOfMemoryError:
    """The error of a row that does not fit alone."""
    return OutOfMemoryError(
        f"a row of {num_tokens:,} tokens did not fit into the memory of a reference worker ({reason}). One row cannot "
        "be split: run fewer workers on a node (reference.num_workers), score in bfloat16 (model.dtype), or lower "
        "data.max_length."
    )


def cut(rows: Rows, tokens_per_batch: int, layout: Layout) -> Iterator[tuple[int, int]]:
    """Cut rows into [start, stop) batches, as the layout counts their tokens."""
    return (cut_stream if layout == "packed" else cut_padded)(rows, tokens_per_batch)


def cut_padded(rows: Rows, tokens_per_batch: int) -> Iterator[tuple[int, int]]:
    """Cut rows into [start, stop) batches of at most `tokens_per_batch` tokens when padded to the longest.

    A row longer than the budget gets a batch of its own.
    """
    start = longest = 0
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        longest = max(longest, length)
        if row > start and longest * (row + 1 - start) > tokens_per_batch:
            yield start, row
            start, longest = row, length
    if rows:
        yield start, len(rows)


def cut_stream(rows: Rows, tokens_per_batch: int) -> Iterator[tuple[int, int]]:
    """Cut rows into [start, stop) batches of at most `tokens_per_batch` tokens, a prompt that rows share counted once.

    Answers to one prompt are split only where they do not fit into a batch of their own, and two of them never: a pair
    stays whole, as in the trainer.
    """
    start = first = used = before = 0  # first: row where the prompt begins; before: tokens of the batch in front of it
    for row, (prompt, answer) in enumerate(rows):
        is_shared = row > first and np.array_equal(prompt, rows[first][0])
        if not is_shared:
            first, before = row, used
        cost = len(answer) + (0 if is_shared else len(prompt))
        while used + cost > tokens_per_batch and row > start and (first, row) != (start, start + 1):
            if first > start:
                yield start, first
                start, used, before = first, used - before, 0
            else:
                yield start, row
                start = first = row
                used, cost = 0, len(prompt) + len(answer)
        used += cost
    if rows:
        yield start, len(rows)
