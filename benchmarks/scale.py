"""How costs of data and reference grow: CPU seconds a pair and private memory of driver and rank, by number of pairs.

Pairs are made up (ten words a prompt, eight an answer) and so are the values of the cache; nothing is scored and no model is
loaded. Each phase is a process of its own on what the one before left on the disk. Decision: memory is what a process has for
itself (Anonymous in /proc/self/smaps_rollup), read every 10 ms: `process_mb` is all of it, `private_mb` what is above that of
before the phase. Pages of mapped files, of which a node has one copy, are in neither.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.made import made_now
from raydpo.artifacts import CacheIdentity, ExampleTable, ReferenceCache
from raydpo.artifacts.cache_reader import CacheReader
from raydpo.batches.order import Order
from raydpo.config import Config
from raydpo.data import prepare
from raydpo.data.tokenizer import TextTokenizer
from raydpo.reference.plan import plan_shards, wanted_rows

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LEAST_PAIRS = 10_000
ROWS_PER_SHARD = 512
BATCH_PAIRS, NUM_STEPS = 64, 32
FOLDER = Path(__file__).parent / "results"
_WORDS = [f"{first}{second}" for first in ("ba", "ko", "mi", "ta", "re", "su") for second in ("na", "li", "gor", "pek")]
_IDENTITY = CacheIdentity("made up", "none", "words", "float32", "none", "scale-1")
Facts = dict[str, float]


def make_pairs(folder: Path, num_pairs: int) -> Facts:
    """Rows of text, and a tokenizer of their words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["</s>", "?", *_WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    (folder / "words").mkdir()
    backend.save(str(folder / "words/tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "?"}
    (folder / "words/tokenizer_config.json").write_text(json.dumps(names))
    chance = random.Random(num_pairs)
    with (folder / "pairs.jsonl").open("w") as file:
        for _ in range(num_pairs):
            prompt, chosen, rejected = (" ".join(chance.choices(_WORDS, k=length)) for length in (10, 8, 8))
            file.write(json.dumps({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"}) + "\n")
    return {"bytes": (folder / "pairs.jsonl").stat().st_size}


def prepare_pairs(folder: Path, num_pairs: int) -> Facts:
    """Text to token shards, in this process."""
    sections = {"data": {"train": [str(folder / "pairs.jsonl")]}, "model": {"path": str(folder / "words")}}
    config = Config.model_validate({**sections, "run": {"dir": str(folder)}, "objective": {"name": "dpo"}})
    report = prepare(config, str(folder / "words"), folder / "data")
    assert report.lines_read == num_pairs
    return {"pairs": report.train_pairs}


def plan(folder: Path, num_pairs: int) -> Facts:
    """What a driver does before the reference pass: every row is found and planned, and the plan gone through once."""
    cache = ReferenceCache(folder / "cache", _IDENTITY).open()
    works = plan_shards(wanted_rows(folder / "data", ("train",), 2), cache, ROWS_PER_SHARD)
    return {"rows": works.num_rows, "shards": sum(len(work.keys) > 0 for work in works)}


def plant(folder: Path, num_pairs: int) -> Facts:
    """Made-up values for every row, in shards as workers write them."""
    cache = ReferenceCache(folder / "cache", _IDENTITY)
    table = ExampleTable.open(folder / "data", "train")
    for work in plan_shards(wanted_rows(folder / "data", ("train",), 2), cache, ROWS_PER_SHARD):
        lengths = [int(table.loss_lengths[example, answer]) for _, example, answer in work.places]
        cache.write_shard(work.name, list(work.keys), [np.full(length, -1.5, np.float32) for length in lengths])
    return {}


def open_cache(folder: Path, num_pairs: int) -> Facts:
    """What a driver does after the pass, or when every row is there: all shards are verified, and the index is written."""
    cache = ReferenceCache(folder / "cache", _IDENTITY).open()
    wanted = wanted_rows(folder / "data", ("train",), 2)
    assert cache.holds(wanted.keys).all()
    cache.write_index()
    return {"rows": len(wanted.keys)}


def read_as_rank(folder: Path, num_pairs: int) -> Facts:
    """What a rank reads of some steps: their ids and log-probs."""
    table, reader = ExampleTable.open(folder / "data", "train"), CacheReader(folder / "cache" / _IDENTITY.digest)
    order, tokens = Order(len(table), min(BATCH_PAIRS, len(table)), 1.0, 0), 0
    for step in range(1, 1 + min(NUM_STEPS, order.num_steps)):
        examples = order.examples(step).tolist()
        tokens += sum(len(table.prompt_ids(example)) for example in examples)
        nats = reader.lookup([key for example in examples for key in table.row_keys(example)])
        assert sum(map(len, nats)) == int(table.loss_lengths[examples].sum())
    return {"tokens": tokens, "shards_verified": reader.num_verified, "token_shards": num_shards(folder / "data")}


def num_shards(data: Path) -> int:
    """Token shards of the training split."""
    return len(json.loads((data / "train.json").read_text())["shards"])


PHASES: dict[str, Callable[[Path, int], Facts]] = {
    "make": make_pairs,
    "prepare": prepare_pairs,
    "plan": plan,
    "plant": plant,
    "open": open_cache,
    "rank": read_as_rank,
}


def private_bytes(pid: int | str = "self") -> int:
    """Memory that a process has for itself. Pages of a mapped file are not in it, whoever else maps them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


def measured(phase: str, folder: Path, num_pairs: int) -> dict[str, Any]:
    """Run a phase in this process: its CPU seconds, and its private memory at most, above that of the process.

    What is imported late is imported before, so that the start of a process is in neither.
    """
    pa.array([0]).to_numpy()
    if phase == "prepare":
        TextTokenizer(str(folder / "words"))
    before, peak, is_over = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.01):
            peak[0] = max(peak[0], private_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    cpu_s = time.process_time()
    facts = PHASES[phase](folder, num_pairs)
    cpu_s = time.process_time() - cpu_s
    peak[0] = max(peak[0], private_bytes())
    is_over.set()
    watcher.join()
    took = {
        "cpu_us_a_pair": round(1e6 * cpu_s / num_pairs, 1),
        "private_mb": round(max(0, peak[0] - before) / 1e6, 1),
        "process_mb": round(peak[0] / 1e6, 1),
    }
    return {"phase": phase, "pairs": num_pairs, "cpu_s": round(cpu_s, 3), **took, **facts}


def run(sizes: tuple[int, ...], folder: Path) -> Iterator[dict[str, Any]]:
    """Every phase at every size, each in a process of its own; what was measured in `folder` before is not measured again."""
    for num_pairs in sizes:
        place = folder / str(num_pairs)
        place.mkdir(parents=True, exist_ok=True)
        for phase in PHASES:
            kept = place / f"{phase}.json"
            if kept.is_file():
                yield json.loads(kept.read_text())
                continue
            command = [sys.executable, "-m", "benchmarks.scale", "--phase", phase, "--folder", str(place)]
            done = subprocess.run([*command, "--sizes", str(num_pairs)], stdout=subprocess.PIPE, check=True)
            kept.write_bytes(done.stdout)
            yield json.loads(done.stdout)


def exponents(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of each phase, how CPU and private memory grow up to the largest size: 1.0 is linear.

    From the first size of at least 10,000 pairs; from the smallest where the largest alone has so many.
    """
    grown: dict[str, dict[str, float]] = {}
    for phase in PHASES:
        lines = sorted((line for line in results if line["phase"] == phase), key=lambda line: line["pairs"])
        if len(lines) > 1:
            first, last = next((line for line in lines[:-1] if line["pairs"] >= LEAST_PAIRS), lines[0]), lines[-1]
            ratio = math.log(last["pairs"] / first["pairs"])
            grown[phase] = {
                what: round(math.log(max(last[what], least) / max(first[what], least)) / ratio, 2)
                for what, least in (("cpu_s", 0.001), ("private_mb", 0.1))
            }
    return grown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--phase", choices=PHASES, help="one phase, in --folder")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.phase:
        print(json.dumps(measured(args.phase, args.folder, args.sizes[0])))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for line in run(tuple(args.sizes), args.folder or Path(folder)):
            print(json.dumps(line), flush=True)
            results.append(line)
    made = made_now()
    body = {"made": made, "results": results, "exponents": exponents(results)}
    (FOLDER / f"scale_{max(args.sizes)}_{made['date']}.json").write_text(json.dumps(body, indent=1) + "\n")
    print(json.dumps(body["exponents"]))


if __name__ == "__main__":
    main()
