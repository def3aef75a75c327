"""`raydpo quickstart --rounds`: pairs of another model's mistakes. Offline DPO alone, then on-policy rounds from there.

Comes in: a run directory and a seed. Goes out: exact match of the supervised model, of offline DPO, of each round, and of
offline DPO with as many different training pairs as the rounds had in all.
Decision: the rejected answers of the offline pairs are not mistakes that this policy makes, as in most data that others
collected. Offline DPO then has little to say about what the policy does wrong; a round samples exactly that.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import write_json
from raydpo.config import Config
from raydpo.pipelines import iterate
from raydpo.quickstart.offline_dpo import (
    DPO,
    DPO_OBJECTIVE,
    MAX_NEW_TOKENS,
    Aligned,
    Supervised,
    align,
    answers_of,
    supervise,
)
from raydpo.quickstart.sorting_task import exact_match, foreign_pair, score, write_rows
from raydpo.runtime import Kind
from raydpo.schema.events import Observer, StageDone, ignore

NUM_LABELLED = 800
"""Pairs of the first offline stage; the prompts of the others are those of the rounds."""
PROMPTS_PER_ROUND = 400
NUM_ROUNDS = 3
GENERATE = {"num_answers": 8, "max_new_tokens": MAX_NEW_TOKENS, "prompts_per_item": 64, "temperature": 1.0}


def quickstart_rounds(run_dir: str, seed: int = 0, observer: Observer = ignore, kind: Kind = "ray") -> dict[str, Any]:
    """Run everything, on the runtime `kind`.

    Returns {"exact_match": {"supervised", "offline", "rounds": [...], "offline_equal_pairs"}, ...}.
    """
    with runtime.session(kind=kind):
        start = supervise(run_dir, seed, observer, kind)
        pairs = _foreign_pairs(start)
        bare = [{"prompt": pair["prompt"]} for pair in pairs[NUM_LABELLED:]]
        prompts = write_rows(start.root / "task/prompts.jsonl", bare)
        offline = _offline(start, "offline", pairs[:NUM_LABELLED], observer)
        num_pairs, shares = NUM_LABELLED, list[float]()
        model = Path(offline.summary["train"]["model"])
        config = rounds_config(start, model, prompts)
        for found in iterate(config, judge=score, observer=observer):
            shares.append(exact_match(start.task.prompts, answers_of(found.model, start.task)))
            num_pairs += int(found.metrics["pairs/made"])
            observer(StageDone(f"round {found.index}", f"exact match {shares[-1]:.1%}"))
        equal = _offline(start, "offline_equal", pairs[:num_pairs], observer)
    summary = {
        "run_dir": str(start.root),
        "training_pairs": num_pairs,
        "exact_match": {
            "supervised": start.exact_match,
            "offline": offline.exact_match,
            "rounds": shares,
            "offline_equal_pairs": equal.exact_match,
        },
    }
    write_json(start.root / "rounds_summary.json", summary)
    return summary


def rounds_config(start: Supervised, model: Path, prompts: Path) -> Config:
    """Three rounds from `model`; each is measured from the policy that it starts from."""
    return Config.model_validate(
        {
            "run": {"dir": str(start.root / "rounds"), "seed": start.seed, "runtime": start.kind},
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"max_length": 64},
            "objective": DPO_OBJECTIVE,
            "reference": {"cache_dir": str(start.root / "cache"), "num_workers": start.workers},
            "train": {**DPO, "num_workers": start.workers},
            "generate": {**GENERATE, "num_workers": start.workers},
            "rounds": {
                "prompts": [str(prompts)],
                "prompts_per_round": PROMPTS_PER_ROUND,
                "num_rounds": NUM_ROUNDS,
                "reference": "previous_round",
            },
        }
    )


def _foreign_pairs(start: Supervised) -> list[dict[str, str]]:
    chance = random.Random(start.seed)
    prompts = [json.loads(line)["prompt"] for line in start.task.pairs.read_text().splitlines()]
    return [foreign_pair(prompt, chance) for prompt in prompts]


def _offline(start: Supervised, name: str, pairs: Sequence[Mapping[str, str]], observer: Observer) -> Aligned:
    """Offline DPO on `pairs` from the supervised model."""
    file = write_rows(start.root / f"task/{name}.jsonl", pairs)
    return align(start, DPO_OBJECTIVE, folder=name, settings={"data": {"train": [str(file)]}}, observer=observer)
