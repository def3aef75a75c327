"""What is run twice, disturbed and undisturbed, and what must be equal at the end.

Comes in: a folder, and where the real pairs are. Goes out: a verb of the command line, a config for each of the two, and
answers by name, such as {"weights": True}. Decision: small random models everywhere, so that hours of kills are hours of
kills; two ranks and one global batch throughout, so that equal means bit for bit.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.config import Config
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from tests.pipelines.rounds.toy_rounds import no_digits, pairs, rounds_config
from tests.pipelines.toy import Toy, committed_shards, config, make_toy, metrics, nats_by_row, weights

NUM_HH_PAIRS, NUM_ROUNDS = 320, 3
EVERYWHERE = {
    "run.runtime_in_process": False,
    "train.num_workers": 2,
    "train.keep_checkpoints": 1,
    "train.hang_timeout_s": 600,
    "reference.hang_timeout_s": 600,
}
TRAINING = {
    "train.epochs": 60,
    "train.save_every": 4,
    "train.eval_every": 40,
    "reference.rows_per_shard": 2,
    "reference.tokens_per_batch": 1,
}
HH = TRAINING | {
    "data.max_length": 192,
    "data.overlong": "truncate_prompt",
    "data.eval_fraction": 0.1,
    "reference.rows_per_shard": 16,
    "reference.tokens_per_batch": 512,
    "train.epochs": 6,
    "train.global_batch_pairs": 16,
    "train.tokens_per_microbatch": 1024,
}
ROUNDS = {
    "train.save_every": 1,
    "train.epochs": 2,
    "generate.num_workers": 2,
    "generate.prompts_per_item": 2,
    "generate.hang_timeout_s": 600,
    "judge.num_workers": 2,
    "judge.hang_timeout_s": 600,
    "judge.function": "tests.soak.scenes:patient_judge",
    "rounds.num_rounds": NUM_ROUNDS,
}


@dataclass(frozen=True)
class SoakScene:
    """name: of toy, hh and rounds. verb: of the command line. toy: model and pairs."""

    name: str
    verb: str
    toy: Toy

    @property
    def root(self) -> Path:
        return self.toy.root

    def config(self, name: str, runtime: str) -> Config:
        """Of the run in the folder `name`, with a cache of its own."""
        own = {"run.runtime": runtime, "reference.cache_dir": str(self.root / f"{name}-cache")}
        if self.name == "rounds":
            return rounds_config(self.toy, self.root / name, EVERYWHERE | ROUNDS | own)
        changes: Mapping[str, Any] = EVERYWHERE | TRAINING | own
        if self.name == "hh":
            changes = {**changes, **HH, "data.train": [str(self.toy.train)], "data.eval": []}
        return config(self.toy, self.root / name, changes)

    def committed(self, name: str) -> str:
        """What lies there for good: another text after each commit."""
        run = self.root / name
        shards = len(committed_shards(self.root / f"{name}-cache"))
        if self.name != "rounds":
            return f"{_newest(run)} and {shards} shards"
        places = _found(run, "rounds/*/[!.]*")
        newest = _newest(max(places, default=run).parent / "train")
        parts = len(_found(run, "rounds/*/.*-work/part-*")) + len(_found(run, "rounds/*/evaluation/*/part-*"))
        return f"{newest}, {shards} shards, {parts} parts and {len(places)} pieces of rounds"

    def compared(self, one: str, other: str) -> dict[str, bool]:
        """Whether both runs left the same, bit for bit."""
        first, second = self.root / one, self.root / other
        caches = nats_by_row(self.root / f"{one}-cache") == nats_by_row(self.root / f"{other}-cache")
        if self.name == "rounds":
            rounds = range(NUM_ROUNDS)
            models = [f"rounds/{index:03d}/train/model" for index in rounds]
            return {
                "reference rows": caches,
                "pairs": all(pairs(first, index) == pairs(second, index) for index in rounds),
                "weights": all(weights(first / model) == weights(second / model) for model in models),
            }
        return {
            "reference rows": caches,
            "metrics": metrics(first) == metrics(second),
            "weights": weights(first / "model") == weights(second / "model"),
        }


def _newest(run: Path) -> str:
    """Its newest checkpoint, by name."""
    return max((path.name for path in _found(run, "checkpoints/step-*")), default="no checkpoint")


def _found(folder: Path, pattern: str) -> list[Path]:
    """Without those that vanish while they are looked for."""
    while True:
        with suppress(FileNotFoundError):
            return list(folder.glob(pattern))


def make_scene(name: str, root: Path, hh: Path) -> SoakScene:
    """hh: a file of HH-RLHF transcripts, for the scene of that name."""
    if name != "hh":
        return SoakScene(name, "iterate" if name == "rounds" else "train", make_toy(root))
    with gzip.open(hh, "rt", encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(NUM_HH_PAIRS), strict=False)]
    toy = Toy(root, root / "model", root / "model", root / "hh.jsonl", root / "hh.jsonl", root / "cache")
    toy.train.write_text("".join(lines))
    tokenizer = train_bpe([json.loads(line)["chosen"] for line in lines], 1024)
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_positions": 256}
    create_model(toy.model, tokenizer, seed=0, **shape)
    return SoakScene(name, "train", toy)


def patient_judge(prompt: str, responses: list[str]) -> list[float]:
    """Takes its time, so that it may be met at its work."""
    time.sleep(0.2)
    return no_digits(prompt, responses)
