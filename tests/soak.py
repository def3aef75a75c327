"""A training that is killed again and again until it is done: `make soak`, or python -m tests.soak --kills 50.

Comes in: a seed, how many kills, and the mean time between two. Goes out: a table of what was killed, and whether cache and
weights are, byte for byte, those of a run that nobody disturbed. Decision: the command is the one that people run, in a
process of its own; whoever is due is drawn by the seed (driver by SIGKILL or SIGTERM, a rank, a reference worker), and nothing
is killed twice without a commit between, because that ends a run on purpose. Nodes and raylets are not killed here:
tests/pipelines/test_healing.py takes a node away.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from raydpo.config.render import dump
from tests.pipelines import driver
from tests.pipelines.toy import committed_shards, config, make_toy, nats_by_row, weights

SETTINGS = {
    "train.num_workers": 2,
    "train.epochs": 100,
    "train.save_every": 4,
    "train.eval_every": 40,
    "train.keep_checkpoints": 1,
    "train.max_failures": 3,
    "reference.rows_per_shard": 2,
    "reference.tokens_per_batch": 1,
    "run.runtime_in_process": False,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean-s", type=float, default=6.0, help="mean time between two kills, in seconds")
    parser.add_argument("--runtime", choices=("local", "ray"), default="local")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    toy = make_toy(root)
    settings = SETTINGS | {"run.runtime": args.runtime}
    for name in ("killed", "undisturbed"):
        changes = settings | {"reference.cache_dir": str(root / f"{name}-cache")}
        (root / f"{name}.yaml").write_text(dump(config(toy, root / name, changes)))
    killed = Soak(root, args.kills, random.Random(args.seed), args.mean_s).run()
    undisturbed = driver.start("train", str(root / "undisturbed.yaml"), log=root / "undisturbed.log")
    assert undisturbed.wait(driver.PATIENCE_S) == 0, (root / "undisturbed.log").read_text()
    same_weights = weights(root / "killed/model") == weights(root / "undisturbed/model")
    same_cache = nats_by_row(root / "killed-cache") == nats_by_row(root / "undisturbed-cache")
    told = ", ".join(f"{number} {what}" for what, number in sorted(killed.items()))
    print(f"seed {args.seed}, {args.runtime}: {sum(killed.values())} kills ({told})")
    print(f"weights equal: {same_weights}; reference rows equal: {same_cache}")
    return 0 if same_weights and same_cache else 1


class Soak:
    """The command, started again each time that it ended before it was done."""

    def __init__(self, root: Path, kills: int, chance: random.Random, mean_s: float) -> None:
        self.root, self.left, self.chance, self.mean_s = root, kills, chance, mean_s
        self.killed: Counter[str] = Counter()
        self.log, self.committed = root / "killed.log", ""

    def run(self) -> Counter[str]:
        while True:
            process = driver.start("train", str(self.root / "killed.yaml"), log=self.log)
            code = self._disturb(process)
            if code == 0:
                return self.killed
            # A SIGTERM that comes before the first line of the program is the kernel's to answer.
            assert code in (-signal.SIGKILL, -signal.SIGTERM, 143), f"exit {code}:\n{self.log.read_text()[-3000:]}"

    def _disturb(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            due = time.monotonic() + self.chance.expovariate(1 / self.mean_s)
            while time.monotonic() < due or not self._has_committed():
                if process.poll() is not None:
                    return process.returncode
                time.sleep(0.02)
            if self.left <= 0:
                return process.wait(10 * driver.PATIENCE_S)
            self._kill_one(process)

    def _has_committed(self) -> bool:
        """Whether something was committed since the last kill."""
        return self._commits() != self.committed

    def _commits(self) -> str:
        steps = sorted(path.name for path in (self.root / "killed/checkpoints").glob("step-*"))
        return f"{steps[-1:]} {len(committed_shards(self.root / 'killed-cache'))}"

    def _kill_one(self, process: subprocess.Popen[bytes]) -> None:
        below = sorted(driver.descendants(process.pid))
        victims: dict[str, Callable[[], None]] = {
            "driver by SIGKILL": lambda: os.kill(process.pid, signal.SIGKILL),
            "driver by SIGTERM": lambda: os.kill(process.pid, signal.SIGTERM),
        }
        for kind, name in (("RankActor", "rank"), ("PoolActor", "reference worker")):
            if pids := [pid for pid, _ in below if driver.is_actor(pid, kind)]:
                victim = self.chance.choice(pids)
                victims[name] = lambda victim=victim: os.kill(victim, signal.SIGKILL)  # type: ignore[misc]
        name = self.chance.choice(sorted(victims))
        self.committed = self._commits()
        try:
            victims[name]()
        except ProcessLookupError:
            return
        self.killed[name] += 1
        self.left -= 1
        print(f"{sum(self.killed.values()):3d} {name:20} at {self.committed}", flush=True)
        if name.startswith("driver"):
            process.wait(driver.PATIENCE_S)


if __name__ == "__main__":
    sys.exit(main())
