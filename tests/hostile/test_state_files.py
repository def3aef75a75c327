"""Files of a run directory or a model folder that hold what nobody wrote: an error of ours, or made again, no traceback."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from raydpo import cli
from raydpo.artifacts import commit_folder, digest_of, durable, read_commit, verify_folder
from raydpo.data.row_ends import ModelEnds, model_ends
from raydpo.data.store import Store
from raydpo.errors import ConfigError, DataError, IntegrityError, StorageError
from raydpo.metrics.sinks import MetricsFile
from raydpo.models.model_files import refuse_unusable
from raydpo.rundir.piece import Piece
from raydpo.schema.json_text import parse_json, read_object
from raydpo.train.export import _make_readable
from tests.data.conftest import Run

DEEP = "[" * 100_000
GOOD = {"bytes": 1, "sha256": "0"}


@pytest.mark.parametrize(
    "text", [DEEP, "[" * 900 + "]" * 900, '{"a": ' * 101 + "1" + "}" * 101, "{", b"\xff", "1" * 5000, ""]
)
def test_text_that_is_no_sane_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        parse_json(text)


def test_an_object_is_an_object(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("[1]")
    with pytest.raises(ValueError, match="holds list, not an object"):
        read_object(tmp_path / "a")
    with (tmp_path / "a").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ValueError, match="bytes; up to"):
        read_object(tmp_path / "a")


@pytest.mark.parametrize(
    "body",
    [
        {"files": [], "meta": {}},
        {"files": {}, "meta": []},
        {"files": {"a": 1}, "meta": {}},
        {"files": {"a": {"bytes": 1}}, "meta": {}},
        *({"files": {name: GOOD}, "meta": {}} for name in ("/etc/passwd", "../x", "a/../../x", "", "a//b", "a\0")),
    ],
    ids=str,
)
def test_a_manifest_of_other_types_or_places_is_damaged_whatever_its_digest_says(body: Any, tmp_path: Path) -> None:
    (tmp_path / "COMMIT.json").write_text(json.dumps({**body, "digest": digest_of(body)}))
    with pytest.raises(IntegrityError, match="no manifest of files below its folder"):
        read_commit(tmp_path)
    assert len(verify_folder(tmp_path)) == 1


@pytest.mark.parametrize("text", [DEEP, "[]", "{}", '{"files": 1, "meta": 2, "digest": 3}'])
def test_a_manifest_that_is_none_is_damaged(text: str, tmp_path: Path) -> None:
    (tmp_path / "COMMIT.json").write_text(text)
    with pytest.raises(IntegrityError, match=r"COMMIT\.json"):
        read_commit(tmp_path)


def test_files_in_folders_of_a_commit_are_below_it(tmp_path: Path) -> None:
    (tmp_path / "s/a/b").mkdir(parents=True)
    (tmp_path / "s/a/b/c").write_text("x")
    commit_folder(tmp_path / "s", tmp_path / "final", {})
    assert list(read_commit(tmp_path / "final")["files"]) == ["a/b/c"]


@pytest.mark.parametrize("change", ["deep", "list", "field", "count", "no digest", "old field"])
def test_a_record_of_preparation_that_is_not_ours_is_made_again(
    change: str, run: Run, plain_tokenizer: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "the sky is", "chosen": " blue", "rejected": " green"}]
    first = run(rows, plain_tokenizer)
    assert run(rows, plain_tokenizer).report.reused
    (path,) = first.folder.glob("prepared.json")
    record = json.loads(path.read_text())
    report = record["report"]
    if change == "field":
        report["lhnes_read"] = report.pop("lines_read")
    if change == "count":
        report["duplicates"] = 7
    if change == "old field":
        report["gone"] = 1
        record["digest"] = digest_of({key: record[key] for key in ("input_digest", "report")})
    if change == "no digest":
        del record["digest"]
    path.write_text({"deep": DEEP, "list": "[]"}.get(change, json.dumps(record)))
    again = run(rows, plain_tokenizer).report
    assert not again.reused
    assert again.duplicates == 0
    assert again.pairs_used == 1
    assert Store(first.folder, record["input_digest"]).finished() is not None


def test_metrics_are_json_for_any_parser(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n' + DEEP + '\n{"step": 2}\n{"step": 3, "l')
    sink = MetricsFile(tmp_path, 2)
    sink.write(3, {"loss": float("nan"), "grad_norm": float("inf"), "rewards/margins": 0.5})
    sink.close()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (tmp_path / "metrics.jsonl").read_text()
    lines = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert lines == [
        {"step": 1, "loss": None},
        {"step": 2},
        {"step": 3, "loss": None, "grad_norm": None, "rewards/margins": 0.5},
    ]


def test_inputs_of_a_piece_that_cannot_be_read_are_other_inputs(tmp_path: Path) -> None:
    piece = Piece(tmp_path / "p", {"a": 1})
    piece.begin()
    piece.write_part(0, [{"x": 1}])
    (tmp_path / ".p-work/inputs.json").write_text(DEEP)
    piece.begin()
    assert not piece.has_part(0)
    piece.write_part(0, [{"x": 1}])
    (tmp_path / ".p-work/part-00000.jsonl").write_text(DEEP)
    with pytest.raises(IntegrityError, match=r"part-00000\.jsonl cannot be read: nested too deeply"):
        list(piece.uncommitted())


@pytest.mark.parametrize("given", ["x", 5.5, {"a": 1}, [1.5], [None], [-1], [1 << 40], True, []])
def test_ends_that_are_no_ids_are_not_named(given: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": given, "text_config": [given]}))
    assert model_ends([tmp_path]) == ModelEnds()


def test_ends_in_a_file_that_is_none_are_said(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(DEEP)
    with pytest.raises(DataError, match=r"generation_config\.json cannot be read: nested too deeply"):
        model_ends([tmp_path])


def test_every_file_of_a_model_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "tokenizer_config.json").write_text(DEEP)
    (tmp_path / "a.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/passwd"}}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConfigError) as caught:
        refuse_unusable("model.path", tmp_path, has_weights=True)
    assert [any(name in text for text in caught.value.problems) for name in ("config.json", "passwd", "_model.bin")]
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_an_exported_file_is_as_readable_as_the_umask_made_its_folder(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "model").mkdir()
        descriptor = os.open(tmp_path / "model/x", os.O_CREAT | os.O_WRONLY, 0o600)
        os.close(descriptor)
    finally:
        os.umask(before)
    _make_readable(tmp_path / "model")
    assert (tmp_path / "model/x").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("number", [errno.EROFS, errno.ESTALE, errno.ENOTDIR], ids=errno.errorcode.get)
def test_a_place_where_nothing_can_be_written_is_named(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Any, *unused: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"a\.json could not be written: " + os.strerror(number)):
        durable.write_json(tmp_path / "a.json", {})


def test_a_file_where_a_folder_belongs_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="could not be written"):
        durable.write_json(tmp_path / "file/a.json", {})


def test_what_a_file_system_says_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: Any) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/mnt/x")

    monkeypatch.setattr(cli, "_config_schema", refuse)
    assert cli.main(["config", "schema"]) == 2
    assert "/mnt/x: Stale file handle" in capsys.readouterr().err
