"""A cluster whose nodes come when they are asked for: Ray's autoscaler with its provider for tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.runtime.patience import NodePatience

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_nodes_are_asked_for_and_waited_for(tmp_path: Path) -> None:
    """In a process of its own: one that has used Ray without a token cannot join a cluster that has one."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipelines.autoscaling_story", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads((tmp_path / "notes.json").read_text())
    assert (said["nodes before"], said["nodes after"]) == (1, 3), said
    assert "train: 2 workers with 1 CPUs each were asked for" in said["refused"], (
        "without run.wait_for_nodes_s, as ever"
    )
    notes = "\n".join(said["notes"])
    assert "reference: 1 workers need room, and there is room for 0 now; others are asked for" in notes
    assert "reference: a worker takes part on" in notes
    assert re.search(r"train: ranks 2 on 2 nodes: 0 on \S+, 1 on \S+", notes), notes


def test_a_wait_says_what_it_waits_for_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = 1000.0, []
    monkeypatch.setattr("time.monotonic", lambda: now)
    waiting = NodePatience(100.0, said.append).for_nodes()
    for step in range(101):
        now = 1000.0 + step
        assert waiting.goes_on(lambda: "train: waiting"), step
    now = 1100.5
    assert not waiting.goes_on(lambda: "train: waiting")
    assert said == [f"train: waiting; {after} s of 100 s" for after in (10, 40, 70, 100)]


def test_places_are_waited_for_at_least_as_long_as_without_patience() -> None:
    assert NodePatience(5.0).for_places()._deadline_s == NodePatience().for_places()._deadline_s == 900.0
    assert NodePatience(2000.0).for_places()._deadline_s == 2000.0
