"""A global batch -> micro-batches for every rank, within a budget of tokens.

Decision: an example (all its answers) is never split, every rank gets the same number of micro-batches (empty ones
fill up), and ranks are balanced by estimated work, most first. The update does not depend on any of it, because objectives
return sums.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

Shares = list[list[list[int]]]
"""[rank][micro-batch] -> positions in the global batch."""


def pack(
    row_lengths: np.ndarray,
    num_ranks: int,
    tokens_per_microbatch: int,
    *,
    is_padded: bool = True,
    work: np.ndarray | None = None,
) -> Shares:
    """Lay out a global batch.

    row_lengths: [E, A] int64, prompt + answer tokens of every answer; not padded: [E, 1], tokens of the example in the
    stream. work: [E], what ranks are balanced by; tokens by default. An example longer than the budget gets a
    micro-batch of its own.
    """
    ranks = balance(row_lengths.sum(axis=1) if work is None else work, num_ranks)
    fill = _fill if is_padded else _fill_stream
    layout = [fill(row_lengths, rank, tokens_per_microbatch) for rank in ranks]
    most = max(len(rank) for rank in layout)
    return [rank + [[] for _ in range(most - len(rank))] for rank in layout]


def balance(work: np.ndarray, num_ranks: int) -> list[list[int]]:
    """Most first, each to the rank with the least so far. Ties go by position and rank: deterministic."""
    heap = [(0.0, rank) for rank in range(num_ranks)]
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    for position in np.argsort(-work, kind="stable").tolist():
        total, rank = heapq.heappop(heap)
        ranks[rank].append(position)
        heapq.heappush(heap, (total + float(work[position]), rank))
    return ranks


def _fill(row_lengths: np.ndarray, positions: list[int], budget: int) -> list[list[int]]:
    # Positions come longest first, so the first of a micro-batch sets its padded length.
    answers = row_lengths.shape[1]
    micro_batches: list[list[int]] = []
    width = 0
    for position in sorted(positions, key=lambda p: (-int(row_lengths[p].max()), p)):
        longest = int(row_lengths[position].max())
        if micro_batches and (len(micro_batches[-1]) + 1) * answers * width <= budget:
            micro_batches[-1].append(position)
        else:
            micro_batches.append([position])
            width = longest
    return micro_batches


def _fill_stream(row_lengths: np.ndarray, positions: list[int], budget: int) -> list[list[int]]:
    # First fit, longest first: leaves little of the budget unused.
    micro_batches: list[list[int]] = []
    free: list[int] = []
    for position in sorted(positions, key=lambda p: (-int(row_lengths[p].sum()), p)):
        length = int(row_lengths[position].sum())
        place = next((place for place, left in enumerate(free) if length <= left), None)
        if place is None:
            micro_batches.append([position])
            free.append(budget - length)
        else:
            micro_batches[place].append(position)
            free[place] -= length
    return micro_batches


def batches_by_length(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Places of `lengths`, shortest first, in batches that padded to their longest have at most that many tokens.

    The cut depends on the lengths alone. One that is longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * lengths[place] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
