"""`python -m benchmarks.scaling`: the coefficients of docs/scaling.md, in CPU seconds and bytes, which a busy machine hardly
moves.

Each stage runs as `raydpo precompute` in processes of its own on two sizes of synthetic pairs, and the slope between them is
what a pair costs; the start is in neither. Runtime costs are the driver's own CPU for an event of a rank and for an item of a
pool, on a local Ray. Prints the figures and writes one JSON file, named by hardware and date.
Decision: only commands and the runtime's public calls are used, so that the figures follow the program as it is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo import runtime
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model

WORDS = [f"w{number}" for number in range(200)]
ANSWER_WORDS = 120
SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 32,
    "max_positions": 1024,
}
ROWS_PER_SHARD = 512


def stages(root: Path, sizes: Sequence[int]) -> dict[str, float]:
    """Preparation without a reference, then scoring, then the same again with every row in the cache."""
    create_model(root / "model", train_bpe([" ".join(WORDS)] * 3, 400), seed=0, **SHAPE)
    found: dict[str, list[float]] = {}
    for size in sizes:
        _write_pairs(root / f"{size}.jsonl", size)
        run = root / f"prepared-{size}"
        found.setdefault("prepare", []).append(_cpu_s(root, size, run, "simpo"))
        _cpu_s(root, size, root / f"scored-{size}", "dpo")
        found.setdefault("cached", []).append(_cpu_s(root, size, root / f"cached-{size}", "dpo"))
        found.setdefault("shard bytes", []).append(_bytes_below(run / "data"))
    cache = next((root / "cache").glob("*/shards"))
    files = list(cache.iterdir())
    per_pair = {name: (values[-1] - values[0]) / (sizes[-1] - sizes[0]) for name, values in found.items()}
    num_rows = 2 * sum(sizes)
    return {
        "prepare_cpu_us_per_pair": 1e6 * per_pair["prepare"],
        "plan_and_open_cache_cpu_us_per_pair": 1e6 * (per_pair["cached"] - per_pair["prepare"]),
        "token_shard_bytes_per_pair": per_pair["shard bytes"],
        "cache_bytes_per_row": sum(path.stat().st_size for path in files) / num_rows,
        "cache_files_per_1000_rows": 1000 * len(files) / num_rows,
    }


def _write_pairs(path: Path, number: int) -> None:
    draw = random.Random(number)
    with path.open("w") as file:
        for index in range(number):
            text = [" ".join(draw.choices(WORDS, k=ANSWER_WORDS)) for _ in range(2)]
            pair = {"prompt": f"{index} w1 w2 w3 w4 w5 w6 w7 w8", "chosen": f" {text[0]}", "rejected": f" {text[1]}"}
            file.write(json.dumps(pair) + "\n")


def _cpu_s(root: Path, size: int, run: Path, objective: str) -> float:
    """CPU seconds of a precompute and its processes."""
    config = {
        "run": {"dir": str(run), "runtime": "local"},
        "model": {"path": str(root / "model")},
        "data": {"train": [str(root / f"{size}.jsonl")], "max_length": 1024},
        "objective": {"name": objective},
        "reference": {"cache_dir": str(root / "cache"), "rows_per_shard": ROWS_PER_SHARD},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(config))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "raydpo", "precompute", str(root / "run.yaml")]
    subprocess.run(
        command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _bytes_below(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def count_up(context: runtime.RankContext, number: int) -> Iterator[int]:
    """A rank that yields `number` small events."""
    for index in range(number):  # noqa: UP028 - Ray sends into it, which a range cannot take
        yield index


def make_echo() -> Callable[[int], int]:
    """A worker that does nothing."""
    return abs


def control_plane(number: int) -> dict[str, float]:
    """The driver's CPU for events of 2 ranks and items of a pool of 2, and for starting them, on a local Ray."""
    with runtime.session(local_cpus=4):
        started_s = time.process_time()
        ranks = runtime.run_gang("count", partial(count_up, number=number), num_ranks=2, cpus=1, hang_timeout_s=600)
        with closing(ranks):
            next(ranks)
            begun_s = time.process_time()
            list(ranks)
        ended_s = time.process_time()
        items = runtime.run_pool("echo", make_echo, list(range(number)), num_workers=2, cpus=1)
        next(items)
        pool_begun_s = time.process_time()
        list(items)
        pool_ended_s = time.process_time()
    return {
        "driver_cpu_us_per_rank_event": 1e6 * (ended_s - begun_s) / (2 * number - 1),
        "driver_cpu_us_per_pool_item": 1e6 * (pool_ended_s - pool_begun_s) / (number - 1),
        "driver_cpu_s_to_start_2_ranks": begun_s - started_s,
    }


def hashing() -> dict[str, float]:
    """CPU seconds that SHA-256 of 10^9 bytes takes."""
    block = bytes(2**24)
    started_s = time.process_time()
    for _ in range(12):
        hashlib.sha256(block)
    return {"sha256_cpu_s_per_gb": (time.process_time() - started_s) / (12 * 2**24 / 1e9)}


TEXTS = {
    "prepare_cpu_us_per_pair": "preparation, us of CPU a pair",
    "plan_and_open_cache_cpu_us_per_pair": "digest, plan and opening of a full cache, us of CPU a pair",
    "token_shard_bytes_per_pair": "token shards, bytes a pair",
    "cache_bytes_per_row": "reference cache, bytes a row",
    "cache_files_per_1000_rows": "reference cache, files for 1,000 rows",
    "driver_cpu_us_per_rank_event": "driver, us of CPU for an event of a rank (2 ranks)",
    "driver_cpu_us_per_pool_item": "driver, us of CPU for an item of a pool (2 workers)",
    "driver_cpu_s_to_start_2_ranks": "driver, s of CPU to start 2 ranks",
    "sha256_cpu_s_per_gb": "SHA-256, s of CPU for 10^9 bytes",
}
"""What a coefficient is, for docs/scaling.md."""


def table(file: dict[str, Any]) -> str:
    """The rows of docs/scaling.md from what a results file holds."""
    found, made = file["results"], file["made"]
    rows = [f"| {text} | {_short(found[name])} |" for name, text in TEXTS.items()]
    head = f"| measured at {made['commit']} on {made['hardware']} | |\n| --- | --- |"
    return "\n".join([head, *rows])


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes", type=int, nargs=2, default=(1000, 5000), help="pairs of the smaller and the larger run"
    )
    parser.add_argument("--events", type=int, default=2000, help="events of a rank, and items of the pool")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    found: dict[str, Any] = {**hashing(), **control_plane(options.events)}
    with tempfile.TemporaryDirectory() as folder:
        found |= stages(Path(folder), options.sizes)
    path = save(options.out, "scaling", cpu_cores(), vars(options), found)
    print(table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
