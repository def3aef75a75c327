"""Addresses where paths belong: refused by every key that cannot read them, before anything is read or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.config import Config
from raydpo.config.cross_checks import cross_checks
from raydpo.config.places import _IN_STORES, _READ, PLACES

NEEDED: dict[str, dict[str, Any]] = {"run": {"dir": "runs/a"}, "model": {"path": "m"}, "data": {"train": ["a.jsonl"]}}
ROUNDS = {"prompts": ["p.jsonl"], "reference": "initial"}
JUDGE = {"judge.model": {"kind": "reward_model"}, "judge.answers": {"kind": "exact"}}


def with_value(key: str, value: str) -> dict[str, Any]:
    section, _, name = key.partition(".")
    tree = {**NEEDED, **({"rounds": ROUNDS} if section in ("rounds", "judge") else {})}
    return {**tree, section: {**tree.get(section, {}), **JUDGE.get(key, {}), name: value}}


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.parametrize("value", ["s3://bucket/run", "gs://b/r", "hdfs://x", "file:///data/x", "https://host/x"])
def test_an_address_is_refused_by_its_key(key: str, value: str) -> None:
    is_taken = key in _IN_STORES and value.startswith(("s3", "gs"))
    if is_taken or (key in _READ and value.startswith(("hdfs", "https"))):
        assert cross_checks(Config.model_validate(with_value(key, value))) == []
        return
    scheme = value.partition("//")[0]
    (said,) = [text for text in cross_checks(Config.model_validate(with_value(key, value))) if scheme in text]
    assert said.startswith(f"{key}: {value!r} begins with {scheme}//")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("s3://bucket", "names no folder in a bucket; the form is s3://bucket/name."),
        ("s3://bucket/", "names no folder in a bucket"),
        ("gs:///run", "names no folder in a bucket"),
        ("az://box/a//b", "has the part ''"),
        ("s3://bucket/../run", "has the part '..'"),
        ("s3://bucket/.hidden", "has the part '.hidden'"),
        ("s3://bucket/a b", "has the part 'a b'"),
        ("s3://bucket/run?x=1", "has the part 'run?x=1'"),
        ("s3://user:password@bucket/run", "has the part"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused(value: str, what: str) -> None:
    (said,) = cross_checks(Config.model_validate(with_value("run.dir", value)))
    assert said.startswith("run.dir: ")
    assert what in said


@pytest.mark.parametrize(
    "value", ["https://host/../../x.jsonl", "https://user:word@host/x.jsonl", "hf://datasets/./x", "http://host//x"]
)
def test_an_address_that_is_only_read_leads_nowhere_else(value: str) -> None:
    (said,) = cross_checks(Config.model_validate(with_value("data.train", value)))
    assert "has the part" in said


def test_a_pattern_is_allowed_in_the_address_of_data() -> None:
    assert cross_checks(Config.model_validate(with_value("data.train", "s3://bucket/data/part-[0-9]*.jsonl"))) == []


@pytest.mark.parametrize("value", ["runs/s3", "hub:owner/name", "C:/data", "a:b", "~/x", "s3:"])
def test_what_only_looks_like_one_is_a_path(value: str) -> None:
    assert cross_checks(Config.model_validate(with_value("run.dir", value))) == []


def test_an_endpoint_is_an_address() -> None:
    tree = {**NEEDED, "rounds": ROUNDS, "judge": {"kind": "pairwise", "model": "m", "endpoint": "http://host:1/v1"}}
    assert cross_checks(Config.model_validate(tree)) == []


@pytest.mark.parametrize(
    "words",
    [
        ["check", "run.yaml", "run.dir=hdfs://bucket/run"],
        ["train", "run.yaml", "run.dir=hdfs://bucket/run"],
        ["precompute", "run.yaml", "reference.cache_dir=wasb://bucket/cache"],
        ["quickstart", "--run-dir", "s3://bucket/run"],
        ["cache", "gc", "--cache-dir", "hdfs://bucket/cache"],
    ],
    ids=" ".join,
)
def test_the_command_line_refuses_and_leaves_no_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("run: {dir: a}\nmodel: {path: b}\ndata: {train: [c.jsonl]}\n")
    if words[0] == "quickstart":
        words = [*words, "--local"]
    assert cli.main(words) == 2
    assert "which is not read or written here" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("run.dir", "r/\0x", "a NUL character"),
        ("run.dir", "r\nx", "a line break"),
        ("run.dir", "r\x1b[2Jx", "a control character"),
        ("run.dir", "r/" + "x" * 256, "255 bytes"),
        ("run.dir", "r/" * 3000, "4,095"),
        ("reference.cache_dir", "c\n", "a line break"),
        *((key, "x\0", "a NUL character") for key in PLACES),
        *((key, "x" * 5000, "255 bytes") for key in PLACES),
    ],
    ids=lambda value: str(len(value)),
)
def test_what_is_no_name_is_refused_by_its_key(key: str, value: str, what: str) -> None:
    said = [text for text in cross_checks(Config.model_validate(with_value(key, value))) if what in text]
    assert len(said) == 1
    assert said[0].startswith(f"{key}: ")
    assert "\n" not in said[0]
    assert len(said[0]) < 500
