"""`make mutate`: measure the tests, draw mutants, try them, write the report. Run in the root of the repository."""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tools.mutate import report
from tools.mutate.mutants import mutants_of
from tools.mutate.sample import sample
from tools.mutate.trials import Outcome, measured, run

PACKAGES = ("raydpo/objectives", "raydpo/batches", "raydpo/artifacts")
TESTS = (
    "tests/objectives",
    "tests/batches",
    "tests/artifacts",
    "tests/metrics",
    "tests/reference/test_plan.py",
    "tests/data/test_labels.py",
    "tests/data/test_prepare.py",
    "tests/models/test_logprobs.py",
)
"""Those that start no process that imports torch: a survivor meets them all, and a gang of ranks takes a minute."""
PRELOADED = (
    "torch",
    "pyarrow.parquet",
    "pydantic",
    "yaml",
    "transformers",
    "trl.trainer.dpo_trainer",
    "hypothesis",
    "pytest",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 whatever survived: the report is the result."""
    args = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as many trials as cores run side by side
    for name in args.preload:
        with suppress(ImportError):
            importlib.import_module(name)
    began = time.monotonic()
    facts = measured(args.packages, args.tests)
    print(f"{len(facts.costs)} tests measured in {time.monotonic() - began:.0f} s", flush=True)
    root = Path.cwd()
    paths = [path.relative_to(root) for package in args.packages for path in (root / package).rglob("*.py")]
    num_lines = {path.as_posix(): len((root / path).read_bytes().splitlines()) for path in paths}
    mutants = {path.as_posix(): mutants_of(path, root) for path in paths}
    chosen = sample(mutants, num_lines, args.num, args.seed)
    print(f"{len(chosen)} of {sum(map(len, mutants.values()))} mutants", flush=True)
    began = time.monotonic()
    outcomes = run(chosen, facts, args.workers, _Teller(len(chosen)).tell)
    seconds = time.monotonic() - began
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    times = {"seconds": round(seconds), "cpu_seconds": round(children.ru_utime + children.ru_stime)}
    settings = {"seed": args.seed, "mutants": len(chosen), "workers": args.workers, **times}
    report.write(args.out, settings | {"packages": args.packages, "tests": args.tests}, outcomes)
    print(f"{len(chosen)} mutants in {seconds:.0f} s; {args.out.with_suffix('.md')} written")
    return 0


class _Teller:
    """A line for each mutant, with the number of those that are done."""

    def __init__(self, num: int) -> None:
        self.num, self.done = num, 0

    def tell(self, outcome: Outcome) -> None:
        self.done += 1
        place = f"{outcome.mutant.path}:{outcome.mutant.line}"
        what = f"{outcome.status} ({outcome.mutant.operator}) {place}, {outcome.num_tests} tests, {outcome.seconds} s"
        print(f"{self.done}/{self.num} {what}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make mutate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num", type=int, default=400, help="mutants")
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--packages", nargs="+", default=list(PACKAGES), help="folders whose modules are changed")
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="files or folders of tests")
    parser.add_argument("--preload", nargs="*", default=list(PRELOADED), help="modules imported before forking")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mutation.json"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
