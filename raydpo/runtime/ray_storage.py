"""Proof that all nodes see the same storage, before hours of work are written to it.

What comes in: a folder. What goes out: nothing, or a StorageError that names the nodes which do not see it.
Decision: a real file is written by the driver and read by a task on every living node, and each task's own file must
be seen by the driver. Mount tables and paths prove nothing; a file does. Price: a task start on each node, once a run, for
which the driver waits; a node that comes later is asked when the first actor has a place there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raydpo.artifacts.mirror_path import url_of
from raydpo.artifacts.object_store import ObjectStore
from raydpo.errors import StorageError

_PATIENCE_S = 20.0
"""Network file systems may show a new file a few seconds late."""
_TASK_TIMEOUT_S = 300.0
_NOT_RUN = "the probe did not run there"
_DEATH_S = 60.0
"""How long Ray may take to know that a node is lost on which a probe did not run."""


def check_ray_storage(folder: Path, leaving: Collection[str] = ()) -> frozenset[str]:
    """Prove that every node reads and writes the same `folder`; ids of these nodes. Nothing is done on one node.

    leaving: nodes that are being taken away, and get no work.
    Raises StorageError with one sentence for each node that does not.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    if len(nodes) > 1 and (problems := _problems(folder, nodes)):
        raise StorageError(problems)
    return frozenset(node["NodeID"] for node in nodes)


def unseen_on(node_id: str, folder: Path) -> str:
    """What is wrong with `folder` on a node that came later; empty for nothing, and for a node that is gone."""
    return " ".join(_problems(folder, [node for node in ray.nodes() if node["Alive"] and node["NodeID"] == node_id]))


def _problems(folder: Path, nodes: list[dict[str, Any]]) -> list[str]:
    """A sentence for each of `nodes` that does not share `folder` with the driver."""
    folder.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    if (url := url_of(folder)) is not None:
        return _problems_of_store(url, str(folder), token, nodes)
    probe = folder / f".raydpo-probe-{token}"
    answers = [folder / f"{probe.name}-{number}" for number in range(len(nodes))]
    try:
        probe.write_text(token)
        pending = [
            _on(node, answer_probe).remote(str(probe), token, str(answer))
            for node, answer in zip(nodes, answers, strict=True)
        ]
        problems = []
        for node, answer, reply in zip(nodes, answers, pending, strict=True):
            found = _outcome(reply)
            problem = found or ("" if _appears(answer, token) else "its files do not appear on the driver")
            if problem and _stays(node["NodeID"], found):
                problems.append(
                    f"{folder}: node {node['NodeManagerAddress']} ({node['NodeManagerHostname']}) does not share it: "
                    f"{problem}. Caches and checkpoints would be scattered over the nodes. Mount the same storage at "
                    "this path on every node, or choose a path that all of them see."
                )
    finally:
        for path in (probe, *answers):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return problems


def _on(node: dict[str, Any], function: Callable[..., str]) -> Any:
    """`function` as a task of one node."""
    place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(function)


def _problems_of_store(url: str, folder: str, token: str, nodes: list[dict[str, Any]]) -> list[str]:
    """The same for the object store at `url`: each node reads what the driver put, and can keep copies in `folder`."""
    store, key = ObjectStore(url), f"probe-{token}"
    store.put(key, token.encode())
    try:
        pending = [_on(node, answer_store_probe).remote(url, key, token, folder) for node in nodes]
        problems = []
        for node, reply in zip(nodes, pending, strict=True):
            found = _outcome(reply)
            if found and _stays(node["NodeID"], found):
                problems.append(
                    f"{url}: node {node['NodeManagerAddress']} ({node['NodeManagerHostname']}) cannot use it: {found} "
                    "Give that node the credentials and the network that the driver has, and a RAYDPO_STORE_DIR that it may "
                    "write to."
                )
    finally:
        store.delete([key])
    return problems


def answer_store_probe(url: str, key: str, token: str, folder: str) -> str:
    """On a node: read what the driver put into a store, and make the folder of copies. What went wrong, or an empty text."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        found = ObjectStore(url).get(key)
    except (OSError, StorageError) as error:
        return f"{error}"
    return "" if found == token.encode() else "what the driver put there is not seen."


def answer_probe(probe: str, token: str, answer: str) -> str:
    """On a node: read the driver's file, write one of its own. Returns what went wrong, or an empty text."""
    if not _appears(Path(probe), token):
        return "a file that the driver wrote there is not seen"
    try:
        Path(answer).write_text(token)
    except OSError as error:
        return f"it cannot be written to ({error.strerror})"
    return ""


def _outcome(reply: ray.ObjectRef) -> str:
    try:
        return str(ray.get(reply, timeout=_TASK_TIMEOUT_S))
    except RayError as error:
        return f"{_NOT_RUN} ({str(error).splitlines()[0]})"


def _stays(node_id: str, found: str) -> bool:
    """Whether a node lives of which `found` was said. One that is lost meanwhile is nobody's storage."""
    deadline_s = time.monotonic() + (_DEATH_S if found.startswith(_NOT_RUN) else 0.0)
    while any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes()):
        if time.monotonic() >= deadline_s:
            return True
        time.sleep(0.5)
    return False


def _appears(path: Path, token: str) -> bool:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        with suppress(OSError):
            if path.read_text() == token:
                return True
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.2)
