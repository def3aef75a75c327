"""A driver killed before or after any request to the store loses nothing that counted, and another machine goes on."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.artifacts import CRASH_POINTS, Lease, ReferenceCache, local_path, newest_valid
from raydpo.artifacts.mirror_path import ROOT_VARIABLE
from raydpo.artifacts.object_store import ObjectStore
from tests.artifacts.golden import IDENTITY
from tests.storage.crash_work import FILES, KEYS, SUMMARY, place_of, work
from tests.storage.runs import log_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IN_STORES = sorted(point for point in CRASH_POINTS if point.startswith("object:"))


def run(folder: Path, url: str, *points: str) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.storage.crash_work", str(folder), url, *points]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    return {name: count for name, count in counts.items() if name.startswith("object:")}


def assert_whole(url: str) -> None:
    """What a machine that has nothing finds is what was committed, or not there."""
    entries = log_of(f"{url}/run")
    attempts = [entry["attempt"] for entry in entries]
    assert attempts == sorted(attempts)
    store = ObjectStore(f"{url}/run")
    for name, file in json.loads(store.get("model/FILES.json") or b'{"files": {}}')["files"].items():
        data = store.get(f"model/{name}") or b""
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    with Lease(local_path(f"{url}/run")):
        newest, skipped = newest_valid(local_path(f"{url}/run") / "checkpoints", "step-")
        assert skipped == []
        for name, data in FILES[int(newest.name[-1])].items() if newest else ():
            assert (newest / name).read_bytes() == data
    cache = ReferenceCache(local_path(f"{url}/cache"), IDENTITY).open()
    assert cache.damaged == []
    assert cache.missing(KEYS) in ([], KEYS, KEYS[2:])


def assert_done(url: str) -> None:
    store = ObjectStore(f"{url}/run")
    assert json.loads(store.get("summary.json") or b"") == SUMMARY
    assert store.get("model/weights") == FILES[2]["model/weights"]
    assert ReferenceCache(local_path(f"{url}/cache"), IDENTITY).open().missing(KEYS) == []


@pytest.mark.parametrize("goes_on", ["on the same machine", "on another machine"])
def test_every_request_is_a_point_where_nothing_is_lost(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, goes_on: str
) -> None:
    counted = run(tmp_path / "counted", f"{bucket}/counted")
    assert sorted(counted) == IN_STORES, "a crash point that this work does not reach is not tested"
    points = [f"{name}:{number}" for name, times in counted.items() for number in range(1, times + 1)]
    points = points[goes_on == "on another machine" :: 2]
    assert run(tmp_path / "killed", f"{bucket}/killed", *points) == dict.fromkeys(points, 137)
    for point in points:
        url, home = f"{bucket}/killed/{place_of(point)}", str(tmp_path / "killed" / place_of(point))
        monkeypatch.setenv(ROOT_VARIABLE, f"{home}-looked")
        assert_whole(url)
        monkeypatch.setenv(ROOT_VARIABLE, home if goes_on == "on the same machine" else f"{home}-other")
        work(url)
        assert_done(url)
