"""Rows merged as columns come out as if each had been looked at alone, however they are cut into batches."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raydpo.config.mixture_entry import MixtureEntry
from raydpo.data.encode import Encoded
from raydpo.data.merge import RowMerge
from raydpo.data.mixture import Portion
from raydpo.data.report import Tally
from raydpo.data.row_batch import RowBatch, columns_of
from raydpo.data.row_encoder import Beside, EncodedRow
from raydpo.data.store import Store

HASHES = 1 << 64
ENTRIES = {
    "all": [MixtureEntry(path="a"), MixtureEntry(path="b")],
    "drawn": [MixtureEntry(path="a", count=40), MixtureEntry(path="b", count=7, passes=3)],
    "repeated": [MixtureEntry(path="a", passes=2.4), MixtureEntry(path="b", passes=0.3), MixtureEntry(path="a")],
}


def rows_of(seed: int, number: int = 150) -> list[EncodedRow]:
    draw, found = random.Random(seed), list[EncodedRow]()
    for line in range(number):
        prompt = [draw.randrange(9) for _ in range(draw.randint(1, 2))]
        answers = [[draw.randrange(5)] * draw.randint(1, 2), [7] * draw.randint(1, 4)]
        masks = [[True] * (len(answers[0]) - 1) + [draw.random() < 0.5], None] if draw.random() < 0.2 else ()
        example = Encoded(prompt, answers, hash((seed, *prompt)) % HASHES, answer_masks=masks)
        found.append((f"{seed}:{line}", example, Store.keys(example), Beside(draw.random() < 0.6, draw.random())))
    return found


class Kept(Store):
    """What was added, as rows."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Any]] = {"train": [], "eval": []}

    def add(self, split: str, examples: pa.RecordBatch) -> None:
        self.rows[split] += examples.to_pylist()


def merged(portions: Sequence[tuple[Portion, list[EncodedRow]]], size: int, **how: Any) -> tuple[Kept, Tally]:
    """What comes of the rows in batches of `size`, every other one of which is mapped from a file."""
    tally, kept = Tally(1 + how["is_unpaired"]), Kept()
    merge = RowMerge(tally, kept, tokenizer=None, **how)  # type: ignore[arg-type]
    for split in ("train", "eval"):
        for portion, rows in portions[:-1] if split == "train" else portions[-1:]:
            merge.use(portion, split, in_batches(rows, size))
    return kept, tally


def in_batches(rows: list[EncodedRow], size: int) -> Iterator[RowBatch]:
    for number, start in enumerate(range(0, len(rows), size)):
        yield RowBatch(columns_of(rows[start : start + size]), is_mapped=number % 2 == 0)


def one_by_one(portions: Sequence[tuple[Portion, list[EncodedRow]]], by: str, threshold: int) -> dict[str, list[Any]]:
    """(row, label, factor) of each split: the rule, row by row."""
    seen, used = set[Any](), dict[str, list[Any]]({"train": [], "eval": []})
    for index, (portion, rows) in enumerate(portions):
        own, fresh = set[Any](), list[Any]()
        for row in rows:
            _, example, keys, beside = row
            target = "eval" if index == len(portions) - 1 or example.prompt_hash < threshold else "train"
            mark = {"none": None, "prompt": (target, example.prompt_hash), "pair": (target, keys, beside.label)}[by]
            if mark is None or mark not in seen | own:
                own.add(mark)
                fresh.append((row, target, mark))
        count, chance = portion.entry.count, random.Random(f"{portion.seed} count {portion.entry.path}")
        drawn = list(enumerate(fresh))[:count]
        for number, each in list(enumerate(fresh))[len(drawn) :]:
            if (place := chance.randrange(number + 1)) < len(drawn):
                drawn[place] = (number, each)
        times = portion.times()
        for _, (row, target, mark) in sorted(drawn, key=lambda one: one[0]):
            number = next(times)
            seen.update({mark} if number else ())
            used[target] += [row] * (min(number, 1) if target == "eval" else number)
    return used


@pytest.mark.parametrize("by", ["none", "prompt", "pair"])
@pytest.mark.parametrize("entries", ENTRIES)
def test_batches_are_merged_as_single_rows_are(entries: str, by: str) -> None:
    portions = [
        (Portion(one.path, [], one, 3), rows_of(n)) for n, one in enumerate([*ENTRIES[entries], ENTRIES["all"][1]])
    ]
    used, threshold = one_by_one(portions, by, HASHES // 4), HASHES // 4
    assert used["train"], used["eval"]
    for size in (1, 7, 150):
        kept, tally = merged(portions, size, by=by, threshold=threshold, is_unpaired=False)
        for split, rows in used.items():
            assert [row["source"] for row in kept.rows[split]] == [place for place, *_ in rows]
            for row, (_, example, keys, beside) in zip(kept.rows[split], rows, strict=True):
                assert (row["prompt_ids"], row["answer_ids"]) == (example.prompt_ids, example.answer_ids)
                assert (row["row_keys"], row["label"]) == (list(keys), beside.label)
                assert row["weight"] == np.float32(beside.factor)
                assert [mask or None for mask in row["answer_masks"]] == list(example.masks)
            assert tally.pairs[split] == len(rows)
            assert tally.desirable[split] == sum(beside.label for *_, beside in rows)
            assert tally.num_prompts(split) == len({example.prompt_hash for _, example, *_ in rows})
        once = [row for rows in used.values() for row in {id(row): row for row in rows}.values()]
        assert tally.num_duplicates() == len(once) - len({keys for _, _, keys, _ in once})


def test_two_answers_become_two_examples() -> None:
    rows = rows_of(5)
    portions = [(Portion("a", [], ENTRIES["repeated"][0], 3), rows), (Portion("b", [], ENTRIES["all"][1], 3), rows)]
    kept, tally = merged(portions, 40, by="none", threshold=0, is_unpaired=True)
    for split, used in one_by_one(portions, "none", 0).items():
        expected = [(row, side) for row in used for side in range(2)]
        assert tally.pairs[split] == len(expected) == len(kept.rows[split])
        for row, ((place, example, keys, beside), side) in zip(kept.rows[split], expected, strict=True):
            assert (row["source"], row["prompt_ids"], row["label"]) == (place, example.prompt_ids, side == 0)
            assert (row["answer_ids"], row["row_keys"]) == ([example.answer_ids[side]], [keys[side]])
            assert row["answer_masks"] == [example.masks[side] or []]
            assert row["weight"] == np.float32(beside.factor)


def test_what_is_held_of_a_draw_is_what_was_drawn() -> None:
    """Rows that are in memory alone are let go when others take their place."""
    portion, held = Portion("a", [], MixtureEntry(path="a", count=5), 0), list[int]()

    class Watched:
        def __init__(self, rows: range) -> None:
            self.rows = rows

        def __len__(self) -> int:
            return len(self.rows)

        def take(self, chosen: np.ndarray) -> Watched:
            return Watched([self.rows[place] for place in chosen.tolist()])  # type: ignore[arg-type]

        def kept(self) -> Watched:
            held.append(len(self))
            return self

    drawn = [
        row for batch in portion.sample(Watched(range(n, n + 10)) for n in range(0, 1000, 10)) for row in batch.rows
    ]
    assert drawn == sorted(drawn)
    assert len(drawn) == 5
    assert sum(held) < 60, "5 and those that were replaced, 5 ln(200) on average"


def test_the_digest_of_a_row_is_that_of_its_keys() -> None:
    rows = rows_of(1, 60)
    found = Counter(map(tuple, RowBatch(columns_of(rows)).digests.tolist()))
    assert sorted(found.values()) == sorted(Counter(keys for _, _, keys, _ in rows).values())
    swapped = [(place, example, keys[::-1], beside) for place, example, keys, beside in rows]
    assert not found.keys() & set(map(tuple, RowBatch(columns_of(swapped)).digests.tolist()))
