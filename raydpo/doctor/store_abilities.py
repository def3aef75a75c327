"""What an object store can do that a run relies on: puts, puts where nobody was before, ranges, copies, listings, removal.

Comes in: an address that the config names. Goes out: findings, each from doing the thing with a few small objects of its own
name below the address, which are removed again. Decision: a store that takes a condition and does not keep to it looks like
any other, so two puts are made of which the second has to be refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from raydpo.artifacts.object_store import ObjectStore
from raydpo.doctor.finding import Finding, Level
from raydpo.errors import StorageError


def check(key: str, url: str) -> Iterator[Finding]:
    """Findings on the store at `url`, which the config names under `key`."""
    try:
        store = ObjectStore(f"{url}/doctor-{uuid.uuid4().hex[:12]}")
    except StorageError as error:
        yield Finding(key, "fail", str(error))
        return
    tries: list[tuple[str, str, Callable[[ObjectStore], str | None]]] = [
        ("put", f"{url}: an object is put and read back", _puts),
        ("conditional put", "keeps a second writer out", _keeps_out),
        ("ranges", "a part of an object is read", _reads_ranges),
        ("copy", "works in the store", _copies),
        ("listing", "shows what was put", _lists),
        ("delete", "works", _removes),
    ]
    for name, fine, attempt in tries:
        try:
            problem = attempt(store)
        except StorageError as error:
            problem = str(error)
        if problem is None:
            yield Finding(f"{key} {name}", "ok", fine)
            continue
        level: Level = "warn" if name in ("listing", "delete") else "fail"
        yield Finding(f"{key} {name}", level, f"{problem}{_PRICE.get(name, '')}")
        if name == "put":
            return


_PRICE = {
    "conditional put": ", so two drivers of one run could not be kept apart: a run is refused here",
    "copy": ", so model/ and metrics.jsonl would not appear under their names",
    "listing": ", so opening a run asks for every entry of its log",
}


def _puts(store: ObjectStore) -> str | None:
    store.put("one", b"0123456789")
    return None if store.get("one") == b"0123456789" else "what was put is not what is read"


def _keeps_out(store: ObjectStore) -> str | None:
    is_first, is_second = store.put_if_absent("log", b"first"), store.put_if_absent("log", b"second")
    return None if (is_first, is_second, store.get("log")) == (True, False, b"first") else "a second put replaces it"


def _reads_ranges(store: ObjectStore) -> str | None:
    with TemporaryDirectory() as folder:
        store.fetch("one", Path(folder) / "part", 4)
        return None if (Path(folder) / "part").read_bytes() == b"0123" else "another part came"


def _copies(store: ObjectStore) -> str | None:
    store.copy("one", "two")
    return None if store.get("two") == b"0123456789" else "the copy is another"


def _lists(store: ObjectStore) -> str | None:
    names = {key for key, _, _ in store.listed()}
    return None if {"one", "two", "log"} <= names else f"only {sorted(names)} of three objects are listed"


def _removes(store: ObjectStore) -> str | None:
    store.delete(["one", "two", "log"])
    return None if store.get("one") is None else "an object stays"
