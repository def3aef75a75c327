"""The rows of a shard, read from the token shards of a run, and what their values must be before they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from raydpo.artifacts import ExampleTable
from raydpo.errors import IntegrityError
from raydpo.reference.forward import RowList
from raydpo.reference.plan import ShardWork


class ShardRows:
    """Rows of the splits in `data`, which are opened at the first row of each."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._tables: dict[str, ExampleTable] = {}

    def of(self, work: ShardWork, tokens_per_batch: int) -> RowList:
        """Rows of a shard in its order, to be cut into batches of so many tokens, fewer where the shard was lightened."""
        rows = [self.row(place) for place in work.places]
        masks = [self._table(split).answer_masks(example)[answer] for split, example, answer in work.places]
        return RowList(rows, masks, max(1, int(tokens_per_batch * work.budget_share)))

    def row(self, place: tuple[str, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and answer ids of (split, example, answer)."""
        split, example, answer = place
        table = self._table(split)
        return table.prompt_ids(example), table.answer_ids(example)[answer]

    def check(self, work: ShardWork, values: Sequence[np.ndarray]) -> None:
        """Raises IntegrityError with the source of the row when a value is no log-probability."""
        for place, nats in zip(work.places, values, strict=True):
            if not (np.isfinite(nats).all() and (nats <= 0).all()):
                raise IntegrityError(
                    f"the reference gives {nats[~(np.isfinite(nats) & (nats <= 0))][0]} nats for a token of "
                    f"{self._table(place[0]).source(place[1])}; a log-probability is finite and at most 0. The shard was not "
                    "written. Score in float32 (model.dtype), or look at the weights of the reference."
                )

    def _table(self, split: str) -> ExampleTable:
        if split not in self._tables:
            self._tables[split] = ExampleTable.open(self._data, split)
        return self._tables[split]
