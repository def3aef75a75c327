"""What the soaks came to: one result each in a JSON file under version control, and the page that is made of all.

Decision: the page holds what was run and what was seen, a line a command, with failures; a result is never replaced by a
better one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from raydpo.artifacts import write_text

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks/results/soak.json", ROOT / "docs/soak.md"
NOT_KILLS = ("node added",)
INTRO = """\
# Kills, and what was left of them

Written by `python -m tests.soak --page`, a line for each time that it ran; `make soak` runs the first of them. A command
trains, or makes rounds, until it is done; a killer ends the driver, a rank, a reference worker, a generator, a judge, a
raylet or a node with all its processes (SIGKILL, the driver also SIGTERM), and adds a node where one is missing. Whoever is
due, and after how many steps forward, is drawn by the seed, never twice without a commit between. A driver that was killed is
started again by the same command. At the end everything is compared, bit for bit, with a run that nobody disturbed, with as
many ranks, on this machine without Ray.

- **toy**: 60 pairs, 60 epochs, two ranks, a checkpoint every 4 steps. **hh**: 320 real pairs of HH helpful-base, 6 epochs,
  likewise. **rounds**: three rounds with two generators, two judges, and a checkpoint each step. All models are tiny and
  random, float32.
- **local**: processes of one machine. **ray**: a Ray of its own. **cluster**: three nodes of a Ray cluster on one machine.
- **drivers**: how often the command was started. **healed**: how often a training went on by itself from a checkpoint.
- **made again**: steps forward (shards of reference log-probs, training steps, prompts) that the driver was told of and that
  were made once more; those that nobody was told of are not seen.
"""


@dataclass(frozen=True)
class SoakResult:
    """Of one command. killed: kind -> number. made_again: stage -> steps forward. same: what was compared -> whether equal."""

    command: str
    scene: str
    on: str
    killed: Mapping[str, int]
    starts: int
    healed: int
    made_again: Mapping[str, int]
    same: Mapping[str, bool]
    wall_s: int
    made: str = ""

    @property
    def kills(self) -> int:
        return sum(number for kind, number in self.killed.items() if kind not in NOT_KILLS)

    def told(self) -> Iterator[str]:
        """Lines for a person."""
        yield f"{self.command}: {self.kills} kills ({_counted(self.killed)}) in {self.wall_s} s"
        yield f"started {self.starts} times, healed {self.healed} times; made again: {_counted(self.made_again) or 'nothing'}"
        yield f"equal to an undisturbed run: {_equal(self.same)}"


def keep(result: SoakResult) -> None:
    """Add a result and write the page."""
    results = [*read_results(), {**asdict(result), "made": f"{datetime.now(UTC):%Y-%m-%d}"}]
    lines = ",\n".join(json.dumps(each) for each in results)
    write_text(RESULTS, f'{{"results": [\n{lines}\n]}}\n')
    write_text(PAGE, page([SoakResult(**each) for each in results]))


def read_results() -> list[dict[str, object]]:
    """Of all commands so far."""
    found: list[dict[str, object]] = json.loads(RESULTS.read_text())["results"] if RESULTS.is_file() else []
    return found


def page(results: list[SoakResult]) -> str:
    """docs/soak.md."""
    total = Counter[str]()
    for result in results:
        total.update(result.killed)
    kills = sum(result.kills for result in results)
    unequal = sum(not all(result.same.values()) for result in results)
    lines = [
        INTRO,
        f"So far {kills} kills in {len(results)} runs, of which {unequal or 'none'} ended with something that was not equal.\n",
        "| who | how often |\n| --- | --- |",
        *(f"| {kind} | {number} |" for kind, number in sorted(total.items())),
        "\n| scene, where | kills | of whom | drivers | healed | made again | equal, bit for bit | s | day | command |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(_row, results),
    ]
    return "\n".join(lines) + "\n"


def _row(result: SoakResult) -> str:
    cells = (
        f"{result.scene}, {result.on}",
        result.kills,
        _counted(result.killed),
        result.starts,
        result.healed,
        _counted(result.made_again) or "nothing",
        _equal(result.same),
        result.wall_s,
        result.made,
        f"`{result.command}`",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _counted(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items() if number)


def _equal(same: Mapping[str, bool]) -> str:
    return ", ".join(name if is_equal else f"NOT {name}" for name, is_equal in same.items())
