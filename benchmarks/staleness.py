"""`python -m benchmarks.staleness`: online, semi-online and offline rounds on the quickstart's task, a table and a picture.

In: seeds, and the optimizer steps between two syncs. Out: `benchmarks/results/staleness.json` and `docs/staleness.svg`.
Decision: one supervised model a seed; every run has the same prompts in the same order, the same number of steps of one global
batch, and one Adam, so that all that differs is which policy sampled. What was measured is kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks import curves
from benchmarks.made import RESULTS, made_now
from raydpo import runtime
from raydpo.artifacts import write_json, write_text
from raydpo.config import Config
from raydpo.pipelines import iterate
from raydpo.quickstart.offline_dpo import DPO_OBJECTIVE, Supervised, answers_of, supervise
from raydpo.quickstart.on_policy import GENERATE
from raydpo.quickstart.sorting_task import exact_match, score, write_rows

FILE = RESULTS / "staleness.json"
PICTURE = Path(__file__).parents[1] / "docs/staleness.svg"
STEPS = 40
PROMPTS = 48
OFFLINE = 10**6
SYNCS = (1, 5, 20, OFFLINE)
LOOKED_AT = 5
"""Steps between two looks at the held-out prompts."""
TRAIN: dict[str, Any] = {
    "learning_rate": 2e-4,
    "schedule": "constant",
    "warmup_fraction": 0.0,
    "global_batch_pairs": PROMPTS,
    "zero_stage": 0,
}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}
"""Number of seeds -> 97.5 % quantile of Student's t."""


def config_of(start: Supervised, prompts: Path, sync_every: int) -> Config:
    """`STEPS` rounds of `PROMPTS` prompts, each one step."""
    return Config.model_validate(
        {
            "run": {"dir": str(start.root / f"sync-{sync_every}"), "seed": start.seed, "runtime": start.kind},
            "model": {"path": str(start.model), "dtype": "float32"},
            "data": {"max_length": 64},
            "objective": DPO_OBJECTIVE,
            "reference": {"cache_dir": str(start.root / "cache")},
            "train": TRAIN,
            "generate": {**GENERATE, "prompts_per_item": PROMPTS},
            "rounds": {
                "prompts": [str(prompts)],
                "prompts_per_round": PROMPTS,
                "num_rounds": STEPS,
                "reference": "initial",
                "optimizer": "carried",
                "sync_every": sync_every,
            },
        }
    )


def run(start: Supervised, sync_every: int) -> dict[str, Any]:
    """Exact match on the held-out prompts every `LOOKED_AT` steps, and the pairs that were trained on."""
    rows = [{"prompt": json.loads(line)["prompt"]} for line in start.task.pairs.read_text().splitlines()]
    prompts = write_rows(start.root / "task/prompts.jsonl", rows)
    shares, num_pairs = {0: start.exact_match}, 0
    for found in iterate(config_of(start, prompts, sync_every), judge=score):
        num_pairs += int(found.metrics["pairs/made"])
        if (found.index + 1) % LOOKED_AT == 0:
            shares[found.index + 1] = exact_match(start.task.prompts, answers_of(found.model, start.task))
    return {"exact_match": shares, "pairs": num_pairs}


def measure(seeds: Sequence[int], syncs: Sequence[int], work: Path) -> Iterator[dict[str, Any]]:
    """What `FILE` lacks, one after the other."""
    there = {(each["seed"], each["sync_every"]) for each in results()}
    with runtime.session(kind="local"):
        for seed in seeds:
            todo = [k for k in syncs if (seed, k) not in there]
            start = supervise(str(work / f"seed-{seed}"), seed, kind="local") if todo else None
            for sync_every in todo:
                assert start is not None
                yield {"seed": seed, "sync_every": sync_every, **run(start, sync_every), "made": made_now()}


def results() -> list[dict[str, Any]]:
    """Every result that there is."""
    found: list[dict[str, Any]] = json.loads(FILE.read_text())["results"] if FILE.is_file() else []
    return found


def table(found: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Mean exact match at the end with a 95 % interval (Student's t over seeds), and pairs."""
    for sync_every in sorted({each["sync_every"] for each in found}):
        mine = [each for each in found if each["sync_every"] == sync_every]
        last = [100 * each["exact_match"][str(STEPS)] for each in mine]
        spread = T_95[len(last)] * stdev(last) / sqrt(len(last)) if len(last) in T_95 else float("nan")
        pairs = mean(each["pairs"] for each in mine)
        yield f"| {name_of(sync_every)} | {mean(last):.1f} ± {spread:.1f} % | {pairs:,.0f} | {len(last)} |"


def name_of(sync_every: int) -> str:
    return "never (offline)" if sync_every == OFFLINE else str(sync_every)


def picture(found: Sequence[dict[str, Any]]) -> str:
    """Mean exact match over steps, a line for each number of steps between syncs."""
    lines = {}
    for sync_every in sorted({each["sync_every"] for each in found}):
        mine = [each["exact_match"] for each in found if each["sync_every"] == sync_every]
        lines[name_of(sync_every)] = [
            (int(step), 100 * mean(each[step] for each in mine)) for step in sorted(mine[0], key=int)
        ]
    return curves.svg(lines, "optimizer steps", "exact match on held-out prompts, %", "steps between syncs")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.staleness", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--syncs", type=int, nargs="+", default=SYNCS)
    parser.add_argument("--work", type=Path, default=Path("runs/staleness"))
    args = parser.parse_args()
    for each in measure(args.seeds, args.syncs, args.work):
        write_json(
            FILE, {"settings": {"steps": STEPS, "prompts": PROMPTS, "train": TRAIN}, "results": [*results(), each]}
        )
        print(f"seed {each['seed']}, {name_of(each['sync_every'])}: {list(each['exact_match'].values())}", flush=True)
    write_text(PICTURE, picture(results()))
    print("\n".join(table(results())))


if __name__ == "__main__":
    main()
