"""Keeping, choosing and exporting checkpoints, and stopping early: one run on held-out pairs that are turned round.

Training makes such pairs worse step by step, so the best checkpoint is the first one and patience runs out.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from raydpo.artifacts import read_commit, verify_folder
from raydpo.pipelines import train
from tests.pipelines.toy import Notes, Toy, config, flip_byte, metrics, read_pairs, weights, write_pairs

CHANGES = {
    "train.learning_rate": 5e-3,
    "train.warmup_fraction": 0.0,
    "train.global_batch_pairs": 8,
    "train.save_every": None,
    "train.eval_every": 1,
    "train.keep_checkpoints": 2,
    "train.early_stopping_patience": 4,
    "train.export": "best",
}


def test_the_best_is_kept_and_exported(toy: Toy, scored: object, machine: None, tmp_path: Path) -> None:
    turned = [{**pair, "chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in read_pairs(toy.train)[:16]]
    held_out = write_pairs(tmp_path / "turned.jsonl", turned)
    run = tmp_path / "run"
    wanted = config(toy, run, {**CHANGES, "data.eval": [str(held_out)]})
    summary = train(wanted)

    margins = [line["eval/rewards/margins"] for line in metrics(run) if "eval/rewards/margins" in line]
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert all(later < earlier for earlier, later in itertools.pairwise(margins)), margins
    assert summary["train"]["steps"] == 4 == len(margins) - 1
    assert "did not rise in 4 evaluations" in summary["train"]["reason"]
    assert summary["train"]["exported_step"] == 1

    folders = sorted((run / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-000001", "step-000003", "step-000004"]
    assert [verify_folder(folder) for folder in folders] == [[], [], []]
    kept = [read_commit(folder)["meta"]["metrics"]["eval/rewards/margins"] for folder in folders]
    assert kept == [margins[1], margins[3], margins[4]]
    assert weights(run / "model") == weights(folders[0] / "model") != weights(folders[2] / "model")
    assert summary["eval"]["last"]["eval/rewards/margins"] == margins[4]

    # The best one is damaged later: the next best is exported, and said so.
    flip_byte(folders[0] / "model/model.safetensors")
    notes = Notes()
    again = train(wanted, notes)
    assert again["train"]["exported_step"] == 3
    assert ["step-000001" in text for text in notes.warning] == [True]
    assert weights(run / "model") == weights(folders[1] / "model")
