"""Durable writes: replacing is all or nothing, also on a full disk."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from raydpo.artifacts import ReferenceCache, commit_folder, durable, write_bytes, write_json, write_text
from raydpo.errors import StorageError
from tests.artifacts.golden import IDENTITY, rows_of, write


class FullFile:
    """A file on a disk with no room: takes half of what it is given."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> FullFile:
        return self

    def __exit__(self, *unused: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        self.file.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fill_disk(monkeypatch: pytest.MonkeyPatch, step: str, code: int = errno.ENOSPC) -> None:
    """Let one step of every durable write fail as on a full disk."""

    def fail(*unused: object, **also_unused: object) -> None:
        raise OSError(code, os.strerror(code))

    if step == "write":
        path_open = Path.open
        monkeypatch.setattr(
            Path,
            "open",
            lambda path, mode="r", *a, **k: FullFile(path_open(path, mode)) if "w" in mode else path_open(path, mode),
        )
    else:
        monkeypatch.setattr(os, step, fail)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_every_step_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with monkeypatch.context() as patch:
        fill_disk(patch, step, code)
        with pytest.raises(StorageError, match=r"(?s)file could not be written.*3 bytes needed.*bytes free") as failure:
            write_text(path, "new")
    assert failure.value.exit_code == 2
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_disk_that_fills_up_in_the_middle_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    with monkeypatch.context() as patch:
        fill_disk(patch, "write")
        with pytest.raises(StorageError, match="the disk is full"):
            write_bytes(path, b"x" * 1000)
    assert os.listdir(path.parent) == []


def test_a_full_disk_loses_no_committed_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write(tmp_path, "first")
    before = {path: path.read_bytes() for path in cache.folder.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        fill_disk(patch, "write")
        with pytest.raises(StorageError):
            write(tmp_path, "second")
    assert {path: path.read_bytes() for path in cache.folder.rglob("*") if path.is_file()} == before
    opened = ReferenceCache(tmp_path, IDENTITY).open()
    assert opened.missing([*rows_of("first"), *rows_of("second")]) == [*rows_of("second")]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_full_disk_while_a_folder_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "weights").write_bytes(b"w" * 100)
    with monkeypatch.context() as patch:
        fill_disk(patch, step)
        with pytest.raises(StorageError, match="the disk is full"):
            commit_folder(tmp_path / "staging", tmp_path / "final", {})
    assert not (tmp_path / "final").exists()


def test_another_fault_of_the_disk_is_not_called_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, "fsync", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "file", "x")
    assert os.listdir(tmp_path) == []


def test_steps_come_in_the_order_that_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def logged_fsync(descriptor: int) -> None:
        steps.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync file")
        fsync(descriptor)

    def logged_replace(old: Path, new: Path) -> None:
        steps.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "replace", logged_replace)
    write_bytes(tmp_path / "file", b"x")
    assert steps == ["fsync file", "rename", "fsync folder"]


def test_json_and_text_come_back(tmp_path: Path) -> None:
    value = {"text": "ä\n\u2028😀", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "a" / "b.json", value)
    assert json.loads((tmp_path / "a" / "b.json").read_text(encoding="utf-8")) == value
    write_text(tmp_path / "t", "ä\r\n")
    assert (tmp_path / "t").read_bytes() == "ä\r\n".encode()


def test_two_attempts_never_share_a_temporary_file(tmp_path: Path) -> None:
    names: list[str] = []
    for _ in range(3):
        durable.write_with(tmp_path / "file", lambda path: (names.append(path.name), path.write_bytes(b"x"))[0])
    assert len(set(names)) == 3
    assert all(name.startswith(durable.TEMPORARY) for name in names)
