"""`raydpo quickstart`: a fresh small model, supervised on demonstrations that are often wrong, aligned by DPO, measured.

Comes in: a run directory and a seed. Goes out: `sft/` and `dpo/`, two ordinary run directories, and a summary with the
exact-match accuracy of both models on held-out prompts.
Decision: both stages are the same `train` that every user calls, with the settings below; nothing here is special but
the task, whose answers a program can check.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import write_json
from raydpo.config import Config
from raydpo.generate.greedy import greedy
from raydpo.models.bpe import train_bpe
from raydpo.models.create import create_model
from raydpo.models.load import load_tokenizer
from raydpo.pipelines.offline import train
from raydpo.pipelines.sorting_task import TaskFiles, exact_match, is_correct, write_task
from raydpo.schema.events import Note, Observer, StageDone, ignore

VOCABULARY = 320
SHAPE: dict[str, Any] = {
    "hidden_size": 160,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_size": 448,
    "max_positions": 64,
}
MAX_NEW_TOKENS = 12
SFT = {"learning_rate": 1.5e-3, "epochs": 3, "global_batch_pairs": 64, "zero_stage": 2}
DPO = {"learning_rate": 7e-5, "epochs": 1, "global_batch_pairs": 64, "zero_stage": 2}


def quickstart(run_dir: str, seed: int = 0, observer: Observer = ignore) -> dict[str, Any]:
    """Run the whole job; returns the DPO run's summary plus `exact_match.before` and `.after` (shares of 1)."""
    root = Path(run_dir).expanduser().absolute()
    runtime.check_paths({"run.dir": run_dir})
    task = write_task(root / "task", seed)
    fresh = root / "fresh"
    num_parameters = create_model(fresh, train_bpe(task.texts, VOCABULARY), seed=seed, **SHAPE)
    observer(
        Note("info", f"task: {task.prompts[0]!r} -> {task.expected[0]!r}; a fresh model of {num_parameters:,} weights")
    )
    with runtime.session():
        sections = {"seed": seed, "workers": min(2, runtime.count_cpus())}
        train(_sft(root, task, **sections), observer)
        first = _answers(root / "sft/model", task)
        before = exact_match(task.prompts, first)
        observer(StageDone("sft", f"exact match {before:.1%} on {len(task.prompts)} held-out prompts"))
        summary = train(_dpo(root, task, **sections), observer)
        last = _answers(root / "dpo/model", task)
        after = exact_match(task.prompts, last)
        observer(StageDone("dpo", f"exact match {after:.1%} on {len(task.prompts)} held-out prompts"))
    for prompt, old, new in zip(task.prompts, first, last, strict=True):
        if is_correct(prompt, new) and not is_correct(prompt, old):
            observer(Note("info", f"for example {prompt!r}: {old!r} before, {new!r} after"))
            break
    summary = {**summary, "run_dir": str(root), "exact_match": {"before": before, "after": after}}
    write_json(root / "summary.json", summary)
    return summary


def _sft(root: Path, task: TaskFiles, *, seed: int, workers: int) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(root / "sft"), "seed": seed},
            "model": {"path": str(root / "fresh"), "dtype": "float32"},
            "data": {"train": [str(task.demonstrations)], "max_length": SHAPE["max_positions"]},
            "objective": {"name": "sft"},
            "train": {**SFT, "num_workers": workers},
        }
    )


def _dpo(root: Path, task: TaskFiles, *, seed: int, workers: int) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": str(root / "dpo"), "seed": seed},
            "model": {"path": str(root / "sft/model"), "dtype": "float32"},
            "data": {
                "train": [str(task.pairs)],
                "eval": [str(task.held_out)],
                "max_length": SHAPE["max_positions"],
            },
            "objective": {"name": "dpo", "beta": 0.1},
            "reference": {"cache_dir": str(root / "cache"), "num_workers": workers},
            "train": {**DPO, "num_workers": workers},
        }
    )


def _answers(model: Path, task: TaskFiles) -> list[str]:
    tokenizer = load_tokenizer(model)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in task.prompts]
    return [tokenizer.decode(ids) for ids in greedy(model, prompts, MAX_NEW_TOKENS)]
