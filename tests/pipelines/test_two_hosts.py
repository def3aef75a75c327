"""Two hosts whose names resolve to loopback, with addresses of their own; a third one that comes later."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raydpo.pipelines import train
from tests.pipelines.hosts_story import ROWS_PER_SHARD
from tests.pipelines.toy import NUM_ROWS, config, make_toy, metrics, nats_by_row
from tests.runtime import hosts

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: sockets below it have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_training_over_two_hosts_and_a_third_that_joins(tmp_path: Path, short: Path) -> None:
    if reason := hosts.why_not():
        pytest.skip(reason)
    toy, private, token = make_toy(tmp_path), tmp_path / "private", secrets.token_hex(24)
    private.mkdir()
    with hosts.network(short, "one", "two", "three") as (one, two, three):
        two.run("mount", "-t", "tmpfs", "none", str(private))
        with hosts.ray_node(one, one, 1, token, short), hosts.ray_node(two, one, 1, token, short):
            command = [sys.executable, "-m", "tests.pipelines.hosts_story", str(tmp_path), str(private)]
            done = subprocess.run(
                [*one.within(), *command, str(one.holder), str(three.holder)],
                env=hosts.driver_environment(one, token),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=1300,
            )
    assert done.returncode == 0, done.stdout + "".join(path.read_text() for path in short.glob("ray-*.txt"))
    said: dict[str, Any] = json.loads((tmp_path / "notes.json").read_text())
    (problem,) = said["refused"]
    assert (
        f"{private}/run: node 10.231.7.2 (two) does not share it: a file that the driver wrote there is not seen"
        in problem
    )
    assert hosts.spread_in(said["training"]), said["training"]
    assert [text for text in said["training"] if "takes part" in text] == [
        f"reference: a worker takes part on {two.address}"
    ], "labels decide where"
    (problem,) = said["no room"]
    assert "train: 2 workers with 1 CPUs each" in problem
    assert "Missing: room for 1 on any single node beside the others (strategy: STRICT_PACK)" in problem
    assert f"reference: a worker takes part on {three.address}" in said["precompute"], said["precompute"]
    assert said["rows_of_late"] >= 3 * ROWS_PER_SHARD, "it worked while the others stood"
    assert said["summary"]["rows_scored"] == NUM_ROWS

    train(config(toy, tmp_path / "alone", {"train.num_workers": 2}))
    there, here = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert there.keys() == here.keys()
    assert max(abs(there[step] - here[step]) for step in there) < 1e-6
    assert nats_by_row(tmp_path / "scored") == nats_by_row(tmp_path / "run")


def losses(run: Path) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in metrics(run) if "loss" in line}
