"""Reference caches and inputs at an address."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydpo import cli
from raydpo.artifacts import CacheIdentity, ReferenceCache, local_path, open_reference
from raydpo.artifacts.mirror_path import ROOT_VARIABLE
from raydpo.artifacts.object_store import ObjectStore
from raydpo.data.sources import find
from tests.storage.server import Fault, Server

IDENTITY = CacheIdentity("weights", "none", "tokenizer", "float32", "eager-cpu", "1")
KEYS = [f"{number:032x}" for number in range(40)]
Move = Callable[[str], None]


@pytest.fixture
def machine(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Move:
    return lambda name: monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / name))


def cache(bucket: str) -> ReferenceCache:
    return ReferenceCache(local_path(f"{bucket}/cache"), IDENTITY)


def nats(number: int) -> np.ndarray:
    return np.full(3, -number, np.float32)


def write(into: ReferenceCache, shard: int) -> None:
    into.write_shard(f"s{shard}", KEYS[10 * shard : 10 * shard + 10], [nats(10 * shard + n) for n in range(10)])


def test_machines_add_to_one_cache_and_each_finds_all(bucket: str, machine: Move) -> None:
    machine("one")
    one = cache(bucket)
    write(one, 0)
    machine("two")
    two = cache(bucket).open()
    write(two, 1)
    assert two.open().missing(KEYS) == KEYS[20:]
    machine("one")
    write(one, 2)  # knows nothing of the other's entry, whose number is taken
    assert one.open().missing(KEYS) == KEYS[30:]
    machine("three")
    three = cache(bucket).open(is_owner=False)
    assert three.missing(KEYS) == KEYS[30:]
    assert [found.tolist() for found in three.lookup(KEYS[9:11])] == [nats(9).tolist(), nats(10).tolist()]
    assert open_reference(f"{bucket}/cache/{IDENTITY.digest}").num_rows == 30


def test_a_shard_is_found_though_no_listing_shows_it(bucket: str, machine: Move, server: Server) -> None:
    machine("one")
    write(cache(bucket), 0)
    machine("two")
    with server.failing(Fault("stale", "GET", "list-type", left=9)):
        assert cache(bucket).open().missing(KEYS) == KEYS[10:]


def test_what_a_machine_has_is_not_fetched_again(bucket: str, machine: Move) -> None:
    machine("one")
    write(cache(bucket), 0)
    machine("two")
    opened = cache(bucket).open()
    store = ObjectStore(f"{bucket}/cache/{IDENTITY.digest}")
    (key,) = [key for key, _, _ in store.listed("shards")]
    store.delete([key])
    assert opened.open().missing(KEYS[:10]) == []


@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_a_damaged_shard_is_scored_again_and_healed(bucket: str, machine: Move, damage: str) -> None:
    machine("one")
    write(cache(bucket), 0)
    write(cache(bucket), 1)
    store = ObjectStore(f"{bucket}/cache/{IDENTITY.digest}")
    (key,) = [key for key, _, _ in store.listed("shards") if key.startswith("shards/s1-")]
    if damage == "removed":
        store.delete([key])
    else:
        store.put(key, (store.get(key) or b"")[:-1] + b"?")
    machine("two")
    opened = cache(bucket).open()
    assert opened.missing(KEYS[:20]) == KEYS[10:20]
    write(opened, 1)
    machine("three")
    assert cache(bucket).open().missing(KEYS[:20]) == []


def test_inputs_are_objects_folders_and_patterns(bucket: str, machine: Move) -> None:
    machine("one")
    store = ObjectStore(f"{bucket}/data")
    for name in ("a.jsonl", "b.jsonl", "more/c.jsonl", "notes.txt"):
        store.put(name, name.encode())

    def names(url: str) -> list[str]:
        sources, problems = find("data.train", [f"{bucket}/{url}"])
        assert problems == []
        return [source.name.removeprefix(f"{bucket}/data/") for source in sources]

    assert names("data/a.jsonl") == ["a.jsonl"]
    assert names("data") == names("data/*.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names("data/**/*.jsonl") == ["a.jsonl", "b.jsonl", "more/c.jsonl"]
    store.delete(["b.jsonl"])
    assert names("data") == ["a.jsonl"]
    for missing in ("data/none.jsonl", "nothing"):
        assert find("data.train", [f"{bucket}/{missing}"])[1][0].startswith(
            f"data.train: '{bucket}/{missing}' does not exist"
        )


def test_an_input_that_changed_is_read_anew_and_one_that_did_not_is_not(bucket: str, machine: Move) -> None:
    machine("one")
    store = ObjectStore(f"{bucket}/data")
    store.put("a.jsonl", b"first")
    digests = []
    for content in (None, b"other"):
        if content is not None:
            store.put("a.jsonl", content)
        (source,), _ = find("data.train", [f"{bucket}/data/a.jsonl"])
        changed = source.path.stat().st_mtime_ns
        (again,), _ = find("data.train", [f"{bucket}/data/a.jsonl"])
        assert again.path.stat().st_mtime_ns == changed
        digests.append(source.digest())
    assert digests[0] != digests[1]


def test_the_command_line_lists_and_verifies_a_cache_at_an_address(
    bucket: str, machine: Move, capsys: pytest.CaptureFixture[str]
) -> None:
    machine("one")
    write(cache(bucket), 0)
    machine("two")
    assert cli.main(["cache", "list", "--cache-dir", f"{bucket}/cache"]) == 0
    assert f"{IDENTITY.digest}  10 rows" in capsys.readouterr().out
    assert cli.main(["cache", "verify", "--cache-dir", f"{bucket}/cache"]) == 0
    assert "1 shards read, 0 damaged" in capsys.readouterr().out


def test_an_input_that_fsspec_reads_is_copied_and_read_anew_when_it_changed(tmp_path: Path, machine: Move) -> None:
    machine("one")
    served = tmp_path / "served"
    served.mkdir()
    (served / "a.jsonl").write_text("first")

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(served))

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_port}/a.jsonl"
        for text in ("first", "and another"):
            (served / "a.jsonl").write_text(text)
            (source,), problems = find("data.train", [url])
            assert (source.name, source.path.read_text(), problems) == (url, text, [])
        (problem,) = find("data.train", [url.replace("a.jsonl", "b.jsonl")])[1]
        assert "b.jsonl' does not exist" in problem
        web.shutdown()
