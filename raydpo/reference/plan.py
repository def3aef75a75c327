"""Which rows have no reference log-probs yet, cut into shards. Runs on the driver, loads no model.

Decision: missing rows are sorted by prompt, prompts by their longest row, and cut every `rows_per_shard` rows: answers
to one prompt stand together and can share it, also those of several examples; rows of like length too. Taking whole
shards out of such a list leaves the other cuts where they were, so a run that goes on after a kill scores the same
batches, bit for bit.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from raydpo.artifacts import ExampleTable
from raydpo.models.agreement import probe_examples
from raydpo.schema.rows import KEY_LENGTH


class Cache(Protocol):
    """What a plan asks of a cache. keys: [n] S32; the answer: [n] bool."""

    def holds(self, keys: np.ndarray) -> np.ndarray: ...


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


@dataclass(frozen=True, eq=False)
class Wanted:
    """Rows of a run, each once, in the order in which they first appear. All columns have an entry a row.

    keys: distinct keys, S32.
    splits: names; `split` [n] int8 is the index in them.
    example, answer: [n] int64, where the row first appears.
    lengths: [n] int64, prompt + answer tokens there.
    prompts: [n] int64, equal for equal prompts, smaller for those that appear before.
    answers: [n] int64, answer tokens.
    """

    keys: np.ndarray
    splits: tuple[str, ...]
    split: np.ndarray
    example: np.ndarray
    answer: np.ndarray
    lengths: np.ndarray
    prompts: np.ndarray
    answers: np.ndarray

    def places(self, rows: np.ndarray | slice) -> tuple[tuple[str, int, int], ...]:
        """(split, example, answer) of some rows."""
        columns = (self.split[rows].tolist(), self.example[rows].tolist(), self.answer[rows].tolist())
        return tuple((self.splits[split], example, answer) for split, example, answer in zip(*columns, strict=True))


def wanted_rows(
    data: Path, splits: Iterable[str], num_answers: int, examples: Mapping[str, np.ndarray] | None = None
) -> Wanted:
    """Every distinct row of `splits` in the token shards of `data`.

    examples: split -> the examples whose rows are wanted; a split that is not in it is wanted whole.
    """
    names, found, prompts = tuple(splits), list[_Rows](), list[np.ndarray]()
    for number, split in enumerate(names):
        table = ExampleTable.open(data, split)
        chosen = None if examples is None else examples.get(split)
        found.append(_rows_of(table, number, num_answers, chosen))
        prompts.append(_prompt_digests(table, chosen))
    columns = [column[0] if len(names) == 1 else np.concatenate(column) for column in zip(*found, strict=True)]
    del found
    keys, split_of, example, answer, lengths, answers = columns
    prompt = np.repeat(_first_alike(np.concatenate(prompts)), len(keys) // max(1, sum(map(len, prompts))))
    first = _first_places(keys)
    return Wanted(
        keys[first],
        names,
        split_of[first],
        example[first],
        answer[first],
        lengths[first],
        prompt[first],
        answers[first],
    )


def _first_places(keys: np.ndarray) -> np.ndarray | slice:
    """Where each distinct key is for the first time, in rising order; everywhere, if no key is there twice."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    is_first = np.concatenate([np.ones(len(keys[:1]), bool), in_order[1:] != in_order[:-1]])
    return slice(None) if is_first.all() else np.sort(order[is_first])


_Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _rows_of(table: ExampleTable, split: int, num_answers: int, chosen: np.ndarray | None) -> _Rows:
    """Columns of the rows of a split, example by example: key, split, example, answer, length, answer tokens."""
    keys, start = np.empty((len(table), num_answers), f"S{KEY_LENGTH}"), 0
    for chunk in table.chunks():
        keys[start : start + len(chunk)] = chunk.key_bytes()[:, :num_answers]
        start += len(chunk)
    answers = table.answer_lengths[:, :num_answers].astype(np.int64)
    prompts, example = table.prompt_lengths.astype(np.int64), np.arange(len(table))
    if chosen is not None:
        example = np.asarray(chosen, np.int64)
        keys, answers, prompts = keys[example], answers[example], prompts[example]
    return (
        keys.reshape(-1),
        np.full(answers.size, split, np.int8),
        np.repeat(example, answers.shape[1]),
        np.tile(np.arange(answers.shape[1]), len(example)),
        (prompts[:, None] + answers).reshape(-1),
        answers.reshape(-1),
    )


def _prompt_digests(table: ExampleTable, chosen: np.ndarray | None) -> np.ndarray:
    """Of the prompt of each example 128 bits: [n, 2] uint64."""
    places = range(len(table)) if chosen is None else chosen.tolist()
    text = b"".join(hashlib.blake2b(table.prompt_ids(place).data, digest_size=16).digest() for place in places)
    return np.frombuffer(text, np.uint64).reshape(-1, 2)


def _first_alike(digests: np.ndarray) -> np.ndarray:
    """For each row the first row that is equal to it: [n] int64."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    in_order = digests[order]
    is_first = np.ones(len(digests), bool)
    is_first[1:] = (in_order[1:] != in_order[:-1]).any(axis=1)
    found = np.empty(len(digests), np.int64)
    found[order] = order[is_first][np.cumsum(is_first) - 1]
    return found


class Shards(Sequence[ShardWork]):
    """Shards in order, each written down when it is asked for. A subclass says how many there are."""

    @overload
    def __getitem__(self, number: int) -> ShardWork: ...
    @overload
    def __getitem__(self, number: slice) -> list[ShardWork]: ...
    def __getitem__(self, number: int | slice) -> ShardWork | list[ShardWork]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        return self.at(range(len(self))[number])

    @abstractmethod
    def at(self, number: int) -> ShardWork:
        """Shard `number`, from 0."""


class ShardPlan(Shards):
    """Shards that are to be scored, in order; each is written down when it is asked for.

    num_rows, num_answer_tokens: of all of them.
    """

    def __init__(self, wanted: Wanted, order: np.ndarray, rows_per_shard: int) -> None:
        self._wanted, self._order, self._rows_per_shard = wanted, order, rows_per_shard
        self.num_rows, self.num_answer_tokens = len(order), int(wanted.answers[order].sum())

    def __len__(self) -> int:
        return -(-len(self._order) // self._rows_per_shard)

    def at(self, number: int) -> ShardWork:
        start = number * self._rows_per_shard
        rows, wanted = self._order[start : start + self._rows_per_shard], self._wanted
        keys = wanted.keys[rows]
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:24]
        texts = tuple(key.decode() for key in keys.tolist())
        lengths = tuple(wanted.lengths[rows].tolist())
        return ShardWork(name, wanted.places(rows), texts, lengths, int(wanted.answers[rows].sum()))


def plan_shards(wanted: Wanted, cache: Cache, rows_per_shard: int) -> ShardPlan:
    """The work that is still to do. An empty plan: every row is in the cache."""
    missing = np.flatnonzero(~cache.holds(wanted.keys))
    numbers, group = np.unique(wanted.prompts, return_inverse=True)
    longest = np.zeros(len(numbers), np.int64)
    np.maximum.at(longest, group, wanted.lengths)
    by_name = np.argsort(np.argsort(wanted.splits))  # the rank of each split's name
    columns = (wanted.answer, wanted.example, by_name[wanted.split], wanted.prompts, longest[group])
    order = np.lexsort(tuple(column[missing] for column in columns))
    return ShardPlan(wanted, missing[order], rows_per_shard)


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
