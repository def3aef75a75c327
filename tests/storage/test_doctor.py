"""`raydpo doctor` on an object store: what it can do is tried, and a store without conditional puts fails."""

from __future__ import annotations

import pytest

from raydpo.artifacts import local_path
from raydpo.artifacts.object_store import ObjectStore
from raydpo.doctor import examine_all, store_abilities


def test_a_store_that_can_do_everything_is_fine_and_left_empty(bucket: str) -> None:
    found = {finding.name: finding for finding in store_abilities.check("run.dir", f"{bucket}/run")}
    assert {name.removeprefix("run.dir ") for name in found} == {
        *("put", "conditional put", "ranges", "copy", "listing", "delete")
    }
    assert {finding.level for finding in found.values()} == {"ok"}
    assert list(ObjectStore(f"{bucket}/run").listed()) == []


def test_one_that_ignores_conditions_fails(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def replacing(self: ObjectStore, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True

    monkeypatch.setattr(ObjectStore, "put_if_absent", replacing)
    found = {finding.name: finding for finding in store_abilities.check("run.dir", f"{bucket}/run")}
    assert found["run.dir conditional put"].level == "fail"
    assert "two drivers of one run could not be kept apart" in found["run.dir conditional put"].text


def test_all_checks_look_at_the_store_and_at_the_disk_of_its_working_copy(bucket: str) -> None:
    findings = examine_all({"run.dir": local_path(f"{bucket}-of-nobody/run")})
    (store,) = [finding for finding in findings if finding.name == "run.dir put"]
    assert store.level == "fail"
    assert any(finding.name == "run.dir rename" and finding.level == "ok" for finding in findings)
