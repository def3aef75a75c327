"""What a training takes, counted: the most bytes of tensors that live at one time in its steps, and what a plan says of it.

Comes in: a model folder and settings of `train`. Goes out: bytes. Decision: the training of one rank is `raydpo.train` in this
process without Ray, of several `benchmarks.counted_ranks`; every storage that an operation sees or makes is counted while it
lives, weights and optimizer too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.counted_ranks import most_of_a_rank
from raydpo.capacity.machine_room import Room
from raydpo.capacity.planning import Question, plan_run
from raydpo.config import Config
from raydpo.models.memory import Living
from raydpo.pipelines import train
from raydpo.quickstart.bpe import SMALLEST_VOCABULARY, train_bpe
from raydpo.schema.events import Advanced, Event

NUM_STEPS = 2
WORDS = [str(number) for number in range(10, 100)]
Shape = Mapping[str, Any]


class Everything(Living):  # type: ignore[no-untyped-call]
    """Counts storages that were there before, too."""

    def _see(self, tensor: Tensor, is_new: bool) -> None:
        super()._see(tensor, is_new=True)


def write_model(folder: Path, family: str, shape: Shape) -> int:
    """A model of random weights, and a tokenizer; returns the number of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = train_bpe([" ".join(WORDS)], SMALLEST_VOCABULARY)  # a token for each byte
    control = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **control, **shape)).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def write_pairs(path: Path, number: int, words: int) -> int:
    """Pairs of equally many tokens; returns their number in an example, the prompt once."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=words))

    rows = [{"prompt": f"{i:04d}: {text()}", "chosen": f" {text()}", "rejected": f" {text()}"} for i in range(number)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sum(len(text) for text in rows[0].values()) + 3  # one token in front, and one behind each answer


def config_of(model: Path, pairs: Path, run: Path, dtype: str, settings: Mapping[str, Any]) -> Config:
    """Two steps without a reference, an evaluation or a proof of the export."""
    found: Config = Config.model_validate(
        {
            "run": {"dir": str(run), "runtime": "local"},
            "model": {"path": str(model), "dtype": dtype},
            "data": {"train": [str(pairs)]},
            "objective": {"name": "simpo"},
            "reference": {"cache_dir": str(run.parent / "cache")},
            "train": {"max_steps": NUM_STEPS, "verify_export": False, "sinks": ["jsonl"], **settings},
        }
    )
    return found


def counted(config: Config) -> int:
    """The most bytes that live at one time in the steps of a training, of several ranks on one of them."""
    if config.train.ranks[0] > 1:
        return most_of_a_rank(config)
    peaks: list[int] = []
    everything = Everything()

    def watch(event: Event) -> None:
        if isinstance(event, Advanced) and event.stage == "train":
            peaks.append(max(everything.trace))
            everything.trace.clear()

    with everything:
        train(config, observer=watch)
    assert len(peaks) == NUM_STEPS
    return max(peaks)


def compared(config: Config) -> dict[str, Any]:
    """What a plan says of the steps and what they take; also without the bucket, whose size says nothing of the model."""
    plan = plan_run(config, Question(Room(None, 0, 10**12)))
    role, peak = plan["roles"][0], counted(config)
    bucket = plan["bucket_bytes"]
    return {
        "planned": round(role["bytes"]),
        "counted": peak,
        "error": role["bytes"] / peak - 1,
        "error_without_bucket": (role["bytes"] - bucket) / (peak - bucket) - 1,
        "parts": {name: round(size) for name, size in role["parts"].items() if size},
        "moment": role["what"],
    }
