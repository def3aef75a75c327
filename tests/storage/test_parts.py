"""A preparation on machines that share a store: one goes on from the parts of another; one that only looks leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.artifacts import Lease, local_path, remote_run
from raydpo.artifacts.mirror_path import ROOT_VARIABLE
from raydpo.artifacts.object_store import ObjectStore
from raydpo.data import prepare, row_ranges
from raydpo.data.parts import PREFIX
from raydpo.driver.data_stage import data_stage
from raydpo.errors import ConfigError
from raydpo.rundir.workspace import open_workspace
from raydpo.schema.events import Advanced, Event, Note, ignore
from tests.pipelines.toy import NUM_EVAL, make_toy
from tests.storage.runs import remote_config

ROWS = 8
"""Of a part: 60 rows are 8 parts, 16 are 2."""


class Killed(BaseException):
    """The end of a machine."""


class Watch:
    """Ends the machine after `most` parts; keeps the notes and how often it was told of a part."""

    def __init__(self, most: int = 1000) -> None:
        self._most, self.notes, self.parts = most, list[str](), 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)
        if isinstance(event, Advanced) and event.stage == "data":
            self.parts += 1
            if self.parts == self._most:
                raise Killed


def parts_in(url: str) -> list[str]:
    return sorted(key for key, _, _ in ObjectStore(url).listed("data") if f"/{PREFIX}" in key)


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "one part damaged"])
def test_another_machine_takes_up_the_parts(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: bool
) -> None:
    monkeypatch.setattr(row_ranges, "PART_ROWS", ROWS)
    monkeypatch.setattr(row_ranges, "SMALL_BYTES", 1)
    monkeypatch.setattr(remote_run, "_SOON_S", 0.0)
    url, toy = f"{bucket}/run", make_toy(tmp_path)
    config = remote_config(toy, url)
    prepare(config, str(toy.model), tmp_path / "calm" / "data", observer=ignore)

    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "one"))
    with pytest.raises(Killed), Lease(local_path(url)):
        prepare(config, str(toy.model), local_path(url) / "data", observer=Watch(4))
    assert len(parts_in(url)) == 8, "four parts and what was counted for each"
    if damaged:
        store, (key,) = ObjectStore(url), [key for key in parts_in(url) if "/0-1.arrow" in key]
        store.put(key, b"other bytes")

    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "two"))
    watch = Watch()
    with Lease(local_path(url)):
        prepare(config, str(toy.model), local_path(url) / "data", observer=watch)
    assert watch.parts == (7 if damaged else 6)
    assert f"data: {24 if damaged else 32} lines were encoded by an earlier attempt" in watch.notes
    assert parts_in(url) == [], "they go when they are of no use"
    for path in (tmp_path / "calm" / "data").iterdir():
        assert (local_path(url) / "data" / path.name).read_bytes() == path.read_bytes()


def test_data_of_who_only_looks_are_for_its_own_machine(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, toy = f"{bucket}/run", make_toy(tmp_path)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "trains"))
    with Lease(local_path(url)):
        monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "looks"))
        with (
            pytest.raises(ConfigError, match="these are not the data that it prepared"),
            open_workspace(remote_config(toy, url, {"run.runtime": "ray"}), "evaluate") as workspace,
        ):
            data_stage(workspace, ignore)
        with open_workspace(remote_config(toy, url), "evaluate") as workspace:
            assert data_stage(workspace, ignore).eval_pairs == NUM_EVAL
    assert not list(ObjectStore(url).listed("data"))
