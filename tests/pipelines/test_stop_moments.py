"""SIGTERM at moments that nobody chose, in the life of a default training and of two rounds: nothing half, nothing lost.

Four moments of one seed, or twenty with RAYDPO_SOAK=1, each in a process of its own and with a seed that is drawn anew and
printed, so that over many runs every moment comes; RAYDPO_TEST_SEED brings one back.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from raydpo.artifacts.cache_lock import LOCK
from raydpo.artifacts.open_readers import READERS
from raydpo.config import Config
from raydpo.config.render import dump
from raydpo.rundir.checkpoints import committed
from tests.pipelines import moments
from tests.pipelines.rounds.toy_rounds import pairs, rounds_config
from tests.pipelines.toy import Toy, config, weights

pytestmark = pytest.mark.slow

IS_LONG = os.environ.get("RAYDPO_SOAK") == "1"
SEED = os.environ.get("RAYDPO_TEST_SEED") or str(random.SystemRandom().randrange(2**31) if IS_LONG else 0)
KINDS = {
    "train": ("preparation", "precompute", "step", "evaluation", "checkpoint", "publication"),
    "iterate": ("sampling", "judging", "choosing", "between", "step", "checkpoint"),
}
PLACES = [(verb, kind) for verb, kinds in KINDS.items() for kind in kinds]
NUM_MOMENTS = 20 if IS_LONG else 4
ROOT = Path(__file__).parents[2]


def drawn(number: int) -> tuple[str, str]:
    """Verb and kind of a moment: of any twelve in a row, each another one."""
    turn, place = divmod(number, len(PLACES))
    return random.Random(f"{SEED} {turn}").sample(PLACES, len(PLACES))[place]


@dataclass(frozen=True)
class Scene:
    """Runs that nobody disturbed, by their verb, and how many moments of each kind each had."""

    toy: Toy
    seen: dict[str, moments.Moments]

    def file(self, verb: str, root: Path) -> Path:
        """The config of a run below `root`, with a reference cache of its own. As in the README: no checkpoint by steps."""
        root.mkdir()
        default = {"reference.cache_dir": str(root / "caches"), "train.save_every": None, "train.eval_every": None}
        wanted: Config
        if verb == "train":
            wanted = config(self.toy, root / "run", {**default, "train.global_batch_pairs": 6})
        else:
            wanted = rounds_config(self.toy, root / "run", default)
        (root / "run.yaml").write_text(dump(wanted))
        return root / "run.yaml"

    def undisturbed(self, verb: str) -> moments.Moments:
        """The run of a verb, made when it is first asked for."""
        if verb not in self.seen:
            root = self.toy.root / f"moments-{verb}"
            file = self.file(verb, root)
            self.seen[verb] = moments.Moments(root)
            assert moments.run(self.seen[verb], verb, file) == 0
            assert set(KINDS[verb]) <= self.seen[verb].seen.keys()
        return self.seen[verb]


@pytest.fixture(scope="module")
def scene(toy: Toy, machine: None) -> Scene:
    return Scene(toy, {})


@pytest.mark.parametrize("number", range(NUM_MOMENTS))
def test_a_signal_at_any_moment(scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str], number: int) -> None:
    verb, kind = drawn(number)
    chance = random.Random(f"{SEED} {number}")
    stop(scene, verb, kind, chance.randrange(scene.undisturbed(verb).seen[kind]), tmp_path / "moment", capfd)


def test_a_signal_while_the_staging_folder_is_removed(
    scene: Scene, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where it once left one behind."""
    last = scene.undisturbed("train").seen["checkpoint"] - 1
    stop(scene, "train", "checkpoint", last, tmp_path / "moment", capfd)


def stop(scene: Scene, verb: str, kind: str, number: int, root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A run that is sent SIGTERM at a moment, and the same command again."""
    undisturbed = scene.undisturbed(verb)
    moment = moments.Moments(root, kind, number)
    shown = f"{verb}, {kind} {number + 1} of {undisturbed.seen[kind]}, RAYDPO_TEST_SEED={SEED}"
    file = scene.file(verb, root)
    code, said = ended(moment, verb, file, capfd)
    assert code == 143, (shown, said)
    line = next(line for line in said.splitlines() if "stopped by SIGTERM" in line)
    assert "committed" in line.lower(), (shown, line)
    assert "The same command goes on" in line, (shown, line)
    assert half_written(root) == [], shown
    lost = steps_lost(root / "run")
    assert lost <= 1, (shown, line)
    assert moments.run(moments.Moments(root), verb, file) == 0, shown
    assert results(root / "run", verb) == results(undisturbed.root / "run", verb), shown
    with capfd.disabled() if IS_LONG else nullcontext():
        print(f"\n{shown}: exit {code}, {lost} steps lost; {line.partition('SIGTERM. ')[2]}", flush=True)


def ended(moment: moments.Moments, verb: str, file: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and words of a command that is sent the signal."""
    if not IS_LONG:
        capfd.readouterr()
        return moments.run(moment, verb, file), capfd.readouterr().err
    command = [sys.executable, "-m", "tests.pipelines.moments", moment.kind, str(moment.number), verb, str(file)]
    place = {"TMPDIR": str(moment.root / "tmp"), "RAYDPO_LOCAL_CPUS": "4"}
    (moment.root / "tmp").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **place})
    assert not [path for path in (moment.root / "tmp").iterdir() if path.name.startswith("raydpo-")]
    return done.returncode, done.stderr


def half_written(root: Path) -> list[Path]:
    """Names that no finished thing has. Whole parts of an unfinished piece of a round stay: they are not made again; and a
    cache keeps the lock of its writers, and entries of readers that have ended until the next collection."""
    places = [path for folder in ("run", "caches") for path in (root / folder).rglob(".*")]
    kept = [path for cache in (root / "caches").glob("*") for path in (cache / LOCK, cache / READERS)]
    return [path for path in places if path not in kept and not (path.is_dir() and path.name.endswith("-work"))]


def steps_lost(run: Path) -> int:
    """Steps that were logged and are in no checkpoint, of a training or of those of all rounds."""
    lost = 0
    for metrics in run.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        logged = max((line["step"] for line in lines if "loss" in line), default=0)
        kept = [checkpoint.step for checkpoint in committed(metrics.parent / "checkpoints")]
        is_over = (metrics.parent / "summary.json").is_file()  # of a round that is over, checkpoints are gone
        lost += 0 if is_over else logged - max(kept, default=0)
    return lost


def results(run: Path, verb: str) -> list[object]:
    """What must not depend on the moment: weights, and pairs."""
    if verb == "train":
        return [weights(run / "model")]
    rounds = range(2)
    return [(pairs(run, index), weights(run / f"rounds/{index:03d}/train/model")) for index in rounds]
