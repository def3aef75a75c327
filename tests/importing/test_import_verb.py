"""`raydpo import` as a verb: where text goes, exit codes, --json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydpo import cli
from raydpo.config import Config
from raydpo.import_verb import _PROJECTS
from raydpo.importing.projects import PROJECTS
from tests.importing.imports import written

TEXT = "model_name_or_path: m/q\ndataset_name: o/d\nper_device_train_batch_size: 4\nbeta: 0.4\nreport_to: none\n"


def test_the_yaml_goes_to_stdout_and_the_account_to_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["import", written(tmp_path, "dpo.yaml", TEXT), "run.seed=3"]) == 0
    shown = capsys.readouterr()
    out = written(tmp_path, "run.yaml", shown.out)
    config = Config.load(out)
    assert (config.objective.parameters["beta"], config.run.seed) == (0.4, 3)
    assert shown.err.startswith("TRL: ")
    assert "no effect on numbers" in shown.err


def test_a_file_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.yaml"
    assert cli.main(["import", written(tmp_path, "dpo.yaml", TEXT), "-o", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["project"] == "TRL"
    assert {"option": "beta", "value": 0.4, "fate": "mapped", "text": "objective"}.items() <= next(
        each for each in told["options"] if each["option"] == "beta"
    ).items()
    assert Config.load(out).objective.parameters["beta"] == 0.4


def test_problems_end_with_2_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.yaml"
    path = written(tmp_path, "dpo.yaml", TEXT + "optim: lion_8bit\nnew_option: 1\n")
    assert cli.main(["import", path, "-o", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("raydpo import: 2 problems")
    assert not out.exists()
    assert cli.main(["import", path, "-o", str(out), "--allow", "optim", "--allow", "new_option"]) == 0


def test_every_project_can_be_named() -> None:
    assert set(_PROJECTS) == set(PROJECTS)
