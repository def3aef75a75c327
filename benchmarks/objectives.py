"""`python -m benchmarks.objectives`: the quickstart's task with every objective at its defaults, as a table.

In: seeds and objectives. Out: `benchmarks/results/quickstart_by_objective.json` and the page made from it.
Decision: one supervised model a seed, one reference cache for all that start from it, one after the other in one Ray
session. Every result is written when it is there: the same command goes on, and does again only what has other settings.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.made import made_now
from benchmarks.page import page
from benchmarks.settings import START, compared, settings_of
from raydpo import runtime
from raydpo.artifacts import write_text
from raydpo.errors import RaydpoError, UserError
from raydpo.quickstart.offline_dpo import Supervised, align, supervise
from raydpo.schema.events import Event, Note, StageDone

ROOT = Path(__file__).parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing and write the page. 1 when an objective failed, 2 for what the user can fix."""
    args = _arguments(argv)
    try:
        failed = [] if args.page_only else measure(args.seeds, args.only, args.results, args.work)
        write_text(args.out, page(results.read(args.results)))
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return error.exit_code
    print(f"{args.out} written from {args.results}")
    for name, problem in failed:
        print(f"{name} failed and is not in the table: {problem}", file=sys.stderr)
    return 1 if failed else 0


Failure = tuple[str, str]
"""An objective that stopped with an error, and its text."""


def measure(seeds: Sequence[int], names: Sequence[str], file: Path, work: Path) -> list[Failure]:
    """Fill `file` with the results of `names` that it lacks. Returns what failed."""
    there = [entry["settings"] for entry in results.read(file)]
    todo = {seed: [name for name in names if results.wanted(name, seed) not in there] for seed in seeds}
    failed: list[Failure] = []
    if not any(todo.values()):
        return failed
    with runtime.session():
        for seed, lacking in todo.items():
            if lacking:
                start = supervise(str(work / f"seed-{seed}"), seed, _Screen(f"seed {seed}"), shape=START)
                failed += [problem for name in lacking if (problem := _measure_one(start, name, file)) is not None]
    return failed


def _measure_one(start: Supervised, name: str, file: Path) -> Failure | None:
    """Run one objective and put its result into `file`."""
    settings = results.wanted(name, start.seed)
    # Another folder for other settings: a run directory goes on with its own only.
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    try:
        folder = f"{name}-{digest}"
        end = align(start, {"name": name}, folder=folder, settings=settings_of(name), observer=_Screen(name))
    except RaydpoError as error:
        return name, str(error)
    entry = results.make_entry(settings, start, end, made_now())
    results.write(file, results.replaced(results.read(file), entry))
    return None


class _Screen:
    """An observer: stages that end, and warnings, one line each."""

    def __init__(self, title: str) -> None:
        self.title = title

    def __call__(self, event: Event) -> None:
        if isinstance(event, StageDone) or (isinstance(event, Note) and event.level == "warning"):
            print(f"{self.title}: {event.text}", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objectives", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one supervised model each (default: 0)")
    parser.add_argument(
        "--only", nargs="+", choices=compared(), default=compared(), metavar="NAME", help="default: all"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs/quickstart_by_objective.md", help="the page")
    parser.add_argument("--results", type=Path, default=results.FILE, help="the JSON file next to it")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/benchmarks", help="where the runs go")
    parser.add_argument("--page-only", action="store_true", help="run nothing; make the page from the results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
