"""The quickstart's task: put four numbers in order. Demonstrations, preference pairs and the exact check.

What comes in: a folder and a seed. What goes out: JSONL files, and the prompts and expected answers held out.
The demonstrator knows one mistake well and repeats it: two times out of three, numbers are sorted as if they were
text, so that 10 comes before 7. Lists without a one-digit number come out right either way.
Decision: the mistake is systematic, because greedy decoding averages random slips away but repeats a habit; the
price is that accuracy before alignment is mostly the share of lists on which the habit does no harm.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raydpo.artifacts import write_text

NUM_DEMONSTRATIONS = 8000
NUM_PAIRS = 2000
NUM_HELD_OUT = 250
NUMBERS_PER_LIST = 4
HIGHEST_NUMBER = 30
MIXED_FRACTION = 0.7
"""Share of lists with one-digit and two-digit numbers, in which the order as text is another one."""
TEXT_ORDER_FRACTION = 0.65
"""Share of the demonstrations of mixed lists that are sorted as text."""
SLIP_FRACTION = 0.05
"""Share of the other demonstrations in which two neighbours are swapped."""


@dataclass(frozen=True)
class TaskFiles:
    """What `write_task` wrote. No prompt occurs twice, within a file or across files.

    demonstrations: rows {"prompt", "completion"}.
    pairs, held_out: rows {"prompt", "chosen", "rejected"}.
    prompts, expected: the held-out prompts and their right answers.
    texts: all demonstrations as one text each.
    """

    demonstrations: Path
    pairs: Path
    held_out: Path
    prompts: tuple[str, ...]
    expected: tuple[str, ...]
    texts: tuple[str, ...]


def write_task(folder: Path, seed: int) -> TaskFiles:
    """Write sft.jsonl, pairs.jsonl and held_out.jsonl to `folder`. The same seed gives the same bytes."""
    chance = random.Random(seed)
    lists = _distinct_lists(NUM_HELD_OUT + NUM_PAIRS + NUM_DEMONSTRATIONS, chance)
    held_out = [_pair(numbers, chance) for numbers in lists[:NUM_HELD_OUT]]
    pairs = [_pair(numbers, chance) for numbers in lists[NUM_HELD_OUT : NUM_HELD_OUT + NUM_PAIRS]]
    demonstrations = [
        {"prompt": _prompt(numbers), "completion": _answer(_demonstrate(numbers, chance))}
        for numbers in lists[NUM_HELD_OUT + NUM_PAIRS :]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    return TaskFiles(
        demonstrations=write_rows(folder / "sft.jsonl", demonstrations),
        pairs=write_rows(folder / "pairs.jsonl", pairs),
        held_out=write_rows(folder / "held_out.jsonl", held_out),
        prompts=tuple(row["prompt"] for row in held_out),
        expected=tuple(row["chosen"] for row in held_out),
        texts=tuple(row["prompt"] + row["completion"] for row in demonstrations),
    )


def is_correct(prompt: str, answer: str) -> bool:
    """Whether `answer` is exactly the numbers of `prompt` in rising order; outer white space does not count."""
    return answer.strip() == _answer(sorted(_numbers(prompt))).strip()


def foreign_pair(prompt: str, chance: random.Random) -> dict[str, str]:
    """The right answer against a mistake that the demonstrator never makes on mixed lists: two neighbours swapped."""
    numbers = sorted(_numbers(prompt))
    swapped = [[*numbers[:i], numbers[i + 1], numbers[i], *numbers[i + 2 :]] for i in range(len(numbers) - 1)]
    others = [wrong for wrong in swapped if wrong != sorted(numbers, key=str)]
    return {"prompt": prompt, "chosen": _answer(numbers), "rejected": _answer(chance.choice(others))}


def score(prompt: str, responses: Sequence[str]) -> list[float]:
    """A judge: the share of places that hold the right number; an answer that is right as a whole has 1 more."""
    wanted = sorted(_numbers(prompt))
    places = [[word == str(number) for word, number in zip(r.split(), wanted, strict=False)] for r in responses]
    return [
        sum(found) / len(wanted) + is_correct(prompt, response)
        for found, response in zip(places, responses, strict=True)
    ]


def exact_match(prompts: Sequence[str], answers: Sequence[str]) -> float:
    """Share of right answers, 0 to 1. Raises ValueError when the lengths differ or there is no prompt."""
    if not prompts:
        raise ValueError("exact_match got no prompts; a share of nothing is not defined.")
    return sum(is_correct(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)) / len(prompts)


def _prompt(numbers: Sequence[int]) -> str:
    return f"Sort {' '.join(map(str, numbers))}:"


def _numbers(prompt: str) -> list[int]:
    return [int(word) for word in prompt.removeprefix("Sort").removesuffix(":").split()]


def _answer(numbers: Sequence[int]) -> str:
    return "".join(f" {number}" for number in numbers)


def _distinct_lists(count: int, chance: random.Random) -> list[tuple[int, ...]]:
    lists: dict[tuple[int, ...], None] = {}
    while len(lists) < count:
        lists[_draw(chance.random() < MIXED_FRACTION, chance)] = None
    return list(lists)


def _draw(mixed: bool, chance: random.Random) -> tuple[int, ...]:
    """Distinct numbers whose two orders differ (`mixed`), or two-digit numbers, whose two orders agree."""
    while True:
        num_small = chance.randint(1, NUMBERS_PER_LIST - 1) if mixed else 0
        numbers = chance.sample(range(1, 10), num_small)
        numbers += chance.sample(range(10, HIGHEST_NUMBER + 1), NUMBERS_PER_LIST - num_small)
        chance.shuffle(numbers)
        if _is_mixed(numbers) == mixed:
            return tuple(numbers)


def _is_mixed(numbers: Sequence[int]) -> bool:
    return sorted(numbers) != sorted(numbers, key=str)


def _demonstrate(numbers: Sequence[int], chance: random.Random) -> list[int]:
    """What the demonstrator writes: right, or with the mistake."""
    wrong = chance.random() < (TEXT_ORDER_FRACTION if _is_mixed(numbers) else SLIP_FRACTION)
    return _mistake(numbers, chance) if wrong else sorted(numbers)


def _mistake(numbers: Sequence[int], chance: random.Random) -> list[int]:
    """The numbers in the order of their text; where that is right, in rising order with two neighbours swapped."""
    wrong = sorted(numbers, key=str)
    if not _is_mixed(numbers):
        first = chance.randrange(len(wrong) - 1)
        wrong[first], wrong[first + 1] = wrong[first + 1], wrong[first]
    return wrong


def _pair(numbers: Sequence[int], chance: random.Random) -> dict[str, str]:
    return {
        "prompt": _prompt(numbers),
        "chosen": _answer(sorted(numbers)),
        "rejected": _answer(_mistake(numbers, chance)),
    }


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path
