"""Where on this machine the working copy of an address of an object store lies, and which address a path stands for.

Comes in: `s3://bucket/run`. Goes out: `<root>/raydpo-store/s3/bucket/run`, and the address again from any path below it.
Decision: the path holds the address, so that every process on every node tells one from the other without asking anybody;
everything that works on files works there. The price is long paths, and a root that has to be the same for all processes
of a run.
"""

from __future__ import annotations

import os
from pathlib import Path

from raydpo.config.places import READ_ONLY, STORES, is_in_store, store_problem

_MARK = "raydpo-store"
_INPUTS = "inputs"
ROOT_VARIABLE = "RAYDPO_STORE_DIR"
"""Environment variable: a folder on a disk of this machine for the working copies; default: ~/.cache."""


def local_path(place: str) -> Path:
    """The path of a place that a config names: of an address its working copy, of a path itself, absolute."""
    if not is_in_store(place) or store_problem(place):
        return Path(place).expanduser().absolute()
    scheme, _, rest = place.partition("://")
    return copies_root() / scheme / rest.strip("/")


def input_path(url: str) -> Path:
    """Where a file that is only read, at the address `url`, is copied to."""
    scheme, _, rest = url.partition("://")
    return copies_root() / _INPUTS / scheme / rest.strip("/")


def copies_root() -> Path:
    """The folder of all working copies of this machine."""
    return Path(os.environ.get(ROOT_VARIABLE) or "~/.cache").expanduser().absolute() / _MARK


def url_of(path: Path) -> str | None:
    """The address whose working copy `path` is or lies in; None for any other path."""
    parts = path.parts
    if _MARK not in parts:
        return None
    inside = parts[len(parts) - parts[::-1].index(_MARK) :]
    known = (*STORES, *READ_ONLY) if inside[:1] == (_INPUTS,) else STORES
    inside = inside[1:] if inside[:1] == (_INPUTS,) else inside
    return f"{inside[0]}://{'/'.join(inside[1:])}" if len(inside) > 2 and inside[0] in known else None


def is_input(path: Path) -> bool:
    """Whether `path` is a copy of something that is only read."""
    return f"/{_MARK}/{_INPUTS}/" in path.as_posix()


def shown(path: Path) -> str:
    """`path` as a person named it: the address, where it is a working copy."""
    return url_of(path) or str(path)
