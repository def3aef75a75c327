"""`raydpo quickstart --rounds`: few labelled pairs, many prompts. Offline DPO alone, then on-policy rounds from its model.

Comes in: a run directory and a seed. Goes out: exact match of the supervised model, of offline DPO, of each round, and of
offline DPO that was given as many training pairs as the rounds had in all.
Decision: both ways train on equally many pairs; offline sees its few pairs again and again, rounds make new ones from
prompts without answers and a judge. That is what rounds are for: prompts and a judge are there, labelled answers are not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import write_json, write_text
from raydpo.config import Config
from raydpo.pipelines.quickstart import DPO_OBJECTIVE, MAX_NEW_TOKENS, Supervised, align, answers_of, supervise
from raydpo.pipelines.rounds import iterate
from raydpo.pipelines.sorting_task import exact_match, score
from raydpo.schema.events import Observer, StageDone, ignore

NUM_LABELLED = 128
NUM_PROMPTS = 512
NUM_ROUNDS = 3
OFFLINE_EPOCHS = 2
TRAIN = {"learning_rate": 7e-5, "global_batch_pairs": 64, "zero_stage": 2}
GENERATE = {"num_answers": 8, "max_new_tokens": MAX_NEW_TOKENS, "prompts_per_item": 64, "temperature": 1.0}


def quickstart_rounds(run_dir: str, seed: int = 0, observer: Observer = ignore) -> dict[str, Any]:
    """Run everything; returns {"exact_match": {"supervised", "offline", "rounds": [...], "offline_equal_pairs"}, ...}."""
    with runtime.session():
        start = supervise(run_dir, seed, observer)
        labelled, prompts = _split(start)
        offline = align(
            start, DPO_OBJECTIVE, folder="offline", settings=_offline(labelled, OFFLINE_EPOCHS), observer=observer
        )
        num_pairs, shares, answers = NUM_LABELLED * OFFLINE_EPOCHS, [], offline.answers
        model = Path(offline.summary["train"]["model"])
        config = rounds_config(start, model, prompts)
        for found in iterate(config, judge=score, observer=observer):
            answers = answers_of(found.model, start.task)
            shares.append(exact_match(start.task.prompts, answers))
            num_pairs += int(found.metrics["pairs/made"])
            observer(StageDone(f"round {found.index}", f"exact match {shares[-1]:.1%}"))
        epochs = num_pairs / NUM_LABELLED
        equal = align(
            start, DPO_OBJECTIVE, folder="offline_equal", settings=_offline(labelled, epochs), observer=observer
        )
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
            "run": {"dir": str(start.root / "rounds"), "seed": start.seed},
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"max_length": 64},
            "objective": DPO_OBJECTIVE,
            "reference": {"cache_dir": str(start.root / "cache"), "num_workers": start.workers},
            "train": {**TRAIN, "num_workers": start.workers},
            "generate": {**GENERATE, "num_workers": start.workers},
            "rounds": {
                "prompts": [str(prompts)],
                "prompts_per_round": NUM_PROMPTS,
                "num_rounds": NUM_ROUNDS,
                "reference": "previous_round",
            },
        }
    )


def _split(start: Supervised) -> tuple[Path, Path]:
    """The first pairs with their answers; of the others the prompts alone."""
    rows = start.task.pairs.read_text().splitlines(keepends=True)
    labelled, prompts = start.root / "task/labelled.jsonl", start.root / "task/prompts.jsonl"
    write_text(labelled, "".join(rows[:NUM_LABELLED]))
    bare: Sequence[str] = [json.dumps({"prompt": json.loads(row)["prompt"]}) + "\n" for row in rows[NUM_LABELLED:]]
    write_text(prompts, "".join(bare))
    return labelled, prompts


def _offline(labelled: Path, epochs: float) -> dict[str, dict[str, Any]]:
    return {"data": {"train": [str(labelled)]}, "train": {**TRAIN, "epochs": epochs}}
