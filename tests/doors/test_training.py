"""A training in which objective, data format, schedule and sink are of another package; its evaluation; going on."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.config import Config
from raydpo.errors import ConfigError, ResumeError
from raydpo.pipelines import check, evaluate, train
from tests.pipelines.toy import Notes, Toy, config, metrics

OBJECTIVE = {"name": "my_pkg.losses:Squared", "beta": 0.5}
OUTSIDE = {
    "data.format": "my_pkg.rows:my_format",
    "train.schedule": "my_pkg.schedules:wsd",
    "train.sinks": ["jsonl", "my_pkg.sinks:MySink"],
    "train.warmup_fraction": 0.0,
}


def outside(toy: Toy, folder: Path, changes: dict[str, Any] | None = None, objective: Any = OBJECTIVE) -> Config:
    return config(toy, folder, {**OUTSIDE, **(changes or {})}, objective)


@pytest.fixture(scope="module")
def trained(toy: Toy, machine: None) -> tuple[Path, dict[str, Any], Notes]:
    notes, folder = Notes(), toy.root / "run"
    return folder, train(outside(toy, folder), notes), notes


def test_it_trains_and_every_part_did_its_work(trained: tuple[Path, dict[str, Any], Notes]) -> None:
    folder, summary, notes = trained
    assert summary["train"]["steps"] == 4
    lines = [line for line in metrics(folder) if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(1.0, abs=1e-4), "policy and reference are equal: (target - 0) ** 2"
    assert lines[0]["beyond"] == 0
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[-1]["rewards/margins"] == pytest.approx(0.5 * lines[-1]["log_ratios/margins"], rel=1e-5)
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3] * 4)
    assert 0 <= summary["eval"]["last"]["eval/beyond"] <= 1
    table = list(csv.reader((folder / "metrics.csv").open()))
    assert [float(row[1]) for row in table[1:] if row[1]] == pytest.approx([line["loss"] for line in lines])
    assert not (folder / "tensorboard").exists()
    assert any("my_pkg.rows:my_format, answers in the order of their rank" in text for text in notes.info)


def test_evaluate_gives_what_the_training_measured(toy: Toy, trained: tuple[Path, dict[str, Any], Notes]) -> None:
    folder, summary, _ = trained
    found = evaluate(outside(toy, folder))["eval"]["last"]
    assert found["eval/loss"] == pytest.approx(summary["eval"]["last"]["eval/loss"], rel=1e-4)
    assert found["eval/beyond"] == summary["eval"]["last"]["eval/beyond"]


@pytest.mark.slow
def test_in_a_sum_it_has_a_loss_of_its_own(toy: Toy, machine: None) -> None:
    """The rank is a process of its own here, which finds the package by itself."""
    objective = {"name": "dpo", "beta": 0.5, "plus": [{**OBJECTIVE, "weight": 0.25}]}
    folder = toy.root / "sum"
    train(outside(toy, folder, {"train.max_steps": 1, "run.runtime_in_process": False}, objective))
    first = next(line for line in metrics(folder) if "loss" in line)
    assert first["loss/my_pkg.losses:Squared"] == pytest.approx(1.0, abs=1e-4)
    assert first["loss"] == pytest.approx(first["loss/dpo"] + 0.25 * first["loss/my_pkg.losses:Squared"])


def test_an_edited_objective_does_not_go_on(toy: Toy, trained: tuple[Path, dict[str, Any], Notes]) -> None:
    file = Path(sys.modules["my_pkg.losses"].__file__ or "")
    before = file.read_text()
    try:
        file.write_text(before.replace("** 2", "** 3"))
        with pytest.raises(ResumeError, match=r"source of objective my_pkg\.losses:Squared"):
            train(outside(toy, trained[0]))
    finally:
        file.write_text(before)
    assert train(outside(toy, trained[0], {"train.sinks": ["jsonl"]}))["train"]["steps"] == 4, "sinks are free"


def test_everything_wrong_is_said_before_anything_starts(toy: Toy, tmp_path: Path, examples: dict[str, str]) -> None:
    changes = {
        "data.format": "my_pkg.rows:my_fromat",
        "train.schedule": "my_pkg.losses:relu",
        "train.sinks": ["jsonl", "my_pkg.sinks:csv", "my_pkg.nowhere:Sink"],
    }
    with pytest.raises(ConfigError) as caught:
        check(outside(toy, tmp_path / "run", changes))
    said = list(caught.value.problems)
    assert [problem.split(":")[0] for problem in said] == [
        "data.format",
        "train.schedule",
        "train.sinks",
        "train.sinks",
    ]
    assert said[0].endswith("Did you mean my_pkg.rows:my_format?")
    assert "relu in my_pkg.losses raised TypeError" in said[1]
    assert "csv in my_pkg.sinks is of type module, not a class" in said[2]
    assert "my_pkg.nowhere could not be imported: ModuleNotFoundError" in said[3]
    assert not (tmp_path / "run").exists()


def test_bounds_of_the_class_are_errors_of_the_config(
    toy: Toy, tmp_path: Path, examples: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run.yaml"
    text = 'run: {dir: a}\nmodel: {path: b}\nobjective:\n  name: "my_pkg.losses:Squared"\n  beta: 0\n  taget: 2\n'
    run.write_text(text)
    assert cli.main(["train", str(run)]) == 2
    said = capsys.readouterr().err
    assert "run.yaml:5: objective.beta: 0 is out of range; allowed: (0, 10000]." in said
    assert "run.yaml:6: objective.taget: objective my_pkg.losses:Squared does not read taget" in said
    assert "Did you mean objective.target?" in said
    assert cli.main(["objectives", "my_pkg.losses:Squared"]) == 0
    assert "my_pkg.losses:Squared  pairs  yes        sums   beta=0.1 target=1" in capsys.readouterr().out


def test_a_row_that_the_format_cannot_read_is_a_bad_row(toy: Toy, tmp_path: Path, examples: dict[str, str]) -> None:
    rows = [*toy.train.read_text().splitlines(), '{"question": "q", "ranking": []}', '{"ranking": ["a", "b"]}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    changes = {"data.train": [str(tmp_path / "rows.jsonl")], "data.max_bad_fraction": 0.5}
    report = check(outside(toy, tmp_path / "run", changes))["data"]
    assert report["train_pairs"] == len(rows) - 2
    assert report["quarantined"] == {"too_few_answers": 1, "format_error": 1}
