"""The reference pass itself: rows in, per-token log-probs out. Knows neither files nor Ray.

Decision: rows are scored in the order they come, in batches cut by tokens, so that a value depends on the rows of its
own list alone. Answers to one prompt share it when they follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from raydpo.batches import lay_out
from raydpo.batches.collate import Rows
from raydpo.models.layout import Layout
from raydpo.models.logprobs import AnswerLogProbs


@torch.no_grad()
def score_rows(
    scoring: AnswerLogProbs, rows: Rows, tokens_per_batch: int, layout: Layout, device: torch.device | str
) -> tuple[list[np.ndarray], int]:
    """Log-probs of the answer tokens of every row, [answer tokens] float32 nats each, and the number of forwards."""
    values: list[np.ndarray] = []
    forwards = 0
    lengths = [len(prompt) + len(answer) for prompt, answer in rows]
    for start, stop in cut_batches(lengths, tokens_per_batch, is_padded=layout == "padded"):
        batch = rows[start:stop]
        nats = scoring(lay_out(batch, layout).to(device)).float().cpu().numpy()
        forwards += 1
        values += np.split(nats, np.cumsum([len(answer) for _, answer in batch])[:-1])
    return values, forwards


def cut_batches(lengths: Sequence[int], tokens_per_batch: int, *, is_padded: bool = True) -> Iterator[tuple[int, int]]:
    """Cut rows into [start, stop) batches of at most `tokens_per_batch` tokens, padded to the longest or one by one.

    A row longer than the budget gets a batch of its own.
    """
    start = 0
    for stop in range(1, len(lengths) + 1):
        more = lengths[start : stop + 1]
        is_full = (max(more) * len(more) if is_padded else sum(more)) > tokens_per_batch
        if stop == len(lengths) or is_full:
            yield start, stop
            start = stop
