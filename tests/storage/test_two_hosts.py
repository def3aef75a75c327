"""Two hosts that share an object store and no disk: each has working copies of its own, and a training runs over both."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydpo.pipelines import train
from tests.pipelines.toy import config, make_toy, weights
from tests.runtime import hosts
from tests.storage.conftest import environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PORT = 9000


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: sockets below it have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_a_training_over_hosts_that_share_a_store_alone(
    tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := hosts.why_not():
        pytest.skip(reason)
    toy, copies, token = make_toy(tmp_path), tmp_path / "copies", secrets.token_hex(24)
    copies.mkdir()
    with hosts.network(short, "one", "two") as (one, two):
        for name, value in environment(f"http://{one.address}:{PORT}", copies).items():
            monkeypatch.setenv(name, value)
        two.run("mount", "-t", "tmpfs", "none", str(copies))
        server = subprocess.Popen(
            [*one.within(), sys.executable, "-m", "tests.storage.server", one.address, str(PORT), "bucket"],
            env=hosts.driver_environment(one, token),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            with hosts.ray_node(one, one, 1, token, short), hosts.ray_node(two, one, 1, token, short):
                done = subprocess.run(
                    [*one.within(), sys.executable, "-m", "tests.storage.hosts_once", str(tmp_path)],
                    env=hosts.driver_environment(one, token),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                    timeout=1300,
                )
            seen = subprocess.run(
                [*two.within(), "find", str(copies), "-name", "*.arrow"], capture_output=True, text=True, check=True
            )
        finally:
            server.kill()
            server.wait()
    assert done.returncode == 0, done.stdout + "".join(path.read_text() for path in short.glob("ray-*.txt"))
    assert hosts.spread_in(done.stdout.splitlines()), done.stdout
    assert "/run/data/train-00000.arrow" in seen.stdout, "the second host read token shards of its own"
    assert re.search(r"interrupted\n(.*\n)*resumed from step [12]\n", done.stdout), done.stdout

    train(config(toy, tmp_path / "alone", {"train.num_workers": 2}))
    assert (tmp_path / "trained.safetensors").read_bytes() == weights(tmp_path / "alone/model")
