"""A small world to train in: text, a tokenizer, a model with opinions, token shards and their reference cache."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydpo.artifacts import ReferenceCache, weights_digest
from raydpo.config import OBJECTIVES, Config
from raydpo.data import prepare
from raydpo.models.pretrained import load_model, load_tokenizer
from raydpo.models.resolve import ResolvedModel
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.reference.identity import reference_identity
from raydpo.reference.plan import plan_shards, wanted_rows
from raydpo.reference.score import Scorer, ScorerSpec
from raydpo.train import TrainSpec

NUM_TRAIN, NUM_EVAL = 64, 10
GLOBAL_BATCH = 14
NUM_STEPS = 5  # four full batches and one of 8
TRAIN = {
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup_fraction": 0.2,
    "global_batch_pairs": GLOBAL_BATCH,
    "tokens_per_microbatch": 1024,
    "zero_stage": 0,
}

_TOPICS = ["rice", "bread", "a garden", "old letters", "the harbour", "winter tyres", "a bicycle", "tomato soup"]
_ASKS = ["How do I care for {}?", "Tell me something about {}.", "Is it hard to learn about {} at my age?"]
_GOOD = [
    "Start small and take notes.",
    "Ask a neighbour who has done it before; most people are glad to help.",
    "It takes about twenty minutes a day.",
    "Keep it dry, clean and away from direct sun.",
]
_BAD = ["I don't know.", "Just buy a new one, who cares!", "That is a silly question.", "Maybe. Maybe not. Whatever."]


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Prompts with two different answers of different lengths, as TRL's standard format has them."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        ask = draw.choice(_ASKS).format(draw.choice(_TOPICS))
        good = " ".join(draw.sample(_GOOD, draw.randint(1, 4)))
        bad = " ".join(draw.sample(_BAD, draw.randint(1, 3)))
        prompt = f"\n\nHuman: {ask} (letter {seed + number})\n\nAssistant:"
        rows.append({"prompt": prompt, "chosen": f" {good}", "rejected": f" {bad}"})
    return rows


@dataclass(frozen=True)
class World:
    """`reference` was scored into the cache; `policy` is another model of the same shape. Rows as they were written."""

    folder: Path
    reference: Path
    policy: Path
    data: Path
    labelled: Path
    train_rows: list[dict[str, str]]

    def config(self, objective: Any = "dpo", dtype: str = "float32", **train: Any) -> Config:
        """objective: a name, or the whole section. Objectives on labels read each pair as two answers."""
        name = objective if isinstance(objective, str) else objective["name"]
        files = {split: [str(self.folder / f"{split}.jsonl")] for split in ("train", "eval")}
        return Config.model_validate(
            {
                "run": {"dir": str(self.folder / "run"), "seed": 3},
                "model": {"path": str(self.reference), "dtype": dtype},
                "data": {**files, "unpair": OBJECTIVES[name].data == "labels"},
                "objective": objective,
                "train": TRAIN | train,
            }
        )

    def scorer_spec(
        self, cache_dir: Path, dtype: str = "float32", tokens_per_batch: int = 1024, data: Path | None = None
    ) -> ScorerSpec:
        reference = ResolvedModel("reference", None, self.reference)
        identity = reference_identity(weights_digest(reference.folder), self.reference, dtype, "auto", use_gpu=False)
        return ScorerSpec(reference, dtype, "auto", data or self.data, cache_dir, identity, tokens_per_batch)

    def cache(self, dtype: str = "float32", data: Path | None = None) -> tuple[Path, Any]:
        """Cache directory and identity, scored on first use."""
        spec = self.scorer_spec(self.folder / "cache", dtype, data=data)
        wanted = wanted_rows(spec.data, ("train", "eval"), 2)
        work = plan_shards(wanted, ReferenceCache(spec.cache_dir, spec.identity).open(), 32)
        if work:
            scorer = Scorer(spec)
            for shard in work:
                scorer(shard)
        return spec.cache_dir, spec.identity

    def spec(
        self, staging: Path, objective: Any = "dpo", dtype: str = "float32", policy: Path | None = None, **train: Any
    ) -> TrainSpec:
        """A fresh start from the reference's weights (or `policy`), with an evaluation and the probe before step 1."""
        config = self.config(objective, dtype, **train)
        data = self.labelled if config.objective.row.data == "labels" else self.data
        needs_reference = config.objective.needs_reference
        return TrainSpec(
            config=config,
            model=ResolvedModel("start", None, policy or self.reference),
            dtype=dtype,
            data=data,
            staging=staging,
            reference=self.cache(dtype, data) if needs_reference else None,
            probe=needs_reference and policy is None,
        )


def make_world(folder: Path) -> World:
    """Write a world to `folder`."""
    train, held_out = pairs(NUM_TRAIN, 100), pairs(NUM_EVAL, 900)
    for name, rows in (("train", train), ("eval", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = train_bpe((" ".join(row.values()) for row in train), 340)
    for name, seed in (("reference", 0), ("policy", 1)):
        shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "max_positions": 512}
        create_model(folder / name, tokenizer, **shape, seed=seed)
        _give_opinions(folder / name)
    folders = (folder / name for name in ("reference", "policy", "data", "labelled"))
    world = World(folder, *folders, train)
    report = prepare(world.config(), str(world.reference), world.data)
    assert (report.train_pairs, report.eval_pairs) == (NUM_TRAIN, NUM_EVAL)
    assert prepare(world.config("kto"), str(world.reference), world.labelled).train_pairs == 2 * NUM_TRAIN
    return world


def _give_opinions(folder: Path) -> None:
    # Fresh weights are so small that every token is about equally likely; larger ones make differences visible.
    model = load_model(folder, "float32", "sdpa")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(8.0)
    model.save_pretrained(folder)
    load_tokenizer(folder).save_pretrained(folder)


@torch.no_grad()
def plain_nats(model: Any, prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Log-probs of an answer's tokens by one unpadded forward of transformers itself: float64 nats."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(-1)
    return logits.gather(1, ids[0, 1:, None]).squeeze(1)[len(prompt) - 1 :].numpy()
