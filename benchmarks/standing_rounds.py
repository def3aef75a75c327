"""`python -m benchmarks.standing_rounds counts | round | long`: what rounds cost once their roles stand.

counts: processes, model loads and bytes of weights of runs of few and of many rounds. round: seconds and CPU seconds of a small
round, here and in another version of the package, in turn. long: memory, files and processes over 70 rounds of one batch.
Prints the figures and writes one JSON file, named by hardware and date. Decision: every run is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.quickstart.sorting_task import write_task

ROOT = Path(__file__).parents[1]
APART = Path(__file__).with_name("rounds_apart.py")
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 128,
    "max_positions": 64,
}
"""Heads of 32 numbers, because vLLM on a CPU has none of 16."""
Found = dict[str, Any]


class Runs:
    """A tiny model and its task in a folder, on which runs are made one after the other."""

    def __init__(self, root: Path, runtime: str) -> None:
        self._root, self._runtime, self._number = root, runtime, 0
        task = write_task(root / "task", 0)
        self._prompts = task.pairs
        create_model(root / "model", train_bpe(task.texts, 320), seed=0, **SHAPE)

    def make(self, changes: Mapping[str, Any], tree: Path = ROOT, *, counts: bool = False) -> Found:
        """One run with the raydpo of `tree`; `changes` are "section.key" -> value. counts: see there."""
        self._number += 1
        folder = self._root / f"run-{self._number}"
        asked, out = folder.with_suffix(".json"), folder.with_suffix(".out")
        asked.write_text(json.dumps(self._config(folder, changes) | {"counts": counts}))
        command = [sys.executable, "-P", str(APART), str(asked), str(out)]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": str(tree)}, cwd=self._root, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"the run failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        found: Found = json.loads(out.read_text())
        if Path(found["package"]) != tree / "raydpo":
            raise SystemExit(f"{tree} was to be measured, and {found['package']} was imported")
        return found

    def _config(self, folder: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
        sections: dict[str, dict[str, Any]] = {
            "run": {"dir": str(folder), "runtime": self._runtime},
            "model": {"path": str(self._root / "model"), "dtype": "float32"},
            "data": {"max_length": 64},
            "reference": {"cache_dir": str(folder.with_suffix(".cache"))},
            "train": {"learning_rate": 7e-5, "global_batch_pairs": 32, "log_every": 1},
            "generate": {"num_answers": 2, "max_new_tokens": 16, "num_workers": 1},
            "judge": {"kind": "length", "target_length": 20},
            "rounds": {
                "prompts": [str(self._prompts)],
                "prompts_per_round": 32,
                "num_rounds": 3,
                "reference": "initial",
                "truncated": "keep",
            },
        }
        for name, value in changes.items():
            section, key = name.split(".")
            sections[section][key] = value
        return sections


ENGINES: dict[str, dict[str, Any]] = {
    "transformers": {},
    "vllm": {"generate.engine": "vllm", "generate.vllm": {"max_num_seqs": 32}},
    "vllm-2": {"generate.engine": "vllm", "generate.vllm": {"max_num_seqs": 32, "tensor_parallel_size": 2}},
}
"""vllm-2: with two processes that share every matrix, children of the generator."""
COMPILERS = ("gcc", "cc1", "g++", "cc1plus", "as", "ld", "collect2")
ROLES = ("starts", "model_loads", "updates_in_place")


def counts(runs: Runs, cases: list[tuple[str, str]]) -> dict[str, Any]:
    """Each placement and engine: a run of two rounds and one of ten."""
    found: dict[str, Any] = {}
    for placement, engine in cases:
        both = {}
        for number in (2, 10):
            changes: dict[str, Any] = {
                "rounds.placement": placement,
                "rounds.num_rounds": number,
                **ENGINES[engine],
            }
            run = runs.make(changes, counts=True)
            both[number] = {
                "processes": run["starts"],
                "seen_once": run["seen_once"],
                "tensor_bytes": run["tensor_bytes"],
            }
            both[number] |= {name: run["summary"][name] for name in (*ROLES, "standing")}
            print(f"{placement}, {engine}, {number} rounds: {both[number]}", flush=True)
        found[f"{placement}, {engine}"] = both
    return found


def is_constant(both: Mapping[int, Found]) -> bool:
    """Whether more rounds started and loaded no more, and no tensor passed the driver or the store."""
    few, many = (both[number] for number in sorted(both))
    same = all(_lasting(few[name]) == _lasting(many[name]) for name in ("processes", "starts", "model_loads"))
    return same and not any(sum(each["tensor_bytes"].values()) for each in (few, many))


def _lasting(numbers: Mapping[str, int]) -> dict[str, int]:
    """Without compilers, whose version a library asks for, and the proof of exports, which loads one in each round."""
    return {name: number for name, number in numbers.items() if name not in (*COMPILERS, "export proof")}


def by_round(run: Found) -> list[dict[str, float]]:
    """Of each round but the first: seconds and CPU seconds in all, of sampling, of the training step, and of the rest."""
    found, states, events = [], run["states"], run["events"]
    for begin, end in pairwise(states[1:]):
        mine = [event for event in events if begin["at_s"] < event["at_s"] <= end["at_s"]]
        sampling = _between(mine, ("StageStarted", "generate"), ("StageDone", "generate"))
        step = next(
            place for place, event in enumerate(mine) if (event["kind"], event["stage"]) == ("Advanced", "train")
        )
        spent = {"whole": (begin, end), "sampling": sampling, "step": (mine[step - 1], mine[step])}
        row = {f"{name}_{unit}": b[unit] - a[unit] for name, (a, b) in spent.items() for unit in ("at_s", "cpu_s")}
        for unit in ("at_s", "cpu_s"):
            row[f"switching_{unit}"] = row[f"whole_{unit}"] - row[f"sampling_{unit}"] - row[f"step_{unit}"]
        found.append({name.replace("_at_s", "_wall_s"): value for name, value in row.items()})
    return found


def _between(events: list[Found], first: tuple[str, str], last: tuple[str, str]) -> tuple[Found, Found]:
    named = {(event["kind"], event["stage"]): event for event in events}
    return named[first], named[last]


def one_round(runs: Runs, before: Path, repeats: int, num_rounds: int) -> dict[str, Any]:
    """Rounds of here and of the tree `before`, in turn: medians over all rounds but the first of each run, and their spread."""
    rows: dict[str, list[list[dict[str, float]]]] = {"before": [], "now": []}
    for _ in range(repeats):
        for name, tree in (("before", before), ("now", ROOT)):
            rows[name].append(by_round(runs.make({"rounds.num_rounds": num_rounds}, tree)))
            shown = {key: round(value, 3) for key, value in _medians(rows[name][-1]).items()}
            print(f"{name}: {shown}", flush=True)
    medians = {name: _medians([row for run in all_runs for row in run]) for name, all_runs in rows.items()}
    ratios = {name: medians["now"][name] / medians["before"][name] for name in medians["now"]}
    spread = {name: _spread([_medians(run) for run in all_runs]) for name, all_runs in rows.items()}
    for name, ratio in ratios.items():
        before_s, now_s = (
            f"{medians[side][name]:.3f} ({' to '.join(f'{s:.3f}' for s in spread[side][name])})" for side in rows
        )
        print(f"{name}: {before_s} before, {now_s} now, {ratio:.3f} of it")
    return {"rounds": rows, "medians": medians, "spread_of_runs": spread, "now_over_before": ratios}


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _spread(runs: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Smallest and largest of the runs' medians."""
    return {name: (min(run[name] for run in runs), max(run[name] for run in runs)) for name in runs[0]}


GROWTH_BYTES = 16 * 2**20
"""By which a process may grow in rounds 11 to 70, anonymous pages alone."""
FILES = 8
"""Open files between which a process goes up and down: an index of the reference cache is mapped until it is collected."""


def long(runs: Runs, num_rounds: int, placement: str) -> dict[str, Any]:
    """Online DPO, a batch of 8 prompts a round: what processes hold after each round, and what grew after the tenth."""
    changes: dict[str, Any] = {
        "rounds.num_rounds": num_rounds,
        "rounds.prompts_per_round": 8,
        "rounds.optimizer": "carried",
        "rounds.sync_every": 1,
        "rounds.placement": placement,
        "rounds.max_staleness": 0,
        "train.schedule": "constant",
        "train.global_batch_pairs": 8,
    }
    run = runs.make({name: value for name, value in changes.items() if placement == "split" or "stale" not in name})
    states = run["states"]
    by_process: dict[str, list[tuple[int, int, int]]] = {}
    for state in states[1:]:
        for held in state["processes"]:
            key = f"{held['name']} {held['pid']}"
            by_process.setdefault(key, []).append((held["rss"], held["anonymous"], held["files"]))
    grown = {}
    for key, rows in by_process.items():
        tenth, last = rows[min(9, len(rows) - 1)], rows[-1]
        grown[key] = dict(
            zip(("rss", "anonymous", "files"), (b - a for a, b in zip(tenth, last, strict=True)), strict=True)
        )
        grown[key] |= {"rounds": len(rows), "rss_at_last": last[0]}
    tenth, last = states[10], states[-1]
    ends = {name: (tenth[name], last[name]) for name in ("num_shared_files", "num_run_files")}
    ends["num_processes"] = (len(tenth["processes"]), len(last["processes"]))
    ends["driver's open files"] = tenth["own_files"], last["own_files"]
    print(json.dumps({"grown": grown, "after rounds 10 and last": ends}, indent=1), flush=True)
    return {
        "grown_since_round_10": grown,
        "at_10_and_last": ends,
        "each_round": by_process,
        "starts": run["summary"]["starts"],
    }


def problems_of(found: Found) -> list[str]:
    """What of a long run grew more than it may."""
    grown = [
        f"{name} grew by {each['anonymous'] / 2**20:.1f} MB and {each['files']} files"
        for name, each in found["grown_since_round_10"].items()
        if each["anonymous"] > GROWTH_BYTES or each["files"] > FILES
    ]
    return grown + [
        f"{name}: {a}, then {b}" for name, (a, b) in found["at_10_and_last"].items() if name.startswith("num") and b > a
    ]


def _without_paths(words: list[str]) -> list[str]:
    """Of a command line, without where results go."""
    shown = ["CHECKOUT" if before == "--before" else word for before, word in pairwise(["", *words])]
    return [word for before, word in pairwise(["", *shown]) if "--out" not in (before, word)]


def _commit_of(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.standing_rounds", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("counts", "round", "long"))
    parser.add_argument("--runtime", choices=("local", "ray"), default="local")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--placements", nargs="+", default=["colocated", "split"])
    parser.add_argument("--before", type=Path, help="of round: a checkout of another version")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="of round (4) and long (70)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), asked.runtime)
        problems: list[str] = []
        if asked.what == "counts":
            result = counts(runs, [(placement, engine) for engine in asked.engines for placement in asked.placements])
            problems = [f"{name}: not constant" for name, both in result.items() if not is_constant(both)]
        elif asked.what == "round":
            result = one_round(runs, asked.before.resolve(), asked.repeats, asked.rounds or 4)
        else:
            result = {placement: long(runs, asked.rounds or 70, placement) for placement in asked.placements}
            problems = [f"{name}: {text}" for name, found in result.items() for text in problems_of(found)]
    settings = {name: value for name, value in vars(asked).items() if name != "out"}
    settings["command"] = " ".join(["python -m benchmarks.standing_rounds", *_without_paths(sys.argv[1:])])
    if asked.what == "round":
        settings["before"] = _commit_of(asked.before)
    print(f"written: {save(asked.out, f'standing_{asked.what}_{asked.runtime}', cpu_cores(), settings, result)}")
    if problems:
        raise SystemExit("\n".join(problems))


if __name__ == "__main__":
    main()
