"""One family through everything that a run does: layout, step 0, an interruption, a resume, an adapter, the export.

Comes in: a family. Goes out: a dict of short texts, "yes" or what was said instead. Decision: all of it are real runs of the
pipelines in this process, three steps of DPO on pairs of the sorting task; an error of one of them is its answer, by its first
sentence, and the next is tried all the same.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.families.recipe import write_random_model
from raydpo.config import Config
from raydpo.errors import RaydpoError
from raydpo.pipelines.offline import evaluate, train
from raydpo.schema.events import Advanced, Event, Note, ignore

LN_2 = math.log(2)
STEPS = 4
LORA = {"rank": 4, "alpha": 8, "merge": True}
Answer = dict[str, str]


class Interrupted(Exception):
    """A run that is stopped after its first checkpoint."""


def try_family(family: str, folder: Path) -> Answer:
    """What happened to a random model of `family`, whose runs go to `folder`."""
    answer: Answer = {}
    if not _asked(answer, "model", lambda: _written(family, folder / "model")):
        return answer
    _write_pairs(folder)
    notes: list[str] = []
    whole = _asked(answer, "step 0", lambda: _step_0(train(_config(folder, "whole"), notes_into(notes))))
    padded = next((note for note in notes if "rows are padded" in note), "")
    answer["layout"] = ("padded: " + padded.partition("padded: ")[2] if padded else "shared prompts") if whole else "-"
    answer["notes"] = next((note for note in notes if note.startswith("the balancing loss")), "")
    if whole:
        _asked(answer, "resume", lambda: _resume(folder))
        _asked(answer, "export", lambda: _export(folder))
    _asked(answer, "LoRA", lambda: _step_0(train(_config(folder, "lora", **{"train.lora": LORA}), ignore)))
    return answer


def _asked(answer: Answer, column: str, ask: Callable[[], str]) -> bool:
    try:
        answer[column] = ask()
    except RaydpoError as error:
        _, worker, cause = str(error).partition(") raised ")
        answer[column] = f"fails: {first_sentence(cause)}" if worker else f"refused: {first_sentence(str(error))}"
    except Exception as error:  # noqa: BLE001 (what the page is to show)
        answer[column] = f"fails: {type(error).__name__}: {first_sentence(str(error))}"
    return answer[column].startswith("yes")


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, on one line, short enough for a table."""
    line = " ".join(text.split())
    sentence = line.partition(". ")[0].rstrip(".")
    return sentence if len(sentence) <= 200 else f"{sentence[:197]}..."


def notes_into(notes: list[str]) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return observe


def _written(family: str, folder: Path) -> str:
    write_random_model(family, folder)
    return "yes"


def _step_0(summary: dict[str, Any]) -> str:
    first = summary["eval"]["first"]["eval/loss"]
    return "yes" if abs(first - LN_2) < 1e-5 else f"no: {first:.6f} nats"


def _resume(folder: Path) -> str:
    def stop(event: Event) -> None:
        if isinstance(event, Advanced) and event.stage == "train" and event.done == 3:  # after the first checkpoint
            raise Interrupted

    with suppress(Interrupted):
        train(_config(folder, "resumed"), stop)
    summary = train(_config(folder, "resumed"), ignore)
    start = summary["train"]["resumed_from_step"]
    if start not in (1, 2):
        return f"no: it went on from step {start}"
    one, other = ((folder / run / "model/model.safetensors").read_bytes() for run in ("whole", "resumed"))
    same = one == other
    return "yes, to the bit" if same else "no: other weights"


def _export(folder: Path) -> str:
    last = json.loads((folder / "whole" / "summary.json").read_text())["eval"]["last"]["eval/loss"]
    again = evaluate(_config(folder, "whole"), ignore)["eval"]["last"]["eval/loss"]
    return "yes" if abs(last - again) < 1e-5 else f"no: {again:.6f} nats, the trainer had {last:.6f}"


def _config(folder: Path, run: str, **changes: Any) -> Config:
    sections: dict[str, dict[str, Any]] = {
        "run": {"dir": str(folder / run), "runtime": "local"},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "data": {"train": [str(folder / "train.jsonl")], "eval": [str(folder / "eval.jsonl")], "max_length": 64},
        "objective": {"name": "dpo", "beta": 0.1},
        "reference": {"cache_dir": str(folder / "cache")},
        "train": {"learning_rate": 1e-3, "global_batch_pairs": 8, "save_every": 1, "max_steps": STEPS},
    }
    for name, value in changes.items():
        section, key = name.split(".")
        sections[section][key] = value
    return Config.model_validate(sections)


def _write_pairs(folder: Path) -> None:
    draw = random.Random(5)
    for name, count in (("train", 8 * STEPS), ("eval", 8)):
        lines = []
        for number in range(count):
            words = sorted(str(draw.randrange(10, 99)) for _ in range(draw.randrange(2, 5)))
            prompt, rejected = f"{name} {number}: sort {' '.join(reversed(words))}", " ".join(reversed(words))
            lines.append(json.dumps({"prompt": prompt, "chosen": " " + " ".join(words), "rejected": f" {rejected} no"}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
