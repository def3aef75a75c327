"""Secrets of the environment leave every text that is a message, a log line or a setting, and no text that is a row."""

from __future__ import annotations

import json
import logging
import os
import pickle
from argparse import Namespace
from pathlib import Path
from urllib.parse import quote

import pytest

from raydpo import cli
from raydpo.config import Config
from raydpo.config.render import dump
from raydpo.errors import ConfigError, HangError, OutOfMemoryError, WorkerError
from raydpo.json_result import print_json
from raydpo.judge.judge_inputs import inputs_of
from raydpo.judge.verdict import Verdict
from raydpo.redaction import keep_secret, redacted, redacted_values, redacting_logger
from raydpo.rundir.resume import differences, trajectory
from raydpo.runtime.failure import error_of, failure_of
from raydpo.schema.events import Note, StageDone
from raydpo.screen import print_summary

CANARIES = {
    "HF_TOKEN": "canary-hf-1f9c",
    "OPENAI_API_KEY": "canary-oai-7f3a",
    "wandb_key": "canary-wandb-22",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret==",
    "DB_PASSWORD": 'canary "db"\\password',
    "MY_CREDENTIALS": "canary-one-line\nanother-canary-line",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("name", CANARIES)
def test_a_value_becomes_the_name_of_its_variable(name: str) -> None:
    value = CANARIES[name]
    assert redacted(f"bad key Bearer {value}, sorry") == f"bad key Bearer <redacted {name}>, sorry"
    for escaped in (repr(value), json.dumps({"key": value}), quote(value, safe="")):
        assert "canary" not in redacted(escaped)
        assert f"<redacted {name}>" in redacted(escaped)
    assert redacted(redacted(value)) == redacted(value) == f"<redacted {name}>"


def test_every_line_of_a_value_is_one() -> None:
    shown = redacted("it printed:\n    canary-one-line\n    another-canary-line")
    assert shown == "it printed:\n    <redacted MY_CREDENTIALS>\n    <redacted MY_CREDENTIALS>"


def test_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "1234567")
    monkeypatch.setenv("EDITOR", "a-long-editor")
    assert redacted("1234567 in a-long-editor, http://host/a@b") == "1234567 in a-long-editor, http://host/a@b"
    monkeypatch.setenv("SHORT_TOKEN", "12345678")
    assert redacted("12345678") == "<redacted SHORT_TOKEN>"
    monkeypatch.delenv("SHORT_TOKEN")
    assert redacted("12345678") == "12345678"


def test_the_longest_value_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "canary-oai")
    assert redacted("canary-oai-7f3a canary-oai") == "<redacted OPENAI_API_KEY> <redacted A_KEY>"


def test_a_variable_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydpo.redaction._kept", {})
    keep_secret("JUDGE", "another-canary")
    assert redacted("it says another-canary") == "it says <redacted JUDGE>"


@pytest.mark.parametrize("userinfo", ["me:s3cret", "ghp_0123", "a:b:c%40d"])
def test_user_and_password_of_a_url(userinfo: str) -> None:
    text = f"cannot reach https://{userinfo}@host:80/x?y, nor s3://bucket/key"
    assert redacted(text) == "cannot reach https://<redacted userinfo>@host:80/x?y, nor s3://bucket/key"


def test_errors_hold_none_wherever_they_go() -> None:
    told = "it said canary-oai-7f3a"
    assert str(WorkerError(told)) == "it said <redacted OPENAI_API_KEY>"
    error = ConfigError([told, "fine"])
    assert error.problems == ("it said <redacted OPENAI_API_KEY>", "fine")
    for each in (error, HangError(told), OutOfMemoryError(told, 3)):
        copy = pickle.loads(pickle.dumps(each))
        assert str(copy) == str(each)
        assert "canary" not in repr(copy) + repr(vars(copy))


def test_what_an_actor_raised_holds_none() -> None:
    try:
        raise RuntimeError(f"environment: {dict(os.environ)}")
    except RuntimeError as error:
        failure = failure_of(error)
    assert "canary" not in repr(failure)
    assert "<redacted HF_TOKEN>" in failure.message
    assert "<redacted HF_TOKEN>" in failure.traceback_text
    assert "canary" not in str(error_of(failure, "rank 0"))


def test_events_verdicts_and_log_lines_hold_none(caplog: pytest.LogCaptureFixture) -> None:
    told = "it said canary-hf-1f9c"
    shown = "it said <redacted HF_TOKEN>"
    assert Note("warning", told).text == StageDone("judge", told).text == shown
    assert Verdict(None, told).reason == Verdict.failed(told).reason == shown
    long = Verdict.failed("x" * 290 + " canary-hf-1f9c")
    assert "canary" not in long.reason
    with caplog.at_level(logging.WARNING):
        redacting_logger("raydpo.try").warning("item %d %s", 3, told)
        redacting_logger("raydpo.try").warning("100% canary-hf-1f9c")
    assert caplog.messages == [f"item 3 {shown}", "100% <redacted HF_TOKEN>"]


def test_a_reason_can_be_written_down() -> None:
    assert Verdict(None, "half a pair \ud800").reason == "half a pair \\ud800"


def outside_judge(secret: str) -> Config:
    judge = {"kind": "my_pkg.judges:Asking", "settings": {"api_key": secret, "words": [secret, 3]}}
    return Config.model_validate(
        {"run": {"dir": "r"}, "model": {"path": "m"}, "data": {"train": ["t.jsonl"]}, "judge": judge}
    )


def test_a_config_that_is_written_holds_none() -> None:
    text = dump(outside_judge("canary-oai-7f3a"))
    assert "canary" not in text
    assert text.count("<redacted OPENAI_API_KEY>") == 2
    assert "canary" in dump(outside_judge("canary-that-is-no-secret"))


def test_what_a_run_is_compared_by_holds_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "asking_pkg.py").write_text("class Asking:\n    def __call__(self, prompt, responses): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = Config.model_validate(
        {
            "run": {"dir": "r"},
            "model": {"path": "m", "revision": "canary-oai-7f3a"},
            "data": {"train": ["t.jsonl"], "ignore": ["canary-hf-1f9c"]},
            "judge": {"kind": "asking_pkg:Asking", "settings": {"api_key": "canary-oai-7f3a"}},
        }
    )
    assert config.judge is not None
    found = trajectory(config, {f"judge.{key}": value for key, value in inputs_of(config.judge, {}).items()})
    assert "canary" not in json.dumps(found)
    assert found["judge.settings"] == {"api_key": "<redacted OPENAI_API_KEY>"}
    assert found["data.ignore"] == ["<redacted HF_TOKEN>"]
    before = {**found, "data.ignore": ["canary-hf-1f9c"]}  # written when there was no such variable
    assert differences(before, found) == []


def test_rows_stay_in_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"place": "/x/canary-hf-1f9c", "rows": [{"text": "canary-hf-1f9c"}], "n": 1.5})
    assert json.loads(capsys.readouterr().out) == {
        "place": "/x/<redacted HF_TOKEN>",
        "rows": [{"text": "canary-hf-1f9c"}],
        "n": 1.5,
    }
    assert redacted_values({"a": ["canary-hf-1f9c", None]}) == {"a": ["<redacted HF_TOKEN>", None]}


@pytest.mark.parametrize("error", [ValueError("canary-hf-1f9c"), WorkerError("canary-hf-1f9c")])
def test_a_command_that_fails_shows_none(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "_objectives", fail)
    assert cli.main(["objectives"]) == 1
    shown = capsys.readouterr()
    assert f"{type(error).__name__}: <redacted HF_TOKEN>" in shown.err
    assert "canary" not in shown.err + shown.out


def test_an_argument_that_is_none_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["check", "run.yaml", "--judge.key=canary-oai-7f3a"])
    assert "--judge.key=<redacted OPENAI_API_KEY>" in capsys.readouterr().err


def test_the_end_of_a_run_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary({"run_dir": "/x/canary-hf-1f9c"})
    assert "canary" not in capsys.readouterr().out
