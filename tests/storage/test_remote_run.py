"""A run directory in an object store: two drivers, a driver that dies between any two requests, damage, and what is fetched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from raydpo.artifacts import Lease, commit_folder, fence, local_path, newest_valid, settle, verify_folder
from raydpo.artifacts.folders import discard
from raydpo.artifacts.lease import _started, _who
from raydpo.artifacts.lock import RunLock
from raydpo.artifacts.mirror_path import ROOT_VARIABLE, shown, url_of
from raydpo.artifacts.object_store import PART_BYTES, ObjectStore
from raydpo.artifacts.remote_run import RemoteRun, _sha256
from raydpo.errors import ConfigError, IntegrityError, LostLeaseError, RunInUseError, StorageError
from tests.storage.runs import log_of, named
from tests.storage.server import Fault, Server

LARGE = 400_000
"""Bytes of a file that is not fetched when a run directory is opened."""
Move = Callable[[str], None]


@pytest.fixture
def url(bucket: str) -> str:
    return f"{bucket}/run"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Move:
    """Go on on another machine: one whose working copies are elsewhere."""
    return lambda name: monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / name))


def checkpoint(folder: Path, step: int, content: bytes = b"w") -> Path:
    """A committed checkpoint of a small and a large file."""
    staging = folder / "checkpoints" / f".staging-{step}"
    (staging / "model").mkdir(parents=True)
    (staging / "model" / "weights").write_bytes(content * LARGE)
    (staging / "state").write_bytes(b"s" * step)
    final = folder / "checkpoints" / f"step-{step:06d}"
    commit_folder(staging, final, {"step": step}, replace=True)
    return final


def files(folder: Path) -> dict[str, bytes]:
    """Content of everything that belongs to a run directory and is here."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".objects.json", "lock")]
    names = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in names.items() if not name.startswith("log/")}


def test_a_path_holds_its_address(url: str) -> None:
    assert url_of(local_path(url) / "checkpoints") == f"{url}/checkpoints"
    assert shown(local_path("abfs://box@account.dfs.core.windows.net/a/b")) == (
        "abfs://box@account.dfs.core.windows.net/a/b"
    )
    assert shown(Path("/runs/a")) == "/runs/a"


def test_another_machine_sees_what_was_committed_and_fetches_what_it_needs(url: str, machine: Move) -> None:
    machine("one")
    folder = local_path(url)
    with Lease(folder):
        checkpoint(folder, 1, b"a")
        second = checkpoint(folder, 2, b"b")
        discard(folder / "checkpoints/step-000001")
        (folder / "metrics.jsonl").write_text("line\n" * LARGE)
        fence(folder / "model")
        shutil.copytree(second / "model", folder / "model")
        settle(folder / "model")
        held = files(folder)
    store = ObjectStore(url)
    assert store.get("model/weights") == b"b" * LARGE
    assert not any("step-000001" in key for key, _, _ in store.listed()), "nothing of a discarded folder stays"

    machine("two")
    before = len(log_of(url))
    with Lease(local_path(url)) as lease:
        folder = local_path(url)
        there = files(folder)
        assert "checkpoints/step-000002/model/weights" not in there
        assert there == {name: data for name, data in held.items() if not name.endswith("weights")}
        with pytest.raises(FileNotFoundError):
            (folder / "model/weights").read_bytes()
        found, skipped = newest_valid(folder / "checkpoints", "step-")
        assert (found, skipped) == (folder / "checkpoints/step-000002", [])
        assert (found / "model/weights").read_bytes() == b"b" * LARGE
        assert lease.attempt == 2
        sent = lease.remote.store.counts["sent"]
    assert lease.remote.store.counts["sent"] - sent < 5000, "what the store holds is not sent again"
    assert named(log_of(url)[before:]) == ["attempt", "end"]


def test_the_same_machine_fetches_nothing_that_it_has(url: str) -> None:
    folder = local_path(url)
    with Lease(folder) as first:
        checkpoint(folder, 1)
        (folder / "extra").write_text("committed")
        first.remote.commit("all")
        (folder / "late").write_text("after the last commit")
        first.remote.end()
        first.remote = None
    with Lease(folder) as lease:
        received = lease.remote.store.counts["received"]
        assert (folder / "checkpoints/step-000001/model/weights").stat().st_size == LARGE
        assert not (folder / "late").exists(), "what no entry of the log reaches does not count"
        assert (folder / "extra").read_text() == "committed"
        assert verify_folder(folder / "checkpoints/step-000001") == []
        assert lease.remote.store.counts["received"] == received


def driver(folder: Path, url: str) -> RemoteRun:
    """A driver with its working copy in `folder`; it loses by `LostLeaseError`."""
    return RemoteRun(
        folder, url, {"host": folder.name}, lambda entry, attempt: LostLeaseError(f"{entry['host']} {attempt}")
    )


def test_of_two_drivers_the_one_that_began_last_goes_on(url: str, tmp_path: Path) -> None:
    old, new = driver(tmp_path / "old", url), driver(tmp_path / "new", url)
    old.begin()
    (tmp_path / "old/state").write_text("of both")
    old.commit("state")
    new.begin()
    assert (tmp_path / "new/state").read_text() == "of both"
    (tmp_path / "old/state").write_text("of the old one")
    for act in (old.check, lambda: old.commit("state")):
        with pytest.raises(LostLeaseError, match="new 1"):
            act()
    old.end()
    (tmp_path / "new/state").write_text("of the new one")
    new.check()
    new.commit("state")
    third = driver(tmp_path / "third", url)
    third.begin()
    assert (tmp_path / "third/state").read_text() == "of the new one"
    assert [entry["attempt"] for entry in log_of(url)] == [1, 1, 2, 2, 3]


def test_who_gives_way_reads_what_was_committed_and_disturbs_nobody(url: str, machine: Move) -> None:
    machine("one")
    with Lease(local_path(url)) as training:
        checkpoint(local_path(url), 1)
        before = log_of(url)
        machine("two")
        folder = local_path(url)
        with Lease(folder, gives_way=True) as looking:
            assert looking.remote is None
            assert "has not said that it is done there" in looking.notes[0]
            assert newest_valid(folder / "checkpoints", "step-") == (folder / "checkpoints/step-000001", [])
            (folder / "data").mkdir()
            for name in ("data/prepared.json", "evaluate.json"):
                fence(folder / name)
                (folder / name).write_text("{}")
                settle((folder / name) if name == "evaluate.json" else folder / "data")
        assert log_of(url) == before
        machine("one")
        training.check()
        checkpoint(local_path(url), 2)
    keys = {key for key, _, _ in ObjectStore(url).listed()}
    assert "evaluate.json" in keys, "what was found is shown"
    assert not any(key.startswith("data") for key in keys)
    machine("two")
    with Lease(local_path(url), gives_way=True) as alone:
        assert alone.remote is not None, "the other one is done"
        assert alone.remote.attempt == 2
        assert not (local_path(url) / "data/prepared.json").exists()
        assert newest_valid(local_path(url) / "checkpoints", "step-")[0] == local_path(url) / "checkpoints/step-000002"


def test_a_driver_of_this_machine_that_runs_is_not_taken_over(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(local_path(url)) as lease:
        lease.remote.end()
    ObjectStore(url).put(
        "log/00000003.json", json.dumps({"attempt": 2, "kind": "attempt", **_init(), "tree": []}).encode()
    )
    with pytest.raises(RunInUseError, match="is in use by process 1 on"):
        Lease(local_path(url)).__enter__()


def _init() -> dict[str, object]:
    """Process 1 of this machine, which runs."""
    return {**_who(), "pid": 1, "started": _started(1)}


@pytest.mark.parametrize("kind", ["busy", "lost"])
@pytest.mark.parametrize("path", ["log/", "weights.0001", "model/"])
def test_a_commit_whose_answers_are_lost_is_made_once(url: str, server: Server, kind: str, path: str) -> None:
    folder = local_path(url)
    with Lease(folder), server.failing(Fault(kind, "PUT", path, left=2)):
        source = checkpoint(folder, 1)
        shutil.copytree(source / "model", folder / "model")
        settle(folder / "model")
    assert named(log_of(url)) == ["attempt", "checkpoints/step-000001", "model", "end"]
    assert ObjectStore(url).get("model/weights") == b"w" * LARGE


def test_listings_that_come_late_hide_nothing(url: str, machine: Move, server: Server) -> None:
    machine("one")
    with Lease(local_path(url)):
        checkpoint(local_path(url), 1)
    machine("two")
    with server.failing(Fault("stale", "GET", "list-type", left=9)), Lease(local_path(url)) as lease:
        assert list(ObjectStore(url).listed()) == []
        assert lease.attempt == 2
        assert newest_valid(local_path(url) / "checkpoints", "step-")[0] is not None


@pytest.mark.parametrize("damage", ["flipped", "cut", "removed"])
def test_a_damaged_object_is_passed_over(url: str, machine: Move, damage: str) -> None:
    machine("one")
    with Lease(local_path(url)):
        checkpoint(local_path(url), 1)
        checkpoint(local_path(url), 2, b"v")
    store = ObjectStore(url)
    (key,) = [key for key, _, _ in store.listed() if key.startswith("checkpoints/step-000002/model/weights")]
    data = store.get(key) or b""
    if damage == "removed":
        store.delete([key])
    else:
        store.put(key, data[:-1] if damage == "cut" else data[:-1] + b"?")
    machine("two")
    with Lease(local_path(url)):
        found, skipped = newest_valid(local_path(url) / "checkpoints", "step-")
        assert found is not None
        assert found.name == "step-000001"
        (text,) = skipped
        assert key in text


def test_an_entry_that_cannot_be_read_is_said(url: str) -> None:
    with Lease(local_path(url)):
        checkpoint(local_path(url), 1)
    ObjectStore(url).put("log/00000003.json", b"{")
    with pytest.raises(IntegrityError, match=r"log/00000003\.json cannot be read"):
        Lease(local_path(url)).__enter__()


def test_what_many_entries_reach_is_read_from_the_last_whole_one(url: str, tmp_path: Path) -> None:
    first = driver(tmp_path / "one", url)
    first.begin()
    for number in range(70):
        (tmp_path / f"one/file-{number % 50}").write_text(str(number))
        if number % 7 == 3:
            (tmp_path / f"one/file-{number % 50}").unlink()
        first.commit(str(number))
    second = driver(tmp_path / "two", url)
    second.begin()
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert sum("tree" in entry for entry in log_of(url)) == 3


def test_a_store_that_does_not_keep_to_conditions_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def replacing(self: ObjectStore, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True

    monkeypatch.setattr(ObjectStore, "put_if_absent", replacing)
    with pytest.raises(StorageError, match="without conditional puts"):
        Lease(local_path(url)).__enter__()


def test_working_copies_beyond_the_bound_go_but_for_those_in_use(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [local_path(f"{bucket}/run-{number}") for number in range(4)]
    for folder in folders[:3]:
        with Lease(folder):
            checkpoint(folder, 1)
    monkeypatch.setenv("RAYDPO_STORE_GB", str(1.5 * LARGE / 1e9))
    with RunLock(folders[0]), Lease(folders[3]):
        assert [folder.exists() for folder in folders] == [True, False, True, True]
    with Lease(folders[1]):
        assert verify_folder(folders[1] / "checkpoints/step-000001") == []
    monkeypatch.setenv("RAYDPO_STORE_GB", "many")
    with pytest.raises(ConfigError, match="RAYDPO_STORE_GB='many' is no number"):
        Lease(folders[0]).__enter__()


def test_what_a_dead_driver_put_and_did_not_name_is_removed_by_the_next(url: str, tmp_path: Path) -> None:
    first, second = driver(tmp_path / "first", url), driver(tmp_path / "second", url)
    first.begin()
    (tmp_path / "first/kept").write_text("kept")
    first.commit("kept")
    store = ObjectStore(url)
    for key in ("lost.0001-000003", "of-the-next.0002-000009", "notes"):
        store.put(key, b"x")
    second.begin()
    keys = {key for key, _, _ in store.listed() if not key.startswith("log/")}
    assert keys == {"kept", "kept.0001-000001", "of-the-next.0002-000009", "notes"}


def test_what_a_checkpoint_asks_of_the_store(url: str) -> None:
    folder = local_path(url)
    with Lease(folder) as lease:
        assert lease.remote is not None
        counts = lease.remote.store.counts
        (folder / "metrics.jsonl").write_text("{}\n")
        checkpoint(folder, 1)
        first = counts.copy()
        (folder / "metrics.jsonl").write_text("{}\n{}\n")
        checkpoint(folder, 2, b"v")
        discard(folder / "checkpoints/step-000001")
        second = counts.copy()
        checkpoint(folder, 3, b"u")
        third = counts.copy()
    asked = {kind: number for kind, number in (second - first).items() if kind != "sent"}
    assert asked == {"put": 4, "create": 1, "copy": 1, "delete": 1}, "three files, the metrics, one entry, a plain copy"
    assert {kind: number for kind, number in (third - second).items() if kind != "sent"} == {
        **{"put": 3, "create": 1, "delete": 1}
    }
    assert LARGE < second["sent"] - first["sent"] < LARGE + 2000


def test_a_small_file_that_is_damaged_is_said_and_left_out(url: str, machine: Move) -> None:
    machine("one")
    with Lease(local_path(url)):
        checkpoint(local_path(url), 1)
        checkpoint(local_path(url), 2, b"v")
        (local_path(url) / "metrics.jsonl").write_text("{}\n")
    store = ObjectStore(url)
    for key, _, _ in list(store.listed()):
        if key.startswith(("metrics.jsonl.", "checkpoints/step-000002/COMMIT.json")):
            store.put(key, b"damaged")
    machine("two")
    with Lease(local_path(url)) as lease:
        assert sum("differs from what was committed" in note for note in lease.notes) == 2
        assert not (local_path(url) / "metrics.jsonl").exists()
        assert newest_valid(local_path(url) / "checkpoints", "step-") == (
            local_path(url) / "checkpoints/step-000001",
            [
                f"step-000002: {local_path(url)}/checkpoints/step-000002/COMMIT.json is missing or cannot be read"
                " (FileNotFoundError)"
            ],
        )


def test_of_a_large_file_that_is_growing_what_it_had_at_first_is_put(url: str, tmp_path: Path) -> None:
    store, path = ObjectStore(url), tmp_path / "growing"
    data = os.urandom(2 * PART_BYTES)
    path.write_bytes(data + b"what came meanwhile")
    store.put("grown", path, len(data))
    assert store.get("grown") == data
    assert _sha256(path, path, len(data)) == hashlib.sha256(data).hexdigest()
