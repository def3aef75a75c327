"""Which caches the run directories of a person reach.

Comes in: run directories, or folders and addresses below which there are some. Goes out: digests of caches. Decision: a run
reaches the cache that its `reference.json` names, whatever became of the run; one that cannot be read ends the search, since
nobody knows what it reaches.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from raydpo.artifacts.placeholder import store_at
from raydpo.config.places import is_in_store
from raydpo.errors import UserError

_POINTER = "reference.json"


def reached_caches(places: Iterable[str]) -> set[str]:
    """Digests of the caches that runs at `places` name. Raises UserError with all places and files that cannot be read."""
    found, problems = set[str](), []
    for place in places:
        if not is_in_store(place) and not Path(place).expanduser().is_dir():
            problems.append(
                f"--runs: {place} is not a folder. Nothing was removed. Give a run directory, or a folder of some."
            )
            continue
        for name, text in _pointers(place):
            try:
                found.add(str(json.loads(text)["identity"]))
            except (ValueError, KeyError, TypeError) as error:
                problems.append(
                    f"{name} cannot be read ({type(error).__name__}), so nobody knows which cache its run reaches. Nothing was "
                    "removed. Run that run again, or remove its folder."
                )
    if problems:
        raise UserError(problems)
    return found


def _pointers(place: str) -> Iterator[tuple[str, bytes]]:
    if is_in_store(place):
        store = store_at(place.rstrip("/"))
        for key, _, _ in store.listed():
            if f"/{key}".endswith(f"/{_POINTER}"):
                yield f"{store.url}/{key}", store.get(key) or b""
        return
    for path in sorted(Path(place).expanduser().rglob(_POINTER)):
        yield str(path), path.read_bytes()
