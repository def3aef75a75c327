"""A driver on a cluster (`python -m tests.runtime.cluster_driver`): begins on one node, waits for another, proves the storage.

Prints what becomes of a worker on the node that comes late, the number of nodes, the ranks' local numbers, and what
check_storage has to say about each folder.
"""

from __future__ import annotations

import logging
import sys
import time
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path

import ray

from raydpo.errors import ResourceError, StorageError
from raydpo.runtime import Demand, Placement, check_storage, gauge, run_gang, run_pool, session
from tests.runtime import rank_work


class Warned(logging.Handler):
    """Makes `mark` when the pool turns a node away."""

    def __init__(self, mark: Path) -> None:
        super().__init__(logging.WARNING)
        self._mark = mark

    def emit(self, record: logging.LogRecord) -> None:
        print("warned", record.getMessage())
        self._mark.touch()


def turn_away(folder: Path) -> None:
    """Work for three on a node with room for two, then on a second one, which has another disk at `folder`."""
    check_storage(folder)
    (folder / "seen").touch()
    print("ready", flush=True)
    (head,) = wait_for_nodes(1)
    (late,) = wait_for_nodes(2) - {head}
    handler = Warned(folder / "go")
    logging.getLogger("raydpo.runtime.pool").addHandler(handler)
    make = partial(rank_work.make_onlooker, str(folder))
    seen = dict(run_pool("late", make, list(range(6)), num_workers=3, cpus=1))
    print("at work", sorted(seen.items()))
    logging.getLogger("raydpo.runtime.pool").removeHandler(handler)
    only = Placement(label_selector={"ray.io/node-id": late})
    for start in (
        lambda: run_pool("alone", make, [0], num_workers=1, cpus=1, placement=only),
        lambda: run_gang("ranks", rank_work.show_environment, num_ranks=1, cpus=1, hang_timeout_s=600, placement=only),
    ):
        try:
            print("it worked", list(start()))
        except StorageError as error:
            print("refused by name", error)
    for name in ("seen", "go"):
        (folder / name).unlink(missing_ok=True)


def wait_for_nodes(number: int) -> set[str]:
    deadline_s = time.monotonic() + 240
    while len(found := {node["NodeID"] for node in ray.nodes() if node["Alive"]}) < number:
        assert time.monotonic() < deadline_s, "the nodes did not come"
        time.sleep(0.5)
    return found


def main(num_nodes: str, private: str, *folders: str) -> None:
    with session(run="/shared/first"):
        if private != "-":
            with session():
                turn_away(Path(private))
        wait_for_nodes(int(num_nodes))
        print("nodes", num_nodes)
        for folder in folders:
            try:
                check_storage(Path(folder))
                print("shared", folder)
            except StorageError as error:
                print("not shared", len(error.problems), str(error))
            print("left", folder, sorted(path.name for path in Path(folder).iterdir()))
        try:
            with session([Demand("train", 2, 3.0)]):
                print("fits")
        except ResourceError as error:
            print("refused", error)
        places = [
            event["context"]
            for _, event in run_gang("spread", rank_work.show_environment, num_ranks=4, cpus=1, hang_timeout_s=600)
        ]
        gauge("raydpo_loss", 0.625, "train")
        print("scraped", scraped("raydpo_loss"))
        print("ranks", sorted((place.rank, place.local_rank, place.local_size) for place in places))


def scraped(name: str) -> str:
    """The line of a gauge at the metrics port of this node."""
    (here,) = [node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id()]
    deadline_s = time.monotonic() + 240
    while time.monotonic() < deadline_s:
        with suppress(OSError):
            address = f"http://{here['NodeManagerAddress']}:{here['MetricsExportPort']}/metrics"
            for line in urllib.request.urlopen(address, timeout=30).read().decode().splitlines():
                if name in line and not line.startswith("#"):
                    return str(line)
        time.sleep(1)
    raise AssertionError("the gauge is not exported")


if __name__ == "__main__":
    main(*sys.argv[1:])
