"""Folders in shared memory: gone with their maker, also where it was killed; never taken from one that lives."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from raydpo.artifacts import shared_files, shared_folder
from raydpo.errors import StorageError


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_files, "SHARED_MEMORY", tmp_path)
    return tmp_path


def test_it_is_empty_private_and_gone_with_close(memory: Path) -> None:
    folder = shared_folder.create("run", 1)
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "model").mkdir()
    assert shared_folder.sweep() == 0
    with pytest.raises(StorageError, match="cannot be made"):
        shared_folder.create("run", 1)
    assert (folder.path / "model").is_dir(), "whoever has it keeps it"
    folder.close()
    assert list(memory.iterdir()) == []


def test_what_a_killed_process_left_is_removed_by_whoever_comes_next(memory: Path) -> None:
    pid = os.fork()
    if not pid:
        (shared_folder.create("run", 1).path / "model").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (memory / f"{shared_folder.PREFIX}run/model").is_dir()
    folder = shared_folder.create("run", 1)
    assert list(folder.path.iterdir()) == []
    folder.close()


def test_what_does_not_fit_is_refused_and_leaves_nothing(memory: Path) -> None:
    with pytest.raises(StorageError, match=r"free, and .* are needed"):
        shared_folder.create("run", 2**62)
    assert list(memory.iterdir()) == []
