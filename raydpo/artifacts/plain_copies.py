"""Plain copies of what people and other programs read from a run directory in an object store, under the names of the README.

Comes in: what the log reached before a commit and after it. Goes out: copies, made in the store. Decision: they are for
readers and nothing of the run depends on them; the manifest of a model goes first when it is replaced and comes last, so that
a reader who finds one finds the model whole. The price is a request a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raydpo.artifacts.object_store import COPY_BYTES, PARALLEL, ObjectStore
from raydpo.artifacts.placeholder import Stored

_FOLDERS = ("model/", "model_merged/", "tensorboard/", "profile/")
_MODELS = ("model/", "model_merged/")
MANIFEST = "FILES.json"
"""Not the name of a committed folder's: a copied `model/` is an ordinary model."""


def update_plain(
    store: ObjectStore, before: Mapping[str, Stored], now: Mapping[str, Stored], read: Callable[[str], Path]
) -> None:
    """Make the plain copies those of `now`, where those of `before` were made. read: a file of the working copy, fetched."""

    def copy(name: str) -> None:
        if new[name].bytes > COPY_BYTES:
            store.put(name, read(name))
        else:
            store.copy(new[name].key, name)

    old, new = _plain(before), _plain(now)
    changed = [name for name in new if old.get(name) != new[name]]
    removed = sorted(old.keys() - new.keys())
    models = [folder for folder in _MODELS if any(name.startswith(folder) for name in [*changed, *removed])]
    store.delete([f"{folder}{MANIFEST}" for folder in models])
    with ThreadPoolExecutor(PARALLEL) as threads:
        list(threads.map(copy, changed))
    store.delete(removed)
    for folder in models:
        if manifest := _manifest(new, folder):
            store.put(f"{folder}{MANIFEST}", manifest)


def renew_plain(store: ObjectStore, now: Mapping[str, Stored], read: Callable[[str], Path]) -> None:
    """Make again what a driver that died after its last commit may have left undone. A model with its manifest is whole."""
    whole = tuple(folder for folder in _MODELS if store.get(f"{folder}{MANIFEST}") == _manifest(now, folder))
    update_plain(store, {name: stored for name, stored in now.items() if name.startswith(whole)}, now, read)


def _manifest(tree: Mapping[str, Stored], folder: str) -> bytes | None:
    """Of a model: file -> size and hash; None where there is no model."""
    files = {
        name.removeprefix(folder): {"bytes": stored.bytes, "sha256": stored.sha256}
        for name, stored in sorted(tree.items())
        if name.startswith(folder)
    }
    return (json.dumps({"files": files}, indent=2) + "\n").encode() if files else None


def _plain(tree: Mapping[str, Stored]) -> dict[str, Stored]:
    """What has a plain copy: files at the top, models, TensorBoard's and a profile's."""
    return {name: stored for name, stored in tree.items() if "/" not in name or name.startswith(_FOLDERS)}
