"""Objectives on labels from start to evaluation, and what their rows cost: KTO's mismatched rows are cached like any."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.errors import ConfigError, DataError
from raydpo.pipelines import evaluate, precompute, train
from tests.pipelines.toy import NUM_EVAL, NUM_TRAIN, Toy, config, metrics, read_pairs

LABELLED = {"data.unpair": True, "train.learning_rate": 3e-3}


@pytest.mark.parametrize("name", ["kto", "bco"])
def test_from_start_to_evaluation(toy: Toy, machine: None, tmp_path: Path, name: str) -> None:
    changes = {**LABELLED, "reference.cache_dir": str(tmp_path / "cache"), "train.num_workers": 2}
    wanted = config(toy, tmp_path / "run", changes, objective={"name": name})
    summary = train(wanted)
    answers = 2 * (NUM_TRAIN + NUM_EVAL)
    assert summary["reference"]["rows"] == answers * (2 if name == "kto" else 1)  # each with its mismatched one
    assert summary["data"]["train_pairs"] == 2 * NUM_TRAIN
    first, last = summary["eval"]["first"], summary["eval"]["last"]
    assert first["eval/rewards/ties"] == 1
    assert first["eval/loss"] == pytest.approx({"kto": 0.5, "bco": 0.693147}[name], abs=1e-4)
    assert last["eval/loss"] < first["eval/loss"] - 1e-3
    assert last["eval/rewards/margins"] > 0.02
    assert last["eval/rewards/accuracies"] > 0.6
    assert ("eval/kl" in last) == (name == "kto")
    assert last["eval/log_ratios/margins"] == pytest.approx(last["eval/rewards/margins"] / 0.1, rel=1e-5)
    again = evaluate(wanted)["eval"]["last"]
    assert again == pytest.approx(last, abs=1e-4)
    assert any("rewards/chosen" in line for line in metrics(tmp_path / "run"))


def test_mismatched_rows_are_a_function_of_the_data_alone(toy: Toy, machine: None, tmp_path: Path) -> None:
    base: dict[str, Any] = {**LABELLED, "reference.cache_dir": str(tmp_path / "cache")}
    first = precompute(config(toy, tmp_path / "first", base, objective={"name": "kto"}))["reference"]
    assert first["rows_scored"] == first["rows"] == 4 * (NUM_TRAIN + NUM_EVAL)
    others = {"run.seed": 5, "train.global_batch_pairs": 7, "train.num_workers": 2, "train.tokens_per_microbatch": 99}
    again = precompute(config(toy, tmp_path / "again", {**base, **others}, objective={"name": "kto"}))["reference"]
    assert (again["rows_scored"], again["forwards"]) == (0, 0)
    pairs = precompute(config(toy, tmp_path / "dpo", {"reference.cache_dir": str(tmp_path / "cache")}))["reference"]
    assert (pairs["rows"], pairs["rows_scored"]) == (2 * (NUM_TRAIN + NUM_EVAL), 0)


def test_unpair_without_an_objective_on_labels_is_refused(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.unpair is true, but objective dpo.*kto, bco, apo_zero_unpaired"):
        precompute(config(toy, tmp_path / "run", {"data.unpair": True}))


@pytest.mark.parametrize("changes", [{"train.export": "best"}, {"train.early_stopping_patience": 2}])
def test_margins_of_one_label_cannot_choose_anything(toy: Toy, machine: None, tmp_path: Path, changes: Any) -> None:
    rows = [{"prompt": p["prompt"], "completion": p["chosen"], "label": True} for p in read_pairs(toy.eval)]
    both = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in read_pairs(toy.train)
        for side in ("chosen", "rejected")
    ]
    files = {"data.train": tmp_path / "train.jsonl", "data.eval": tmp_path / "eval.jsonl"}
    for path, lines in zip(files.values(), (both, rows), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {key: [str(path)] for key, path in files.items()} | changes
    wanted = config(toy, tmp_path / "run", settings, objective={"name": "bco"})
    with pytest.raises(DataError, match=f"{next(iter(changes))}.*all 16 held-out answers have one label"):
        train(wanted)
    assert not (tmp_path / "run/checkpoints").exists()
