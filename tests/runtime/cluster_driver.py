"""A driver on a cluster: waits for the nodes, then proves the storage. Run as `python -m tests.runtime.cluster_driver`.

Prints the number of nodes, the ranks' local numbers, and what check_storage has to say about each folder.
"""

from __future__ import annotations

import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import ray

from raydpo.errors import ResourceError, StorageError
from raydpo.runtime import Demand, check_storage, gauge, run_gang, session
from tests.runtime import rank_work


def main(num_nodes: str, *folders: str) -> None:
    with session(run="/shared/first"):
        deadline_s = time.monotonic() + 240
        while len([node for node in ray.nodes() if node["Alive"]]) < int(num_nodes):
            assert time.monotonic() < deadline_s, "the nodes did not come"
            time.sleep(0.5)
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
