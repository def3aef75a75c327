"""CPU of preparing pairs, by one process and by two, next to `datasets.map` with the same tokenizer.

Rows of prompt, chosen, rejected are repeated to two sizes; each side is a process of its own that does both, and the slope is
what a pair costs: imports, tokenizers and workers that start are not in it. Sides take turns. Decision: the sides of
`datasets.map` do less (no chat template, no check of any row, no hash of what was written), and are what people would write.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.made import RESULTS, cpu_cores, save
from raydpo import runtime
from raydpo.config import Config
from raydpo.data import prepare
from raydpo.data.parts import PartDone, PartMaker, PartSpec, PartWork
from raydpo.data.template import open_tokenizer

REPEATS = 5
WARM_UP_PAIRS = 100
Cost = dict[str, float]


def with_raydpo(rows: Path, tokenizer: str, folder: Path, num_workers: int = 1) -> None:
    """Text to token shards."""
    sections = {
        "data": {"train": [str(rows)], "max_length": 4096, "max_bad_fraction": 0.5},
        "model": {"path": tokenizer},
    }
    config = Config.model_validate({**sections, "run": {"dir": str(folder)}, "objective": {"name": "dpo"}})
    if num_workers == 1:
        prepare(config, tokenizer, folder / "data")
        return
    with runtime.session([runtime.Demand("data", num_workers, 1)], kind="local", local_cpus=num_workers):
        prepare(config, tokenizer, folder / "data", make_parts=partial(_on_pool, num_workers, folder / "cpu"))


class Timed:
    """A maker of parts that notes the CPU seconds of its process, from its start on."""

    def __init__(self, spec: PartSpec, notes: Path) -> None:
        notes.mkdir(parents=True, exist_ok=True)
        self._maker, self._note = PartMaker(spec), notes / str(os.getpid())

    def __call__(self, work: PartWork) -> PartDone:
        done = self._maker(work)
        self._note.write_text(str(time.process_time()))
        return done


def _on_pool(
    num_workers: int, notes: Path, spec: PartSpec, works: Sequence[PartWork]
) -> Iterator[tuple[int, PartDone]]:
    yield from runtime.run_pool("data", partial(Timed, spec, notes), works, num_workers=num_workers, cpus=1)


def with_map(rows: Path, tokenizer: str, folder: Path, *, is_prompt_once: bool) -> None:
    """The rows as `datasets` reads and keeps them, with ids of three texts: the prompt, and each answer behind it or alone."""
    import datasets

    encode = open_tokenizer(tokenizer, None).tokenizer

    def ids(batch: dict[str, list[str]]) -> dict[str, Any]:
        found = {"prompt_ids": encode(batch["prompt"])["input_ids"]}
        for side in ("chosen", "rejected"):
            pairs = zip(batch["prompt"], batch[side], strict=True)
            texts = batch[side] if is_prompt_once else [prompt + answer for prompt, answer in pairs]
            found[f"{side}_ids"] = encode(texts)["input_ids"]
        return found

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder / "datasets"))
    loaded.map(ids, batched=True, remove_columns=loaded.column_names)


SIDES: dict[str, Callable[[Path, str, Path], None]] = {
    "raydpo": with_raydpo,
    "raydpo, 2 workers": partial(with_raydpo, num_workers=2),
    "datasets.map, texts apart": partial(with_map, is_prompt_once=False),
    "datasets.map, prompt once": partial(with_map, is_prompt_once=True),
}


def measured(side: str, rows: Path, num_pairs: int, tokenizer: str, folder: Path) -> dict[str, Any]:
    """CPU microseconds that a pair costs, those of workers among them, and wall."""
    costs = []
    for turn, number in enumerate((WARM_UP_PAIRS, num_pairs // 2, num_pairs)):
        repeated = folder / f"{number}.jsonl"
        repeated.write_text("".join(islice(cycle(rows.read_text().splitlines(keepends=True)), number)))
        cpu_s, wall_s, out = time.process_time(), time.monotonic(), folder / f"out-{turn}"
        SIDES[side](repeated, tokenizer, out)
        of_workers_s = sum(float(note.read_text()) for note in out.glob("cpu/*"))
        costs.append((time.process_time() - cpu_s + of_workers_s, time.monotonic() - wall_s))
    more = num_pairs - num_pairs // 2
    cpu_us, wall_us = (round(1e6 * (large - small) / more, 1) for small, large in zip(*costs[1:], strict=True))
    return {
        "side": side,
        "cpu_us_a_pair": cpu_us,
        "wall_us_a_pair": wall_us,
        "digest": _digest(folder / "out-2"),
    }


def _digest(folder: Path) -> str:
    """Of the token shards, which are to be the same for any number of workers; empty for others."""
    manifest = folder / "data" / "train.json"
    return str(json.loads(manifest.read_text())["shards"][-1]["sha256"][:16]) if manifest.is_file() else ""


def medians(results: list[dict[str, Any]]) -> dict[str, Cost]:
    """Of each side, the median CPU and wall of a pair, and its CPU as a multiple of the first side's."""
    found = {}
    for side in SIDES:
        own = [line for line in results if line["side"] == side]
        found[side] = {
            what: statistics.median(line[what] for line in own) for what in ("cpu_us_a_pair", "wall_us_a_pair")
        }
    for costs in found.values():
        costs["cpu_times_raydpo"] = round(costs["cpu_us_a_pair"] / found["raydpo"]["cpu_us_a_pair"], 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True, help="pairs as lines of JSON: prompt, chosen, rejected")
    parser.add_argument("--tokenizer", required=True, help="a folder")
    parser.add_argument("--pairs", type=int, default=16_384, help="of the larger size; the smaller has half of them")
    parser.add_argument("--folder", type=Path, required=True, help="keeps what was measured, and goes on behind it")
    parser.add_argument("--one", help="measure one side, and no more: <its number>:<repeat>")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number}:{repeat}" for repeat in range(REPEATS) for number in range(len(SIDES))]
    for name in [args.one] if args.one else names:
        kept = args.folder / f"{name.replace(':', '-')}.json"
        if args.one:
            folder, side = args.folder / "work", list(SIDES)[int(name.partition(":")[0])]
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()  # always the same, since a shard says which file its rows are from
            line = measured(side, args.rows, args.pairs, args.tokenizer, folder)
            kept.write_text(json.dumps(line))
        elif not kept.is_file():
            command = [sys.executable, "-m", "benchmarks.preparation", *sys.argv[1:], "--one", name]
            subprocess.run(command, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"})
    if not args.one:
        results = [json.loads((args.folder / f"{name.replace(':', '-')}.json").read_text()) for name in names]
        body = {"medians": medians(results), "repeats": results}
        settings = {"pairs": args.pairs, "rows": args.rows.name, "tokenizer": Path(args.tokenizer).name}
        print(
            save(RESULTS, "preparation", cpu_cores(), settings, body), json.dumps(body["medians"], indent=1), sep="\n"
        )
        shutil.rmtree(args.folder)


if __name__ == "__main__":
    main()
