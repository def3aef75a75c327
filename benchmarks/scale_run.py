"""A run as people start one, at several sizes: private memory of its driver, of its workers and of its ranks, and their CPU.

Made-up pairs (`benchmarks.scale`) are prepared, planned, scored by a tiny model, indexed and trained on for a few steps, by
`raydpo train` on the local runtime with two ranks. Decision: processes are found by a variable of their environment and read
from outside, so that the run is no other than without a benchmark; memory is what a process has for itself, every 50 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from benchmarks.made import RESULTS, cpu_cores, save
from benchmarks.scale import make_pairs, private_bytes
from raydpo.quickstart.fresh_model import create_model

SIZES = (1_000, 10_000, 100_000, 1_000_000)
MARK = "RAYDPO_BENCHMARK"
NUM_STEPS, BATCH_PAIRS, NUM_RANKS = 8, 64, 2
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 32,
    "max_positions": 64,
}


def make_task(folder: Path, num_pairs: int) -> None:
    """Pairs, a model with a tokenizer of their words, and the config of a run on them."""
    from transformers import PreTrainedTokenizerFast

    make_pairs(folder, num_pairs)
    create_model(folder / "model", PreTrainedTokenizerFast.from_pretrained(folder / "words"), seed=0, **SHAPE)
    config = {
        "run": {"dir": str(folder / "run"), "runtime": "local"},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": [str(folder / "pairs.jsonl")], "max_length": 64},
        "objective": {"name": "dpo"},
        "reference": {"cache_dir": str(folder / "cache"), "rows_per_shard": 512},
        "train": {"global_batch_pairs": BATCH_PAIRS, "max_steps": NUM_STEPS, "num_workers": NUM_RANKS},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(config))


def measured(folder: Path, num_pairs: int) -> dict[str, Any]:
    """Run it. Memory in MB: of the driver, and the most that any other process had; CPU seconds of all."""
    folder.mkdir(parents=True, exist_ok=True)
    make_task(folder, num_pairs)
    mark, peaks, cpu_s = uuid.uuid4().hex, dict[int, int](), dict[int, float]()
    env = {**os.environ, MARK: mark, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "raydpo", "train", str(folder / "run.yaml")]
    with (folder / "out.txt").open("w") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as run:
        while run.poll() is None:
            for pid in marked(mark):
                with suppress(OSError, ValueError):
                    peaks[pid] = max(peaks.get(pid, 0), private_bytes(pid))
                    cpu_s[pid] = used_s(pid)
            time.sleep(0.05)
    if run.returncode:
        raise SystemExit((folder / "out.txt").read_text()[-2000:])
    driver_mb = round(peaks.pop(run.pid) / 1e6, 1)
    losses = [json.loads(line).get("loss") for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    return {
        "pairs": num_pairs,
        "driver_mb": driver_mb,
        "other_mb": round(max(peaks.values()) / 1e6, 1),
        "cpu_us_a_pair": round(1e6 * sum(cpu_s.values()) / num_pairs, 1),
        "driver_cpu_us_a_pair": round(1e6 * cpu_s[run.pid] / num_pairs, 1),
        "steps": sum(loss is not None for loss in losses),
    }


def marked(mark: str) -> list[int]:
    """Processes that were started with the mark in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def used_s(pid: int) -> float:
    """CPU seconds of a process, and of those that it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--folder", type=Path, required=True, help="keeps what was measured, and goes on behind it")
    args = parser.parse_args()
    results = []
    for size in args.sizes:
        kept = args.folder / f"{size}.json"
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(measured(args.folder / str(size), size)))
        results.append(json.loads(kept.read_text()))
        print(json.dumps(results[-1]), flush=True)
    settings = {"steps": NUM_STEPS, "batch_pairs": BATCH_PAIRS, "ranks": NUM_RANKS, "rows_per_shard": 512}
    print(save(RESULTS, "scale_run", cpu_cores(), settings, results))


if __name__ == "__main__":
    main()
