"""Answers that the loss covers in part, from the file to a resumed run: token rows with masks on a tiny model."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo import open_reference
from raydpo.data.tokenizer import TextTokenizer
from raydpo.models.pretrained import load_model
from raydpo.pipelines import precompute, train
from tests.pipelines.toy import Toy, config, metrics, read_pairs, weights
from tests.train.world import plain_nats

Row = dict[str, Any]
NUM_TRAIN, NUM_EVAL = 24, 4
FEW = {"train.global_batch_pairs": 8, "train.eval_every": 3}


def token_rows(toy: Toy, path: Path, number: int) -> list[Row]:
    """Pairs of `path` as ids: in two of three the loss covers every other token of the chosen answer and its end."""
    tokenizer = TextTokenizer(str(toy.model))
    rows = []
    for index, pair in enumerate(read_pairs(path)[:number]):
        prompt, chosen, rejected = tokenizer.encode([pair["prompt"], pair["chosen"], pair["rejected"]])
        assert tokenizer.eos_id is not None
        row: Row = {"prompt_ids": prompt, "tokenizer": tokenizer.ids_digest}
        row["chosen_ids"], row["rejected_ids"] = [*chosen, tokenizer.eos_id], [*rejected, tokenizer.eos_id]
        if index % 3:
            row["chosen_mask"] = [*(place % 2 for place in range(len(chosen))), 1]
        if index % 3 == 2:
            row["rejected_mask"] = [*[0] * (len(rejected) - 1), 1, 1]
        rows.append(row)
    return rows


def unmasked(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if not name.endswith("_mask")} for row in rows]


def write(path: Path, rows: list[Row]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def rows(toy: Toy) -> dict[str, list[Row]]:
    return {"train": token_rows(toy, toy.train, NUM_TRAIN), "eval": token_rows(toy, toy.eval, NUM_EVAL)}


@pytest.fixture(scope="module")
def masked(toy: Toy, machine: None, rows: dict[str, list[Row]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder of a finished run, its summary, its settings)."""
    folder = tmp_path_factory.mktemp("masked")
    files = {f"data.{split}": [write(folder / f"{split}.jsonl", found)] for split, found in rows.items()}
    changes = {**files, **FEW, "reference.cache_dir": str(folder / "cache"), "train.keep_checkpoints": 3}
    return folder, train(config(toy, folder / "run", changes)), changes


def test_a_run_starts_at_its_reference(masked: Any) -> None:
    folder, summary, _ = masked
    assert summary["data"]["quarantined"] == {}
    assert summary["reference"]["rows_scored"] == summary["reference"]["rows"]
    first, last = summary["eval"]["first"], summary["eval"]["last"]
    assert first["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["eval/rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert summary["train"]["probe"]["max_difference_nats"] <= 1e-4
    (step,) = [line for line in metrics(folder / "run") if line["step"] == 1]
    assert step["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert last["eval/rewards/margins"] > first["eval/rewards/margins"]


def test_the_cache_holds_covered_tokens(toy: Toy, masked: Any, rows: dict[str, list[Row]]) -> None:
    """Their log-probs are those of plain transformers, and metrics are their sums."""
    folder, summary, _ = masked
    model = load_model(toy.model, "float32", "sdpa")
    expected = []
    for row in rows["eval"] + rows["train"]:
        for side in ("chosen", "rejected"):
            nats = plain_nats(model, np.array(row["prompt_ids"]), np.array(row[f"{side}_ids"]))
            expected.append(nats[np.array(row.get(f"{side}_mask", [1] * len(nats)), bool)])
    found = [np.array(values) for values in open_reference(folder / "run")["token_nats"].to_pylist()]
    for one, other in zip(sorted(found, key=tuple), sorted(expected, key=tuple), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    chosen = np.mean([nats.sum() for nats in expected[: 2 * NUM_EVAL : 2]])
    assert summary["eval"]["first"]["eval/logps/chosen"] == pytest.approx(chosen, abs=1e-4)


def test_a_run_that_goes_on_ends_the_same(toy: Toy, masked: Any, tmp_path: Path) -> None:
    folder, summary, changes = masked
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    for name in ("checkpoints/step-000003", "model", "summary.json"):
        path = copy / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = train(config(toy, copy, changes))
    assert again["train"]["resumed_from_step"] == 2
    assert again["reference"]["rows_scored"] == 0
    assert weights(copy / "model") == weights(folder / "run" / "model")
    assert again["eval"]["last"] == summary["eval"]["last"]


def test_a_cache_of_whole_answers_serves_all_rows_without_a_mask(
    toy: Toy, machine: None, rows: dict[str, list[Row]], tmp_path: Path
) -> None:
    """Before masks: every row scored. With masks on some: those, and no other; again: none."""
    settings = {"reference.cache_dir": str(tmp_path / "cache"), "data.eval": []}
    counts = []
    for name, found in (("before", unmasked(rows["train"])), ("after", rows["train"]), ("again", rows["train"])):
        files = {"data.train": [write(tmp_path / f"{name}.jsonl", found)]}
        summary = precompute(config(toy, tmp_path / name, {**settings, **files}))
        counts.append((summary["reference"]["rows"], summary["reference"]["rows_scored"]))
    num_masked = sum(name.endswith("_mask") for row in rows["train"] for name in row)
    assert num_masked == NUM_TRAIN
    assert counts == [(2 * NUM_TRAIN, 2 * NUM_TRAIN), (2 * NUM_TRAIN, num_masked), (2 * NUM_TRAIN, 0)]


def test_masks_that_change_are_other_data(toy: Toy, masked: Any, rows: dict[str, list[Row]], tmp_path: Path) -> None:
    """A run does not go on with other masks in the same file."""
    from raydpo.errors import ResumeError

    folder, _, changes = masked
    copy = shutil.copytree(folder / "run", tmp_path / "run")
    path = Path(changes["data.train"][0])
    written = path.read_text()
    try:
        write(path, unmasked(rows["train"]))
        with pytest.raises(ResumeError, match="data"):
            train(config(toy, copy, changes))
    finally:
        path.write_text(written)


@pytest.mark.parametrize("objective", [{"name": "kto"}, {"name": "simpo"}, {"name": "dpo", "plus": ["sft"]}], ids=str)
def test_objectives_train_on_masked_answers(
    toy: Toy, machine: None, masked: Any, tmp_path: Path, objective: dict[str, Any]
) -> None:
    _, _, changes = masked
    changes = {**changes, "data.unpair": objective["name"] == "kto"}
    summary = train(config(toy, tmp_path / "run", changes, objective=objective))
    assert all(math.isfinite(value) for value in summary["eval"]["last"].values())
    if objective["name"] == "kto":
        assert summary["eval"]["first"]["eval/loss"] == pytest.approx(0.5, abs=1e-4)
