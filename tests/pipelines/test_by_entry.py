"""Held-out metrics by entry of data.eval: each is what the entry gives alone, and together they are the whole's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from raydpo.pipelines import evaluate, train
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import NUM_EVAL, Toy, config_with_cache, metrics, read_pairs, write_pairs

pytestmark = pytest.mark.slow

FEW = 5

config = partial(config_with_cache, "by_entry")


def parts(toy: Toy, folder: Path) -> list[dict[str, str]]:
    pairs = read_pairs(toy.eval)
    few, rest = write_pairs(folder / "few.jsonl", pairs[:FEW]), write_pairs(folder / "rest.jsonl", pairs[FEW:])
    return [{"path": str(few), "name": "few"}, {"path": str(rest), "name": "rest"}]


def eval_lines(run_dir: Path) -> list[dict[str, float]]:
    return [line for line in metrics(run_dir) if "eval/loss" in line]


def test_each_entry_next_to_the_whole(toy: Toy, finished: Finished, tmp_path: Path) -> None:
    entries = parts(toy, tmp_path)
    train(config(toy, tmp_path / "both", {"data.eval": entries}))
    train(config(toy, tmp_path / "alone", {"data.eval": entries[:1]}))
    lines, one_file = eval_lines(tmp_path / "both"), eval_lines(finished.dir)
    assert len(lines) == len(one_file) == 3
    for line, plain, alone in zip(lines, one_file, eval_lines(tmp_path / "alone"), strict=True):
        assert plain == {name: line[name] for name in plain}, "the whole split, to the bit; one entry has no more names"
        own = {name for name in plain if name.startswith("eval/")}
        for entry in ("few", "rest"):
            assert own == {"eval/" + name.removeprefix(f"eval/{entry}/") for name in line if f"/{entry}/" in name}
        for name in own:
            few, rest = line[name.replace("eval/", "eval/few/")], line[name.replace("eval/", "eval/rest/")]
            assert (FEW * few + (NUM_EVAL - FEW) * rest) / NUM_EVAL == pytest.approx(line[name], rel=1e-6, abs=1e-6)
            assert few == pytest.approx(alone[name], rel=1e-6, abs=1e-6)
    assert lines[-1]["eval/few/loss"] != pytest.approx(lines[-1]["eval/rest/loss"], abs=1e-6)
    summary = evaluate(config(toy, tmp_path / "both", {"data.eval": entries, "train.num_workers": 2}))
    assert summary["eval"]["last"] == pytest.approx({k: v for k, v in lines[-1].items() if k != "step"}, abs=1e-5)


@pytest.mark.parametrize("objective", [{"name": "sft"}, {"name": "kto", "beta": 0.1}], ids=["tokens", "whole batch"])
def test_other_denominators(toy: Toy, finished: Finished, objective: dict[str, Any], tmp_path: Path) -> None:
    """A mean over tokens, and a loss that looks at the whole split: the whole lies between its entries."""
    changes = {"data.eval": parts(toy, tmp_path), "data.unpair": objective["name"] == "kto", "train.eval_every": None}
    changes["evaluate.model"] = str(finished.dir / "model")
    summary = evaluate(config(toy, tmp_path / "both", changes, objective))["eval"]["last"]
    few, rest, whole = (summary[f"eval/{part}loss"] for part in ("few/", "rest/", ""))
    assert min(few, rest) < whole < max(few, rest)
    if objective["name"] == "kto":
        assert (FEW * few + (NUM_EVAL - FEW) * rest) / NUM_EVAL == pytest.approx(whole, abs=1e-6)
        assert summary["eval/few/rewards/margins"] == pytest.approx(
            summary["eval/few/rewards/chosen"] - summary["eval/few/rewards/rejected"]
        )
