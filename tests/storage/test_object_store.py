"""The client of an object store: what it promises when answers are lost, servers are busy and puts meet."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from raydpo.artifacts.object_store import PART_BYTES, ObjectStore
from raydpo.errors import StorageError
from tests.storage.server import Fault, Server


@pytest.fixture
def store(bucket: str) -> ObjectStore:
    return ObjectStore(f"{bucket}/run")


def test_what_was_put_is_got_listed_copied_and_deleted(store: ObjectStore) -> None:
    assert store.get("a/b") is None
    store.put("a/b", b"one")
    store.put("a/b", b"other")
    store.put("c", b"")
    store.copy("a/b", "d=1/e.f-g")
    assert (store.get("a/b"), store.get("c"), store.get("d=1/e.f-g")) == (b"other", b"", b"other")
    assert {(key, size) for key, size, _ in store.listed()} == {("a/b", 5), ("c", 0), ("d=1/e.f-g", 5)}
    assert [key for key, _, _ in store.listed("a")] == ["a/b"]
    store.delete(["a/b", "never"])
    assert [key for key, _, _ in store.listed()] == ["c", "d=1/e.f-g"]
    assert store.counts["sent"] == 8
    assert store.counts["received"] == 10


def test_a_large_file_goes_up_in_parts_and_comes_in_ranges(store: ObjectStore, tmp_path: Path, server: Server) -> None:
    data = os.urandom(2 * PART_BYTES + 17)
    (tmp_path / "large").write_bytes(data)
    before = len(server.seen)
    store.put("large", tmp_path / "large")
    assert sum("partNumber" in line for line in server.seen[before:]) == 3
    assert store.fetch("large", tmp_path / "again", len(data))
    assert (tmp_path / "again").read_bytes() == data
    assert store.counts["get"] == 3
    assert not store.fetch("nothing", tmp_path / "no", 5)


def test_of_many_that_put_at_once_one_wins(store: ObjectStore) -> None:
    start, won = threading.Barrier(6), list[int]()

    def put(number: int) -> None:
        start.wait()
        if store.put_if_absent("log/1", f"entry of {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("log/1") == f"entry of {won[0]}".encode()


@pytest.mark.parametrize("kind", ["busy", "lost"])
def test_a_conditional_put_without_an_answer_is_known_to_be_ours_or_not(
    store: ObjectStore, server: Server, kind: str
) -> None:
    with server.failing(Fault(kind, "PUT", "log/1", left=2)):
        assert store.put_if_absent("log/1", b"ours")
    assert store.get("log/1") == b"ours"
    with server.failing(Fault(kind, "PUT", "log/1", left=1)):
        assert not store.put_if_absent("log/1", b"theirs")
    assert store.get("log/1") == b"ours"


@pytest.mark.parametrize(("method", "path"), [("PUT", "/k"), ("GET", "/k"), ("GET", "list-type"), ("POST", "delete")])
@pytest.mark.parametrize("kind", ["busy", "lost"])
def test_every_other_request_is_made_again(
    store: ObjectStore, server: Server, kind: str, method: str, path: str
) -> None:
    store.put("there", b"1")
    with server.failing(Fault(kind, method, path, left=2)):
        store.put("k", b"value")
        assert store.get("k") == b"value"
        assert {key for key, _, _ in store.listed()} == {"k", "there"}
        store.delete(["k"])
    assert store.get("k") is None


def test_an_error_says_what_to_do_and_shows_no_secret(bucket: str) -> None:
    with pytest.raises(StorageError, match="could not be written") as caught:
        ObjectStore(f"{bucket}-that-is-not-there/x").put("a", b"b")
    assert "Credentials, region and endpoint come from the environment" in str(caught.value)
    assert "test-secret-value" not in str(caught.value)
