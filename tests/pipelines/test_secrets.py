"""Secrets of the environment are in no file of a run and on no stream, also when parts fail with them; rows stay whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.config.render import dump
from tests.judge.servers import longer, serving, shown
from tests.pipelines.rounds.toy_rounds import rounds_config, rows_of_parts
from tests.pipelines.toy import Toy, config

pytestmark = pytest.mark.slow

CANARIES = {
    "HF_TOKEN": "canary-hf-1f9c",
    "OPENAI_API_KEY": "canary-oai-7f3a",
    "WANDB_API_KEY": "canary-wandb-22",
    "AWS_SECRET_ACCESS_KEY": "canary/aws+secret",
    "DB_PASSWORD": "canary-db-word",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def files_with(word: str, folder: Path) -> list[str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    assert len(paths) > 3
    return [str(path.relative_to(folder)) for path in paths if word.encode() in path.read_bytes()]


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_a_rank_that_tells_its_environment(toy: Toy, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = config(
        toy,
        tmp_path / "run",
        {
            "run.runtime_in_process": False,
            "reference.cache_dir": str(tmp_path / "cache"),
            "train.schedule": "tests.pipelines.secret_parts:telling_schedule",
            "train.warmup_fraction": 0.0,
        },
    )
    assert cli.main(["train", written(tmp_path / "run.yaml", dump(settings))]) == 2
    streams = capfd.readouterr()
    assert "raised RuntimeError: no share for step" in streams.err
    for name, value in CANARIES.items():
        assert value not in streams.out + streams.err
        assert f"<redacted {name}>" in streams.err
    assert files_with("canary", tmp_path) == []


def test_a_round_whose_judges_tell_their_key(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One is a server that echoes its header, the other has the key in its settings. A prompt holds a secret, too."""
    monkeypatch.setenv("ROW_TOKEN", "sort the canary")
    prompts = [f"{number}: sort {number * 3}" for number in range(7)] + ["12: sort the canary"]
    given = written(tmp_path / "prompts.jsonl", "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    keys: set[str] = set()

    def answer(body: dict[str, Any]) -> Any:
        asked = body["messages"][0]["content"]
        keys.update(value for value in CANARIES.values() if value in asked)
        return (
            (400, f"bad key Bearer {CANARIES['OPENAI_API_KEY']}")
            if "4: sort" in asked and shown(body)
            else longer(body)
        )

    with serving(answer) as served:
        members = [
            {"kind": "pairwise", "model": "m", "endpoint": served.url},
            {"kind": "tests.pipelines.secret_parts:Asking", "settings": {"api_key": "KEY-IS-PUT-HERE"}},
        ]
        changes = {
            "judge.kind": "ensemble",
            "judge.members": members,
            "judge.max_failed_fraction": 0.9,
            "rounds.num_rounds": 1,
            "rounds.prompts": [given],
            "rounds.eval_prompts": [],
            "reference.cache_dir": str(tmp_path / "cache"),
        }
        text = dump(rounds_config(toy, tmp_path / "run", changes))
        assert "canary" not in text
        path = written(
            tmp_path.parent / f"{tmp_path.name}.yaml", text.replace("KEY-IS-PUT-HERE", CANARIES["OPENAI_API_KEY"])
        )
        assert cli.main(["iterate", path, "--json"]) == 0
        assert served.requests
        assert {dict(headers)["Authorization"] for _, headers, _ in served.requests} == {
            f"Bearer {CANARIES['OPENAI_API_KEY']}"
        }
    streams = capfd.readouterr()
    for value in CANARIES.values():
        assert value not in streams.out + streams.err
        assert files_with(value, tmp_path) == []
    reasons = "".join(row["reason"] for row in rows_of_parts(tmp_path / "run/rounds/000/scores"))
    assert re.search(r"bad key Bearer <redacted OPENAI_API_KEY>", reasons)
    assert "refused: <redacted OPENAI_API_KEY>" in reasons
    assert "<redacted OPENAI_API_KEY>" in (tmp_path / "run/rounds.json").read_text()
    assert any("rounds/000/prompts" in name for name in files_with("sort the canary", tmp_path)), "rows stay"
