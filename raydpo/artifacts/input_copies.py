"""Files of an object store, or of what fsspec reads, that are only read: copied here, and again when they have changed there.

Comes in: the address of an object, of a folder of them, or a pattern. Goes out: the path of the copy, or the pattern in it.
Decision: what changed is told by the tag that the store gives to the content, kept next to the copy; a copy gets its name once
it is whole. One process of a machine copies at a time, and those that waited find what it left. The price is the disk that the
copies take.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from raydpo.artifacts.durable import whole_copy
from raydpo.artifacts.mirror_path import input_path, url_of
from raydpo.artifacts.node_lock import once_a_node
from raydpo.artifacts.object_store import PARALLEL, ObjectStore
from raydpo.config.places import reads_only
from raydpo.errors import StorageError
from raydpo.redaction import redacted

_TAG, _WHOLE = ".tag", ".whole"
"""Ends of the names of a file's tag and of the mark of a folder of which everything is here."""


def everything(name: str) -> bool:
    """Every file is wanted."""
    return True


def bring_input(path: Path) -> None:
    """Have the copy at `path`, a file or a folder, here; one that is whole is taken as it is, however old."""

    def is_here() -> bool:
        return path.is_file() or (path / _WHOLE).is_file()

    if (url := url_of(path)) is not None and not is_here():
        with once_a_node(path, "input"):
            if not is_here():
                _copied(url, everything)


def copied(url: str, is_wanted: Callable[[str], bool] = everything) -> Path:
    """Path of the copy of what is at `url`: an object, all wanted objects below a folder, or a pattern of the copies. A path
    that is not there where nothing was found.

    is_wanted: asked with the name of each file of a folder or pattern.
    """
    with once_a_node(input_path(url.rstrip("/")), "input"):
        return _copied(url, is_wanted)


def _copied(url: str, is_wanted: Callable[[str], bool]) -> Path:
    if reads_only(url):
        return _by_fsspec(url, is_wanted)
    url = url.rstrip("/")
    parent, _, name = url.rpartition("/")
    if not glob.has_magic(url):
        store = ObjectStore(parent)
        if (head := store.head(name)) is not None:
            _copy(store, name, *head, input_path(url))
            return input_path(url)
        return _folder(url, "", is_wanted)
    while glob.has_magic(parent):
        parent = parent.rpartition("/")[0]
    _folder(parent, url.removeprefix(f"{parent}/"), is_wanted)
    return input_path(url)


def _folder(url: str, pattern: str, is_wanted: Callable[[str], bool]) -> Path:
    """Copy what is wanted below `url` and matches `pattern`, if there is one; remove copies of what is no longer there."""
    store, folder = ObjectStore(url), input_path(url)
    (folder / _WHOLE).unlink(missing_ok=True)
    found = {
        key: (size, tag)
        for key, size, tag in store.listed()
        if is_wanted(key.rpartition("/")[2]) and (not pattern or fnmatchcase(key, pattern.replace("**/", "*")))
    }
    with ThreadPoolExecutor(PARALLEL) as threads:
        list(threads.map(lambda key: _copy(store, key, *found[key], folder / key), found))
    for path in folder.rglob("*") if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        is_ours = not pattern or fnmatchcase(name, pattern.replace("**/", "*"))
        if path.is_file() and name not in found and is_ours and not path.name.startswith("."):
            path.unlink(missing_ok=True)
    if found and not pattern and is_wanted is everything:
        (folder / _WHOLE).touch()
    return folder


def _by_fsspec(url: str, is_wanted: Callable[[str], bool]) -> Path:
    """A file, or the wanted files of a folder, at an address that fsspec reads."""
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        system, root = url_to_fs(url)
        root = root.rstrip("/")
        is_folder = scheme not in ("http", "https") and system.isdir(root)
        keys = system.find(root) if is_folder else [root] * bool(system.exists(root))
        for key in keys:
            path = input_path(url) / key.removeprefix(root).strip("/") if is_folder else input_path(url)
            if not is_folder or is_wanted(path.name):
                facts = system.info(key)
                _take(
                    path, str(sorted((name, str(fact)) for name, fact in facts.items())), partial(system.get_file, key)
                )
    except StorageError:
        raise
    except Exception as error:  # each of the file systems raises what its client raises, or lacks it
        text = redacted(str(error) or repr(error)).partition("\n")[0]
        raise StorageError(
            f"{url} cannot be read: {text}. {scheme}:// is read by fsspec, which may need a package of its own. Or copy the "
            "files to a folder or an object store and name that."
        ) from error
    return input_path(url)


def _take(path: Path, tag: str, get: Callable[[str], object]) -> None:
    """Let `get` write a file that has `tag` to `path`, unless it has it."""
    kept = path.with_name(f".{path.name}{_TAG}")
    with suppress(OSError):
        if kept.read_text() == tag and path.exists():
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_copy(path) as temporary:
        get(str(temporary))
        kept.unlink(missing_ok=True)
    kept.write_text(tag)


def _copy(store: ObjectStore, key: str, num_bytes: int, tag: str, path: Path) -> None:
    def get(temporary: str) -> None:
        if not store.fetch(key, Path(temporary), num_bytes):
            raise StorageError(f"{store.url}/{key} was removed while it was being read. Run the same command again.")

    _take(path, f"{tag} {num_bytes}", get)
