"""`raydpo sweep`: one reference pass for all, the best first, finished runs cost nothing, and all problems come first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli, sweep_verb
from raydpo.errors import ConfigError
from tests.pipelines.toy import Toy


def test_every_combination_in_order() -> None:
    found = sweep_verb.combinations([("a.x", ["1", "2"]), ("b.y", ["u", "v"])])
    assert found == [{"a.x": x, "b.y": y} for x in "12" for y in "uv"]
    with pytest.raises(ConfigError, match=r"names a\.x more than once"):
        sweep_verb.combinations([("a.x", ["1"]), ("a.x", ["2"])])


@pytest.mark.parametrize("words", ["beta=1,2", "objective.beta", "objective.beta=1,,2", "objective.beta=1,1"])
def test_values_that_cannot_be_meant_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "run.yaml", "--over", words])
    assert ended.value.code == 2
    assert "section.key=A,B,C" in capsys.readouterr().err


@pytest.fixture(scope="module")
def yaml_of(toy: Toy) -> Path:
    path = toy.root / "sweep.yaml"
    path.write_text(
        f"run: {{dir: {toy.root}/betas}}\n"
        f"model: {{path: {toy.model}}}\n"
        f"data: {{train: [{toy.train}], eval: [{toy.eval}]}}\n"
        f"reference: {{cache_dir: {toy.root}/sweep-cache}}\n"
        "train: {global_batch_pairs: 8, max_steps: 2, learning_rate: 1.0e-3}\n"
    )
    return path


def swept(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert cli.main(["sweep", str(path), *words, "--local", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_reference_rows_are_scored_once_and_the_best_comes_first(
    yaml_of: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = swept(yaml_of, capsys, "--over", "objective.beta=0.05,0.5", "--over", "train.learning_rate=1e-4,1e-2")
    runs = found["runs"]
    assert len(runs) == 4
    by_number = sorted(runs, key=lambda run: -run["rows_scored"])
    assert by_number[0]["rows_scored"] > 0
    assert [run["rows_scored"] for run in by_number[1:]] == [0, 0, 0]
    metrics = [run["eval"][found["metric"]] for run in runs]
    assert metrics == sorted(metrics, reverse=True)
    assert found["best"]["values"] == runs[0]["values"]
    assert Path(found["comparison"]).is_file()
    assert "objective.beta" in Path(found["comparison"]).read_text()
    again = swept(yaml_of, capsys, "--over", "objective.beta=0.05,0.5,1.0", "--over", "train.learning_rate=1e-4,1e-2")
    before = {run["run_dir"]: run["eval"] for run in runs}
    kept = {run["run_dir"]: run["eval"] for run in again["runs"] if run["run_dir"] in before}
    assert kept == before
    assert len(again["runs"]) == 6


def test_every_problem_is_told_before_anything_is_trained(
    yaml_of: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--over", "objective.beta=0.1,-1", "--over", "train.learning_rate=1e-4,x", f"run.dir={tmp_path}/none"]
    assert cli.main(["sweep", str(yaml_of), *words, "--local"]) == 2
    said = capsys.readouterr().err
    assert "-1" in said
    assert "train.learning_rate" in said
    assert not (tmp_path / "none").exists()
