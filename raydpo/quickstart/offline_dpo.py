"""`raydpo quickstart`: a fresh small model, supervised on demonstrations that are often wrong, aligned by DPO, measured.

Comes in: a run directory and a seed. Goes out: `sft/` and `dpo/`, two ordinary run directories, and a summary with the
exact-match accuracy of both models on held-out prompts.
Decision: both stages are the same `train` that every user calls, with the settings below; nothing here is special but
the task, whose answers a program can check. The two stages are two functions, so that a comparison of objectives can
align one supervised model many times; the price is a value, `Supervised`, that carries what the second needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import write_json
from raydpo.config import Config
from raydpo.config.places import check_places
from raydpo.generate.greedy import greedy
from raydpo.models.pretrained import load_tokenizer
from raydpo.pipelines import train
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.quickstart.sorting_task import TaskFiles, exact_match, is_correct, write_task
from raydpo.runtime import Kind
from raydpo.schema.events import Note, Observer, StageDone, ignore

VOCABULARY = 320
SHAPE: dict[str, Any] = {
    "hidden_size": 160,
    "num_layers": 2,
    "num_heads": 5,
    "intermediate_size": 448,
    "max_positions": 64,
}
MAX_NEW_TOKENS = 12
SFT = {"learning_rate": 1.5e-3, "epochs": 3, "global_batch_pairs": 64, "zero_stage": 2}
DPO = {"learning_rate": 7e-5, "epochs": 1, "global_batch_pairs": 64, "zero_stage": 2}
DPO_OBJECTIVE = {"name": "dpo", "beta": 0.1}


@dataclass(frozen=True)
class Supervised:
    """The task and a model trained on its demonstrations: what every alignment starts from.

    root: folder of everything.
    task: files of the task.
    seed: of task and training.
    workers: ranks and scorers of each stage.
    model: folder of the model.
    answers: what the model says to the held-out prompts.
    exact_match: share of them that are right, from 0 to 1.
    kind: of the runtime.
    """

    root: Path
    task: TaskFiles
    seed: int
    workers: int
    model: Path
    answers: tuple[str, ...]
    exact_match: float
    kind: Kind = "ray"


@dataclass(frozen=True)
class Aligned:
    """An alignment.

    summary: of its run.
    answers, exact_match: as in `Supervised`.
    """

    summary: dict[str, Any]
    answers: tuple[str, ...]
    exact_match: float


def quickstart(run_dir: str, seed: int = 0, observer: Observer = ignore, kind: Kind = "ray") -> dict[str, Any]:
    """Run the whole job; returns the DPO run's summary plus `exact_match.before` and `.after` (shares of 1).

    kind: of the runtime, ray or local.
    """
    with runtime.session(kind=kind):
        start = supervise(run_dir, seed, observer, kind)
        end = align(start, DPO_OBJECTIVE, observer=observer)
    for prompt, old, new in zip(start.task.prompts, start.answers, end.answers, strict=True):
        if is_correct(prompt, new) and not is_correct(prompt, old):
            observer(Note("info", f"for example {prompt!r}: {old!r} before, {new!r} after"))
            break
    exact = {"before": start.exact_match, "after": end.exact_match}
    summary = {**end.summary, "run_dir": str(start.root), "exact_match": exact}
    write_json(start.root / "summary.json", summary)
    return summary


def supervise(
    run_dir: str, seed: int = 0, observer: Observer = ignore, kind: Kind = "ray", shape: Mapping[str, Any] = SHAPE
) -> Supervised:
    """Write the task, make a fresh model of `shape` and train it on the demonstrations. Needs a session of this kind.

    The same call goes on where an earlier one in `run_dir` ended.
    """
    check_places({"--run-dir": run_dir})
    runtime.check_paths({"run.dir": run_dir})
    root = Path(run_dir).expanduser().absolute()
    task = write_task(root / "task", seed)
    fresh = root / "fresh"
    num_parameters = create_model(fresh, train_bpe(task.texts, VOCABULARY), seed=seed, **shape)
    observer(
        Note("info", f"task: {task.prompts[0]!r} -> {task.expected[0]!r}; a fresh model of {num_parameters:,} weights")
    )
    workers = min(2, runtime.count_cpus())
    train(sft_config(root, task, seed=seed, workers=workers, kind=kind), observer)
    model = root / "sft/model"
    answers = answers_of(model, task)
    share = exact_match(task.prompts, answers)
    observer(StageDone("sft", f"exact match {share:.1%} on {len(task.prompts)} held-out prompts"))
    return Supervised(root, task, seed, workers, model, answers, share, kind)


def align(
    start: Supervised,
    objective: Mapping[str, Any],
    *,
    folder: str = "dpo",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    observer: Observer = ignore,
) -> Aligned:
    """Align the supervised model in `<root>/<folder>`; arguments as in `alignment_config`. Needs a session."""
    config = alignment_config(start, objective, folder=folder, settings=settings)
    summary = train(config, observer)
    answers = answers_of(Path(config.run.dir) / "model", start.task)
    share = exact_match(start.task.prompts, answers)
    name = config.objective.name
    observer(StageDone(name, f"exact match {share:.1%} on {len(start.task.prompts)} held-out prompts"))
    return Aligned(summary, answers, share)


def sft_config(root: Path, task: TaskFiles, *, seed: int, workers: int, kind: Kind = "ray") -> Config:
    """The supervised stage of the quickstart."""
    return Config.model_validate(
        {
            "run": _run_section(root / "sft", seed, kind),
            "model": {"path": str(root / "fresh"), "dtype": "float32"},
            "data": {"train": [str(task.demonstrations)], "max_length": SHAPE["max_positions"]},
            "objective": {"name": "sft"},
            "train": {**SFT, "num_workers": workers},
        }
    )


def alignment_config(
    start: Supervised,
    objective: Mapping[str, Any],
    *,
    folder: str = "dpo",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """The second stage, with any objective section. settings: section -> key -> value, over those of the quickstart.

    All alignments of one supervised model share the reference cache in its root.
    """
    root, task = start.root, start.task
    sections: dict[str, dict[str, Any]] = {
        "run": _run_section(root / folder, start.seed, start.kind),
        "model": {"path": str(start.model), "dtype": "float32"},
        "data": {
            "train": [str(task.pairs)],
            "eval": [str(task.held_out)],
            "max_length": SHAPE["max_positions"],
        },
        "objective": dict(objective),
        "reference": {"cache_dir": str(root / "cache"), "num_workers": start.workers},
        "train": {**DPO, "num_workers": start.workers},
    }
    for section, values in (settings or {}).items():
        sections[section] = {**sections.get(section, {}), **values}
    return Config.model_validate(sections)


def _run_section(folder: Path, seed: int, kind: Kind) -> dict[str, Any]:
    runtime_key = {} if kind == "ray" else {"runtime": kind}
    return {"dir": str(folder), "seed": seed, **runtime_key}


def answers_of(model: Path, task: TaskFiles) -> tuple[str, ...]:
    """What a model folder says to the held-out prompts, greedy."""
    tokenizer = load_tokenizer(model)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in task.prompts]
    return tuple(tokenizer.decode(ids) for ids in greedy(model, prompts, MAX_NEW_TOKENS))
