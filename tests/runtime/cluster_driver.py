"""A driver on a cluster: waits for the nodes, then proves the storage. Run as `python -m tests.runtime.cluster_driver`.

Prints the number of nodes, the ranks' local numbers, and what check_storage has to say about each folder.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ray

from raydpo.errors import ResourceError, StorageError
from raydpo.runtime import Demand, check_storage, run_gang, session
from tests.runtime import rank_work


def main(num_nodes: str, *folders: str) -> None:
    with session():
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
        print("ranks", sorted((place.rank, place.local_rank, place.local_size) for place in places))


if __name__ == "__main__":
    main(*sys.argv[1:])
