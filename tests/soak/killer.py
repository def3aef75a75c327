"""Disturbs a command until it is done: what is due, and when, is drawn by a seed and counted in what the command tells.

Comes in: a scene, how many kills, and the mean number of events between two. Goes out: how often each kind was killed, and
how often the command had to be started. Decision: nothing is killed before something was committed since the last kill,
because what dies twice at one step ends a run on purpose. Who is due is drawn among those who are there: the driver, ranks,
and whoever works in the stage that told last; on a cluster a node, a raylet, and a new node where one is missing.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from tests.pipelines import driver
from tests.soak.nodes import SoakNodes
from tests.soak.scenes import SoakScene
from tests.soak.telling import read_told

STILL_S = 900.0
"""Longest time in which the command may tell nothing."""
WORKERS = {"reference": "reference worker", "generate": "generator", "judge": "judge"}
"""Stage -> who an actor of a pool is in it."""
ADDED = "node added"


def start(scene: SoakScene, name: str, address: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The command of the run `name`. address: variables of the cluster; none: this machine."""
    kept = {key: text for key, text in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.soak.telling", str(scene.root / f"{name}.told"), scene.verb]
    with (scene.root / f"{name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, str(scene.root / f"{name}.yaml")],
            stdout=log,
            stderr=log,
            env={**kept, "RAYDPO_LOCAL_CPUS": "4", **address},
        )


class SoakKiller:
    """Of the run `name` of a scene. nodes: None on this machine alone."""

    def __init__(
        self, scene: SoakScene, name: str, kills: int, seed: int, mean_events: float, nodes: SoakNodes | None
    ) -> None:
        self.scene, self.name, self.left, self.mean_events, self.nodes = scene, name, kills, mean_events, nodes
        self.chance, self.killed, self.starts = random.Random(seed), Counter[str](), 0
        self.file, self.log = scene.root / f"{name}.told", scene.root / f"{name}.log"
        self.committed = ""

    def run(self) -> None:
        """Until the command ends with 0. Fails when it ends in a way that is none of ours."""
        address = self.nodes.head.driver_environment() if self.nodes else {}
        while True:
            self.starts += 1
            process = start(self.scene, self.name, address)
            try:
                code = self._disturb(process)
            finally:
                process.kill()
            if code == 0:
                return
            # A SIGTERM that comes before the first line of the program is the kernel's to answer.
            assert code in (-signal.SIGKILL, -signal.SIGTERM, 143), f"exit {code}:\n{self._end_of_log()}"

    def _disturb(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            wanted = len(read_told(self.file)) + max(1, round(self.chance.expovariate(1 / self.mean_events)))
            if not self._wait(process, partial(self._is_due, wanted)):
                return process.returncode
            if self.left <= 0:
                self._wait(process, lambda: False)
                return process.returncode
            self._kill_one(process)

    def _wait(self, process: subprocess.Popen[bytes], condition: Callable[[], bool]) -> bool:
        """Whether the condition came before the end of the command."""
        size, since_s = -1, time.monotonic()
        while not condition():
            if process.poll() is not None:
                return False
            now = self.file.stat().st_size if self.file.exists() else 0
            size, since_s = (size, since_s) if now == size else (now, time.monotonic())
            still_s = time.monotonic() - since_s
            assert still_s < STILL_S, f"{self.name} told nothing for {still_s:.0f} s:\n{self._end_of_log()}"
            time.sleep(0.1)
        return True

    def _is_due(self, wanted: int) -> bool:
        """Whether so many events were told of, and something was committed since the last kill."""
        return len(read_told(self.file)) >= wanted and self.scene.committed(self.name) != self.committed

    def _kill_one(self, process: subprocess.Popen[bytes]) -> None:
        victims = self._victims(process)
        kind = self.chance.choice(sorted(victims))
        before = self.scene.committed(self.name)
        try:
            victims[kind]()
        except ProcessLookupError:
            return
        self.killed[kind] += 1
        if kind != ADDED:
            self.committed = before
            self.left -= 1
        stage = self._stage()
        print(f"{sum(self.killed.values()):3d} {kind:20} in {stage}, with {before}", flush=True)
        if kind.startswith("driver"):
            process.wait(driver.PATIENCE_S)

    def _victims(self, process: subprocess.Popen[bytes]) -> dict[str, Callable[[], None]]:
        """Those who are there: kind -> what ends one of them."""
        found: dict[str, Callable[[], None]] = {
            "driver by SIGKILL": lambda: os.kill(process.pid, signal.SIGKILL),
            "driver by SIGTERM": lambda: os.kill(process.pid, signal.SIGTERM),
        }
        below, draw = sorted(driver.descendants(os.getpid())), self.chance.randrange(2**16)
        kinds = {"RankActor": "rank"} if self._stage() == "train" else {}
        kinds |= {"PoolActor": WORKERS[self._stage()]} if self._stage() in WORKERS else {}
        for actor, kind in kinds.items():
            if pids := [pid for pid, _ in below if driver.is_actor(pid, actor)]:
                victim = pids[draw % len(pids)]
                found[kind] = lambda victim=victim: os.kill(victim, signal.SIGKILL)  # type: ignore[misc]
        if (nodes := self.nodes) is not None:
            if nodes.are_missing:
                found[ADDED] = nodes.add
            else:
                found |= {"node": lambda: nodes.lose(draw), "raylet": lambda: nodes.lose_raylet(draw)}
        return found

    def _stage(self) -> str:
        """The one that told last."""
        stages = [str(told[1]) for told in read_told(self.file) if told[0] == "advanced"]
        return stages[-1] if stages else ""

    def _end_of_log(self) -> str:
        return self.log.read_text(errors="replace")[-5000:]


def made_again(killed: Path, undisturbed: Path) -> dict[str, int]:
    """Stage -> how many more steps forward were told of than in the undisturbed run: what was lost, as far as it was seen."""
    one, other = (
        Counter(str(told[1]) for told in read_told(path) if told[0] == "advanced") for path in (killed, undisturbed)
    )
    return {stage: max(0, one[stage] - other[stage]) for stage in sorted(one | other)}
