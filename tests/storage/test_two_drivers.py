"""Two drivers, whoever is killed and whoever comes back, on one run directory: one winner an entry, nothing reached is removed.

The store is obstore's own in memory, with the conditions of the others and without their network.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import binary, sampled_from
from obstore.store import MemoryStore

from raydpo.artifacts import object_store
from raydpo.artifacts.object_store import ObjectStore
from raydpo.artifacts.placeholder import fetch, store_at
from raydpo.artifacts.remote_run import RemoteRun
from raydpo.artifacts.run_tree import read_tree
from raydpo.errors import LostLeaseError
from tests.storage.runs import log_of

DRIVERS = sampled_from(["one", "two"])
NAMES = sampled_from(["a", "model/w", "checkpoints/step-1/w", "metrics.jsonl"])
_RUNS = itertools.count()
_stores: dict[str, MemoryStore] = {}


def lost(entry: dict[str, Any], attempt: int) -> LostLeaseError:
    return LostLeaseError(f"{entry['attempt']} {attempt}")


class TwoDrivers(RuleBasedStateMachine):
    """What each driver has in its working copy, and what the newest commit holds."""

    @initialize()
    def start(self) -> None:
        self.root = Path(mkdtemp())
        self.url = f"s3://memory/run-{next(_RUNS)}"
        self.drivers: dict[str, RemoteRun] = {}
        self.owner = ""
        self.committed: dict[str, bytes] = {}
        self.wins = 0

    def folder(self, name: str) -> Path:
        return self.root / "raydpo-store/s3/memory" / name

    def content(self, name: str) -> dict[str, bytes]:
        folder = self.folder(name)
        fetch(folder)
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}

    @rule(name=DRIVERS)
    def begin(self, name: str) -> None:
        """A driver starts, or starts anew after it was killed."""
        self.drivers[name] = RemoteRun(self.folder(name), self.url, {}, lost)
        self.drivers[name].begin()
        self.owner = name
        assert self.content(name) == self.committed

    @rule(name=DRIVERS)
    def begin_elsewhere(self, name: str) -> None:
        shutil.rmtree(self.folder(name), ignore_errors=True)
        self.begin(name)

    @precondition(lambda self: self.drivers)
    @rule(name=DRIVERS, path=NAMES, data=binary(max_size=3), is_large=sampled_from([False, True]))
    def write(self, name: str, path: str, data: bytes, is_large: bool) -> None:
        if name in self.drivers:
            target = self.folder(name) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.write_bytes(data * (100_000 if is_large else 1))

    @precondition(lambda self: self.drivers)
    @rule(name=DRIVERS, path=NAMES)
    def remove(self, name: str, path: str) -> None:
        (self.folder(name) / path).unlink(missing_ok=True)

    @precondition(lambda self: self.drivers)
    @rule(name=DRIVERS)
    def commit(self, name: str) -> None:
        if name not in self.drivers:
            return
        mine = self.content(name) if name == self.owner else {}
        if name == self.owner:
            self.drivers[name].commit("all")
            self.committed = mine
            return
        (self.folder(name) / "mark").write_text("of a driver that lost")
        for act in (self.drivers[name].check, lambda: self.drivers[name].commit("all")):
            with pytest.raises(LostLeaseError):
                act()
        del self.drivers[name]

    @invariant()
    def what_the_log_reaches_is_there(self) -> None:
        reader = RemoteRun(self.root / "reader", self.url, {}, lost)
        store = ObjectStore(self.url)
        tree = read_tree(reader._log, reader._log.newest())
        assert tree.keys() == self.committed.keys()
        for name, stored in tree.items():
            assert hashlib.sha256(store.get(stored.key) or b"").hexdigest() == stored.sha256
            assert store.get(stored.key) == self.committed[name]
            assert "/checkpoints/" in f"/{name}" or store.get(name) == self.committed[name], "a plain copy"

    def teardown(self) -> None:
        attempts = [entry["attempt"] for entry in log_of(self.url)] if hasattr(self, "url") else []
        assert attempts == sorted(attempts), "after an attempt began, no older one has put an entry"
        shutil.rmtree(getattr(self, "root", Path("nowhere")), ignore_errors=True)


def test_two_drivers_and_what_they_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_client", lambda url: _stores.setdefault(url, MemoryStore()))
    store_at.cache_clear()
    run_state_machine_as_test(TwoDrivers, settings=settings(max_examples=15, stateful_step_count=20, deadline=None))
    store_at.cache_clear()
