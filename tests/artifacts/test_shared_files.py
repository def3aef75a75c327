"""Files that processes of a node share for a moment: who opens them, when they are gone, and what is left after a kill."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from raydpo.artifacts import shared_files
from raydpo.errors import StorageError


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    found = tmp_path / "memory", tmp_path / "disk"
    for folder in found:
        folder.mkdir()
    monkeypatch.setattr(shared_files, "folders", lambda: found)
    return found


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_what_one_process_writes_another_maps(places: tuple[Path, Path]) -> None:
    made = shared_files.create(4096)
    assert made.path.parent == places[0]
    assert made.path.stat().st_mode & 0o777 == 0o600
    other = shared_files.opened(made.path, made.key, is_writer=True)
    assert other is not None
    other.write(100, memoryview(b"abc"))
    reader = shared_files.opened(made.path, made.key)
    assert reader is not None
    memory = reader.mapped()
    assert (len(memory), bytes(memory[100:103])) == (4096, b"abc")
    memory[100:103] = b"xyz"  # of this process alone
    again = reader.mapped()
    assert bytes(again[100:103]) == b"abc"
    for file in (made, other, reader):
        file.release()


def test_a_file_of_the_same_path_with_another_key_is_not_this_one(places: tuple[Path, Path]) -> None:
    made = shared_files.create(4096)
    assert shared_files.opened(made.path, "0" * 32) is None
    assert shared_files.opened(made.path.with_name("absent"), made.key) is None
    assert not shared_files.remove(made.path, "0" * 32)
    assert made.path.is_file()
    made.release()


def test_a_lock_that_is_swept_before_it_is_held_is_made_again(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, swept = shared_files._new, []

    def new(path: Path) -> int:
        found = honest(path)
        if not swept:
            swept.append(shared_files.sweep())
        return found

    monkeypatch.setattr(shared_files, "_new", new)
    made = shared_files.create(4096)
    assert swept == [1]
    assert {path.name for path in places[0].iterdir()} == {made.path.name, f"{made.path.name}.lock"}
    made.release()
    assert shared_files.sweep() == 1
    assert list(places[0].iterdir()) == []


def test_a_removed_file_stays_readable_where_it_is_mapped_and_is_gone_else(places: tuple[Path, Path]) -> None:
    made = shared_files.create(2**20)
    made.write(2**20 - 3, memoryview(b"end"))
    made.close()
    reader = shared_files.opened(made.path, made.key)
    assert reader is not None
    memory = reader.mapped()
    reader.close()
    assert shared_files.remove(made.path, made.key)
    assert list(places[0].iterdir()) == []
    assert bytes(memory[-3:]) == b"end"
    assert not shared_files.remove(made.path, made.key)
    assert shared_files.opened(made.path, made.key) is None
    made.release()


def test_without_room_in_memory_the_next_folder_is_taken_and_without_any_all_are_named(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    free: dict[Path, int] = {places[0]: 2**20, places[1]: 2**30}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, free[folder]))
    made = shared_files.create(2**21)
    assert made.path.parent == places[1]
    made.release()
    free[places[1]] = 0
    with pytest.raises(StorageError) as refused:
        shared_files.create(2**21)
    assert f"{places[0]} has 1.0 MB free; {places[1]} has 0 bytes free" in str(refused.value)
    assert "--shm-size" in str(refused.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_passed_over(places: tuple[Path, Path]) -> None:
    places[0].chmod(0o500)
    made = shared_files.create(4096)
    assert made.path.parent == places[1]
    made.release()


def test_a_folder_that_is_not_there_is_passed_over(places: tuple[Path, Path]) -> None:
    places[0].rmdir()
    made = shared_files.create(4096)
    assert made.path.parent == places[1]
    made.release()


def test_a_file_that_does_not_grow_is_removed(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(StorageError, match="No space left on device"):
        shared_files.create(4096)
    assert [list(folder.iterdir()) for folder in places] == [[], []]


KILLED = """
import os, signal, sys
from pathlib import Path
from raydpo.artifacts import shared_files
shared_files.folders = lambda: (Path(sys.argv[1]),)
shared_files.create(4096)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_files_of_a_process_that_was_killed_are_swept_and_those_of_a_living_one_stay(places: tuple[Path, Path]) -> None:
    alive: Any = shared_files.create(4096)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(places[0])], check=False)
        assert done.returncode == -9
    (places[0] / "somebody's").write_text("stays")
    assert len(list(places[0].iterdir())) == 7, "each with its lock"
    alive.close()
    assert shared_files.sweep() == 2
    assert {path.name for path in places[0].iterdir()} == {alive.path.name, f"{alive.path.name}.lock", "somebody's"}
    alive.release()
    assert shared_files.sweep() == 1
    assert [path.name for path in places[0].iterdir()] == ["somebody's"]
