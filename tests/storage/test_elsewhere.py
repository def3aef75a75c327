"""Processes of another node than the driver's, on which nothing holds the lock: what they read, and what they hand over."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from raydpo.artifacts import (
    CacheIdentity,
    ExampleTable,
    ExampleWriter,
    Lease,
    ReferenceCache,
    commit_folder,
    elsewhere,
    fetch,
    local_path,
    newest_valid,
    settle,
)
from raydpo.artifacts.elsewhere import bring, hand_over, heard, is_home, tell
from raydpo.artifacts.input_copies import copied
from raydpo.artifacts.mirror_path import input_path
from raydpo.artifacts.object_store import ObjectStore
from raydpo.artifacts.placeholder import left_out
from raydpo.rundir.checkpoints import commit_checkpoint
from raydpo.schema.rank_events import Staged
from tests.artifacts.golden import EXAMPLES, examples_in
from tests.storage.server import Server

IDENTITY = CacheIdentity("weights", "none", "tokenizer", "float32", "eager-cpu", "1")
MODEL, STATE = b"m" * 400_000, b"s" * 1000


@pytest.fixture
def folder(bucket: str) -> Path:
    """The working copy of a run whose driver works on another machine: it has token shards."""
    folder = local_path(f"{bucket}/team/run")
    with Lease(folder):
        assert is_home(folder / "checkpoints")
        writer = ExampleWriter(folder / "data", "train", examples_per_shard=3)
        for example in EXAMPLES:
            writer.add(*example)
        writer.close()
        settle(folder / "data")
    shutil.rmtree(folder)
    return folder


def test_what_is_read_is_brought_and_what_is_old_is_not_used(folder: Path) -> None:
    assert not is_home(folder / "data")
    assert examples_in(ExampleTable.open(folder / "data", "train")) == EXAMPLES
    assert sorted(path.name for path in folder.iterdir()) == [".brought", ".objects.json", "data"]
    shard = next((folder / "data").glob("*.arrow"))
    shard.write_bytes(b"of an earlier run")
    (folder / "data" / "left-over").write_text("x")
    bring(folder / "data")
    assert examples_in(ExampleTable.open(folder / "data", "train")) == EXAMPLES
    assert not (folder / "data" / "left-over").exists()


def test_the_driver_s_own_files_are_left_alone(folder: Path) -> None:
    with Lease(folder):
        fetch(folder / "data")
        (folder / "data" / "not-committed").write_text("x")
        bring(folder / "data")
        assert (folder / "data" / "not-committed").read_text() == "x"
        assert hand_over(folder / "data", {}, iter(["not-committed"])) == {}


def test_a_part_that_was_handed_over_is_committed_without_being_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    staging = folder / "checkpoints" / ".staging-1" / "step-000004"
    with Lease(folder) as lease:
        (staging / "engine").mkdir(parents=True)
        (staging / "engine" / "rank-00001.safetensors").write_bytes(MODEL)
        with monkeypatch.context() as away:
            away.setattr(elsewhere, "is_home", lambda path: False)
            handed = hand_over(staging, {}, iter(["engine/rank-00001.safetensors"]))
        assert not (staging / "engine" / "rank-00001.safetensors").exists()
        theirs = Staged(4, str(staging), {}, num_parts=2, handed=handed)
        (staging / "engine" / "rank-00000.safetensors").write_bytes(STATE)
        assert lease.remote is not None
        received = lease.remote.store.counts["received"]
        found = commit_checkpoint([Staged(4, str(staging), {}, num_parts=2), theirs], folder / "checkpoints", {})
        assert lease.remote.store.counts["received"] == received
        assert left_out(found.folder / "engine/rank-00001.safetensors") is not None
        assert newest_valid(folder / "checkpoints", "step-") == (found.folder, [])
        assert (found.folder / "engine/rank-00001.safetensors").read_bytes() == MODEL
    with Lease(folder):
        assert newest_valid(folder / "checkpoints", "step-") == (found.folder, [])


def test_a_word_of_the_driver_is_heard(folder: Path) -> None:
    orders = folder / "checkpoints" / ".staging-1" / "orders"
    assert heard(orders) == ""
    with Lease(folder):
        before = set(threading.enumerate())
        tell(orders, "stop")
        for thread in set(threading.enumerate()) - before:
            thread.join()
        assert heard(orders) == "stop"
    with Lease(folder):
        assert heard(orders) == "", "a word to an earlier attempt is none"


def together(work: Callable[[], object], num_ranks: int = 4) -> None:
    """The ranks of a node, which begin at one time."""
    barrier = threading.Barrier(num_ranks)

    def one(_: int) -> None:
        barrier.wait()
        work()

    with ThreadPoolExecutor(num_ranks) as ranks:
        list(ranks.map(one, range(num_ranks)))


def gets(server: Server, part: str) -> list[str]:
    """Keys below `part` that were got so far, one for each request; looks at logs are left out."""
    found = (re.match(rf"GET /[^?]*?{part}/([^?]*)\?", one) for one in server.seen)
    return sorted(one[1] for one in found if one and not one[1].startswith("log/"))


def test_ranks_of_a_node_fetch_a_model_once(bucket: str, server: Server) -> None:
    store, folder = ObjectStore(f"{bucket}/models/m"), input_path(f"{bucket}/models/m")
    names = ["config.json", "model.safetensors", "tokenizer/merges.txt"]
    for name in names:
        store.put(name, name.encode() * 1000)
    del server.seen[:]
    together(lambda: bring(folder))
    assert gets(server, "models/m") == names
    assert all((folder / name).read_bytes() == name.encode() * 1000 for name in names)
    together(lambda: bring(folder / "model.safetensors"))
    together(lambda: bring(folder))
    assert gets(server, "models/m") == names, "what is here is not asked for"


def test_a_model_of_which_a_part_is_here_is_completed(bucket: str, server: Server) -> None:
    """Whoever was fetching it was killed; a listing and a whole file of the three are here."""
    store, folder = ObjectStore(f"{bucket}/models/m"), input_path(f"{bucket}/models/m")
    for name in ("a", "b", "c"):
        store.put(name, name.encode() * 1000)
    copied(f"{bucket}/models/m", lambda name: name == "a")
    del server.seen[:]
    together(lambda: bring(folder))
    assert gets(server, "models/m") == ["b", "c"]
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == ["a", "b", "c"]


def test_ranks_of_a_node_fetch_a_checkpoint_and_a_cache_once(bucket: str, folder: Path, server: Server) -> None:
    with Lease(folder):
        staging = folder / "checkpoints" / ".staging-2"
        (staging / "model").mkdir(parents=True)
        (staging / "model" / "weights").write_bytes(MODEL)
        (staging / "state").write_bytes(STATE)
        commit_folder(staging, folder / "checkpoints/step-000002", {})
        cache = ReferenceCache(local_path(f"{bucket}/cache"), IDENTITY)
        for shard in range(3):
            cache.write_shard(f"s{shard}", [f"{shard:032x}"], [np.zeros(3, np.float32)])
    shutil.rmtree(folder)
    shutil.rmtree(cache.folder)
    del server.seen[:]
    together(lambda: bring(folder / "checkpoints/step-000002"))
    assert len(gets(server, "checkpoints")) == 3, "a model, a state and their manifest"
    assert (folder / "checkpoints/step-000002/model/weights").read_bytes() == MODEL
    together(lambda: ReferenceCache(local_path(f"{bucket}/cache"), IDENTITY).open(is_owner=False))
    assert len(gets(server, "shards")) == 3
