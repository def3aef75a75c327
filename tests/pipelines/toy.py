"""A tiny model, tiny pairs, and what the tests of this folder ask of a run directory.

Goes out: `Toy`, files on disk that every test reads and none writes; `config` for a run on them.
Decision: the model is real and trained on the spot, 30,000 weights; a run takes as long as its imports.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydpo import open_reference
from raydpo.config import Config
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.schema.events import Event, Note

NUM_TRAIN, NUM_EVAL = 60, 16
NUM_ROWS = 2 * (NUM_TRAIN + NUM_EVAL)
Pair = dict[str, str]


@dataclass(frozen=True)
class Toy:
    """model: what runs start from. other: the same shape with other weights. cache: shared by all runs."""

    root: Path
    model: Path
    other: Path
    train: Path
    eval: Path
    cache: Path


def make_toy(root: Path) -> Toy:
    rng = random.Random(5)
    pairs = [make_pair(rng, number) for number in range(NUM_TRAIN + NUM_EVAL)]
    toy = Toy(root, root / "model", root / "other", root / "train.jsonl", root / "eval.jsonl", root / "cache")
    write_pairs(toy.train, pairs[:NUM_TRAIN])
    write_pairs(toy.eval, pairs[NUM_TRAIN:])
    write_model(toy.model, seed=0)
    write_model(toy.other, seed=1)
    return toy


def make_pair(rng: random.Random, number: int) -> Pair:
    """A pair that no other number gives: ascending against descending, of different lengths."""
    words = sorted(str(rng.randrange(10, 99)) for _ in range(rng.randrange(2, 5)))
    prompt = f"{number}: sort {' '.join(reversed(words))}"
    return {"prompt": prompt, "chosen": " " + " ".join(words), "rejected": " " + " ".join(reversed(words)) + " no"}


def write_pairs(path: Path, pairs: Iterable[Pair]) -> Path:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def read_pairs(path: Path) -> list[Pair]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_model(folder: Path, seed: int) -> None:
    tokenizer = train_bpe(["sort 12 34 56 78 90 no"] * 2, 280)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_positions": 64}
    create_model(folder, tokenizer, seed=seed, **shape)


def config(
    toy: Toy, run_dir: Path, changes: Mapping[str, Any] | None = None, objective: Mapping[str, Any] | None = None
) -> Config:
    """One rank, one reference worker, four steps, without Ray: in this process. `changes` are "section.key" -> value."""
    sections: dict[str, dict[str, Any]] = {
        "run": {"dir": str(run_dir), "runtime": "local"},
        "model": {"path": str(toy.model), "dtype": "float32"},
        "data": {"train": [str(toy.train)], "eval": [str(toy.eval)], "max_length": 64},
        "objective": dict(objective or {"name": "dpo", "beta": 0.1}),
        "reference": {"cache_dir": str(toy.cache), "rows_per_shard": 16},
        "train": {"learning_rate": 1e-3, "global_batch_pairs": 16, "save_every": 1, "eval_every": 2},
    }
    for name, value in (changes or {}).items():
        section, key = name.split(".")
        sections.setdefault(section, {})[key] = value
    return Config.model_validate(sections)


class Notes:
    """An observer that keeps the notes, by level."""

    def __init__(self) -> None:
        self.info: list[str] = []
        self.warning: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            getattr(self, event.level).append(event.text)


def nats_by_row(path: Path) -> dict[str, bytes]:
    """Row key -> the bytes of its float32 values."""
    rows = open_reference(path).to_pylist()
    return {row["row_key"]: np.asarray(row["token_nats"], np.float32).tobytes() for row in rows}


def config_with_cache(name: str, toy: Toy, run_dir: Path, *more: Any) -> Config:
    """`config` with a reference cache of its own, `name` in the toy's folder: its rows are in no other test's cache."""
    changes, rest = (more[0], more[1:]) if more else ({}, ())
    return config(toy, run_dir, {"reference.cache_dir": str(toy.root / name), **changes}, *rest)


def committed_shards(cache_dir: Path) -> set[Path]:
    return {path for path in cache_dir.glob("*/shards/*.json") if not path.name.startswith(".")}


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def metrics(run_dir: Path) -> list[dict[str, float]]:
    """metrics.jsonl without the one number that is a clock's."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_s"} for line in lines]


def flip_byte(path: Path, place: float = 0.5) -> None:
    """Flip one bit at `place`, a share of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def everything_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path under `folder` with size and time of change, to see that nothing was written."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}
