"""A preference objective without a reference: no cache, no reference workers, margins that name the best checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.artifacts import read_commit
from raydpo.pipelines import evaluate, train
from tests.pipelines.toy import Toy, config, metrics


def test_simpo_from_start_to_evaluation(toy: Toy, machine: None, tmp_path: Path) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    changes = {
        "reference.cache_dir": str(cache),
        "train.learning_rate": 3e-3,
        "train.save_every": None,
        "train.export": "best",
        "train.early_stopping_patience": 3,
    }
    wanted = config(toy, run, changes, objective={"name": "simpo"})
    summary = train(wanted)

    assert summary["reference"]["rows"] == 0
    assert not cache.exists()
    assert not (run / "reference.json").exists()
    lines = metrics(run)
    margins = [line["eval/rewards/margins"] for line in lines if "eval/rewards/margins" in line]
    assert len(margins) == 3
    assert margins[-1] > margins[0] + 0.01
    assert not [key for line in lines for key in line if "log_ratios" in key]
    step = summary["train"]["exported_step"]
    kept = read_commit(run / "checkpoints" / f"step-{step:06d}")["meta"]["metrics"]
    assert kept["eval/rewards/margins"] == max(margins[1:])

    again = evaluate(wanted)  # of the exported model, the best one
    assert again["eval"]["last"]["eval/rewards/margins"] == pytest.approx(max(margins[1:]), abs=1e-5)
    assert not cache.exists()
