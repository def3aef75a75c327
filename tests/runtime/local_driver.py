"""A driver in a process of its own: opens a session, runs two ranks that wait, says so, and waits.

Run as `python -m tests.runtime.local_driver FOLDER wait|done [ray|local]`.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from raydpo.runtime import Demand, Kind, run_gang, session
from tests.runtime import rank_work
from tests.runtime.single import run_single


def main(folder: str, what: str, kind: Kind = "ray") -> None:
    with session([Demand("train", 2, 1.0)], kind=kind, local_cpus=2):
        if what == "done":
            print(run_single("sum", rank_work.add, 40, 2), flush=True)
            return
        function = partial(rank_work.tell_pid_and_wait, folder=folder)
        for rank, _ in run_gang("train", function, num_ranks=2, cpus=1, hang_timeout_s=600):
            (Path(folder) / f"streamed-{rank}").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])  # type: ignore[arg-type]
