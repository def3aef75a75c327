"""Which rows have no reference log-probs yet, cut into shards. Runs on the driver, loads no model.

Decision: missing rows are sorted by prompt, prompts by their longest row, and cut every `rows_per_shard` rows: answers
to one prompt stand together and can share it, also those of several examples; rows of like length too. Taking whole
shards out of such a list leaves the other cuts where they were, so a run that goes on after a kill scores the same
batches, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from raydpo.artifacts import ExampleTable, ReferenceCache
from raydpo.models.agreement import probe_examples


@dataclass(frozen=True)
class ShardWork:
    """Rows to score, which become one shard.

    name: of the shard.
    places: (split, example, answer) of each row.
    keys, lengths: of each row, in the same order.
    num_answer_tokens: of all rows: as many values come out.
    is_probe: their values go back to the driver, and nothing is committed.
    budget_share: part of the token budget of a batch that they are scored with.
    is_claimed: a run that scores it claims it first, and leaves it if another has it.
    """

    name: str
    places: tuple[tuple[str, int, int], ...]
    keys: tuple[str, ...]
    lengths: tuple[int, ...]
    num_answer_tokens: int = 0
    is_probe: bool = False
    budget_share: float = 1.0
    is_claimed: bool = True

    def lighter(self) -> ShardWork:
        """The same rows in batches of half the tokens; their values change in the last digits."""
        return replace(self, budget_share=self.budget_share / 2)


@dataclass(frozen=True)
class Wanted:
    """Rows of a run, each once.

    keys: distinct keys.
    places: (split, example, answer) where each first appears.
    lengths: prompt + answer tokens there.
    prompts: index of the prompt of each row; prompts are numbered as they first appear.
    answers: answer tokens of each row.
    """

    keys: tuple[str, ...]
    places: tuple[tuple[str, int, int], ...]
    lengths: np.ndarray
    prompts: tuple[int, ...]
    answers: tuple[int, ...] = ()


def wanted_rows(
    data: Path, splits: Iterable[str], num_answers: int, examples: Mapping[str, np.ndarray] | None = None
) -> Wanted:
    """Every distinct row of `splits` in the token shards of `data`.

    examples: split -> the examples whose rows are wanted; a split that is not in it is wanted whole.
    """
    places: dict[str, tuple[str, int, int]] = {}
    lengths: dict[str, int] = {}
    answers: list[int] = []
    prompts: dict[str, int] = {}
    numbers: dict[bytes, int] = {}
    for split in splits:
        table = ExampleTable.open(data, split)
        rows = table.answer_lengths[:, :num_answers] + table.prompt_lengths[:, None] if len(table) else np.zeros((0, 0))
        chosen = range(len(table)) if examples is None or split not in examples else examples[split].tolist()
        for example in chosen:
            number = numbers.setdefault(table.prompt_ids(example).tobytes(), len(numbers))
            for answer, key in enumerate(table.row_keys(example)[:num_answers]):
                if key not in places:
                    places[key] = (split, example, answer)
                    lengths[key], prompts[key] = int(rows[example, answer]), number
                    answers.append(int(table.answer_lengths[example, answer]))
    sizes = np.fromiter(lengths.values(), np.int64, len(lengths))
    return Wanted(tuple(places), tuple(places.values()), sizes, tuple(prompts.values()), tuple(answers))


def plan_shards(wanted: Wanted, cache: ReferenceCache, rows_per_shard: int) -> list[ShardWork]:
    """The work that is still to do. An empty list: every row is in the cache."""
    index = {key: i for i, key in enumerate(wanted.keys)}
    missing = [index[key] for key in cache.missing(list(wanted.keys))]
    longest: dict[int, int] = {}
    for prompt, length in zip(wanted.prompts, wanted.lengths.tolist(), strict=True):
        longest[prompt] = max(length, longest.get(prompt, 0))
    missing.sort(key=lambda i: (longest[wanted.prompts[i]], wanted.prompts[i], wanted.places[i]))
    return [_shard(wanted, missing[i : i + rows_per_shard]) for i in range(0, len(missing), rows_per_shard)]


def probe_work(data: Path, num_answers: int) -> ShardWork:
    """Rows of the training split that are scored a second time and must come out the same, all in one shard."""
    table = ExampleTable.open(data, "train")
    lengths = table.prompt_lengths + table.answer_lengths[:, :num_answers].sum(axis=1)
    examples = probe_examples(lengths)
    rows = [(example, answer) for example in examples for answer in range(num_answers)]
    return ShardWork(
        name="probe",
        places=tuple(("train", example, answer) for example, answer in rows),
        keys=tuple(table.row_keys(example)[answer] for example, answer in rows),
        lengths=tuple(int(table.prompt_lengths[e] + table.answer_lengths[e, a]) for e, a in rows),
        is_probe=True,
    )


def _shard(wanted: Wanted, rows: list[int]) -> ShardWork:
    keys = tuple(wanted.keys[i] for i in rows)
    name = hashlib.sha256("".join(keys).encode()).hexdigest()[:24]
    places, lengths = tuple(wanted.places[i] for i in rows), tuple(int(wanted.lengths[i]) for i in rows)
    return ShardWork(name, places, keys, lengths, sum(wanted.answers[i] for i in rows if wanted.answers))
