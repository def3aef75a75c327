"""The driver on the first of two hosts: storage that one of them lacks, a training over both, a third that joins a precompute.

Comes in: a folder that all see, one that the second host does not, and where the third host is. Goes out: in the folder, run/,
and notes.json, what was said. Run on the host itself: `python -m tests.pipelines.hosts_story FOLDER PRIVATE HEAD_PID LATE_PID`.
"""

import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import ray

from raydpo.errors import ResourceError, StorageError
from raydpo.pipelines import precompute, train
from raydpo.runtime import session
from raydpo.schema.events import Advanced
from tests.pipelines.toy import Notes, Toy, config
from tests.runtime.hosts import Host, ray_node, wait_for

TWO = {
    "run.runtime": "ray",
    "reference.scheduling": {"label_selector": {"host": "in(two, three)"}, "resources": {"disk": 1}},
    "train.num_workers": 2,
    "train.scheduling": {"strategy": "STRICT_SPREAD"},
}
ROWS_PER_SHARD = 2
IN_WORK = 2
"""Shards that the first two workers may have answered or hold when they are made to stand."""


class Joined(Notes):
    """Brings the third host after the first shard, and lets only its worker go on until it has done work."""

    def __init__(self, stack: ExitStack, head: Host, late: Host, folder: Path) -> None:
        super().__init__()
        self._stack, self._head, self._late, self._folder = stack, head, late, folder
        self._standing: list[psutil.Process] = []
        self._until = 0
        self.rows_of_late = 0

    def __call__(self, event):
        super().__call__(event)
        if not isinstance(event, Advanced) or event.stage != "reference":
            return
        if not self._until:
            token = os.environ["RAY_AUTH_TOKEN"]
            self._stack.enter_context(ray_node(self._late, self._head, 1, token, self._folder))
            wait_for(lambda: num_nodes() == 3, "the third host")
            self._stand()
            self._until = event.done + ROWS_PER_SHARD * (2 * IN_WORK + 3)
        elif self._standing and event.done >= self._until:
            self.rows_of_late = event.done - (self._until - ROWS_PER_SHARD * 3)
            for process in self._standing:
                process.send_signal(signal.SIGCONT)
            self._standing = []

    def _stand(self) -> None:
        """Stop the workers that are there; they still look alive to Ray, whose deadline for a silent worker is longer."""
        self._standing = [
            process
            for process in psutil.process_iter()
            if not self._late.owns(process.pid) and "ray::PoolActor" in " ".join(_command(process)) and is_ours(process)
        ]
        assert len(self._standing) == 2, self._standing
        for process in self._standing:
            process.send_signal(signal.SIGSTOP)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_ours(process: psutil.Process) -> bool:
    """Whether a process belongs to this cluster: there may be other tests on the machine."""
    try:
        return process.environ().get("RAY_AUTH_TOKEN") == os.environ["RAY_AUTH_TOKEN"]
    except psutil.Error:
        return False


def num_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


def main(folder: Path, private: Path, head_pid: int, late_pid: int) -> None:
    toy = Toy(
        folder, folder / "model", folder / "other", folder / "train.jsonl", folder / "eval.jsonl", folder / "cache"
    )
    head, late = Host("one", "10.231.7.1", head_pid), Host("three", "10.231.7.3", late_pid)
    said: dict[str, object] = {}
    with session(kind="ray"), ExitStack() as stack:
        wait_for(lambda: num_nodes() == 2, "the second host")
        try:
            precompute(config(toy, private / "run", TWO))
        except StorageError as error:
            said["refused"] = error.problems
        notes = Notes()
        train(config(toy, folder / "run", TWO), notes)
        said["training"] = notes.info
        try:
            train(
                config(
                    toy, folder / "run", {**TWO, "train.scheduling": {"strategy": "STRICT_PACK"}, "run.resume": "must"}
                )
            )
        except ResourceError as error:
            said["no room"] = error.problems
        joined = Joined(stack, head, late, folder)
        changes = {
            "run.runtime": "ray",
            "reference.cache_dir": str(folder / "cache of three"),
            "reference.num_workers": {"min": 2, "max": 3},
            "reference.rows_per_shard": ROWS_PER_SHARD,
        }
        said["summary"] = precompute(config(toy, folder / "scored", changes), joined)["reference"]
        said["precompute"], said["rows_of_late"] = joined.info, joined.rows_of_late
        (folder / "notes.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
