"""Looking after a cache directory: a list that is right, a check that changes nothing, a collection that is careful."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

import pytest

from raydpo.artifacts import ReferenceCache, collect_garbage, list_caches, verify_caches
from raydpo.artifacts.durable import TEMPORARY
from tests.artifacts.golden import IDENTITY, all_rows, assert_holds, rows_of, shard_file, write

OTHER = dataclasses.replace(IDENTITY, dtype="bfloat16")
DAY_S = 86400.0


def age(folder: Path, days: float) -> None:
    """Make everything under `folder` look as old as that."""
    then = time.time() - days * DAY_S
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then), follow_symlinks=False)


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_list_counts_rows_tokens_and_bytes_newest_first(tmp_path: Path) -> None:
    old, new = write(tmp_path, identity=OTHER), write(tmp_path, "second")
    age(old.folder, 3)
    first, second = list_caches(tmp_path)
    assert (first.folder, second.folder) == (new.folder, old.folder)
    assert (first.digest, first.shards, first.rows) == (IDENTITY.digest, 1, len(rows_of("second")))
    assert (second.shards, second.rows) == (3, len(all_rows()))
    assert second.tokens == sum(map(len, all_rows().values()))
    assert second.bytes == sum(path.stat().st_size for path in old.folder.rglob("*") if path.is_file())
    assert second.identity == dataclasses.asdict(OTHER)
    assert second.last_used == pytest.approx(time.time() - 3 * DAY_S, abs=3600)


def test_nothing_there(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "not-there"):
        assert list_caches(place) == []
        assert verify_caches(place) == (0, [])
        assert collect_garbage(place, older_than_days=0) == []


def test_verify_counts_shards_and_names_each_problem(tmp_path: Path) -> None:
    write(tmp_path)
    cache = write(tmp_path, identity=OTHER)
    assert verify_caches(tmp_path) == (6, [])
    hurt = shard_file(cache, "third")
    hurt.write_bytes(hurt.read_bytes()[:-3])
    before = everything(tmp_path)
    checked, (problem,) = verify_caches(tmp_path)
    assert checked == 6
    assert str(hurt) in problem
    assert everything(tmp_path) == before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weights": "other"}', "\xff"])
def test_a_damaged_identity_is_a_problem_and_ends_nothing(tmp_path: Path, text: str) -> None:
    cache = write(tmp_path, "first")
    (cache.folder / "identity.json").write_bytes(text.encode("latin-1"))
    checked, (problem,) = verify_caches(tmp_path)
    assert checked == 1
    assert "identity.json" in problem
    (info,) = list_caches(tmp_path)
    assert (info.rows, info.identity) == (len(rows_of("first")), {})
    assert collect_garbage(tmp_path) == []


def test_an_identity_of_another_cache_is_a_problem(tmp_path: Path) -> None:
    cache, other = write(tmp_path, "first"), write(tmp_path, "first", identity=OTHER)
    shutil.copy(other.folder / "identity.json", cache.folder / "identity.json")
    _, problems = verify_caches(tmp_path)
    assert [str(cache.folder / "identity.json") in problem for problem in problems] == [True]


def litter(cache: ReferenceCache) -> set[Path]:
    """What killed runs and a damaged shard leave in a cache."""
    shards = cache.folder / "shards"
    (cache.folder / "damaged").mkdir()
    left = {
        shards / f"{TEMPORARY}0123456789ab-first.arrow",
        cache.folder / f"{TEMPORARY}0123456789ab-identity.json",
        shards / "orphan-0123456789ab.arrow",
        cache.folder / "damaged" / "aaaaaa-first.arrow",
    }
    for path in left:
        path.write_bytes(b"left")
    return left


def test_collection_takes_litter_and_nothing_else(tmp_path: Path) -> None:
    cache = write(tmp_path)
    whole = everything(tmp_path)
    left = litter(cache)
    age(tmp_path, 2)
    assert {removal.path for removal in collect_garbage(tmp_path, dry_run=True)} == left
    assert all(path.exists() for path in left), "a dry run removes nothing"
    removals = collect_garbage(tmp_path)
    assert {removal.path for removal in removals} == left
    assert sum(removal.bytes for removal in removals) == 4 * len(left)
    assert everything(tmp_path) == whole | {cache.folder / "damaged"}
    assert collect_garbage(tmp_path) == []
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), all_rows())


def test_files_that_a_live_run_may_be_writing_stay(tmp_path: Path) -> None:
    left = litter(write(tmp_path))
    taken = {removal.path for removal in collect_garbage(tmp_path)}
    assert taken == {path for path in left if path.parent.name == "damaged"}


def test_a_file_that_vanishes_while_we_look_ends_nothing(tmp_path: Path) -> None:
    cache = write(tmp_path)
    for folder in (cache.folder / "shards", cache.folder):
        (folder / f"{TEMPORARY}0123456789ab-gone").symlink_to(tmp_path / "not-there")
    assert collect_garbage(tmp_path) == []
    assert [info.rows for info in list_caches(tmp_path)] == [len(all_rows())]


def test_caches_go_by_age_unless_kept(tmp_path: Path) -> None:
    old, new = write(tmp_path, identity=OTHER), write(tmp_path)
    age(old.folder, 30)
    assert collect_garbage(tmp_path) == []
    assert collect_garbage(tmp_path, older_than_days=31) == []
    assert collect_garbage(tmp_path, older_than_days=29, keep=[OTHER.digest]) == []
    assert [removal.path for removal in collect_garbage(tmp_path, older_than_days=29, dry_run=True)] == [old.folder]
    assert_holds(ReferenceCache(tmp_path, OTHER).open(), all_rows())  # and opening it made it young again
    assert collect_garbage(tmp_path, older_than_days=29) == []
    age(old.folder, 30)
    (removal,) = collect_garbage(tmp_path, older_than_days=29)
    assert (removal.path, "30 days" in removal.reason) == (old.folder, True)
    assert {path.name for path in tmp_path.iterdir()} == {new.folder.name}


def test_a_cache_that_is_being_filled_is_in_use(tmp_path: Path) -> None:
    cache = write(tmp_path, "first")
    age(cache.folder, 30)
    write(tmp_path, "second")  # by a worker: nobody has opened it since
    assert collect_garbage(tmp_path, older_than_days=29) == []


def test_a_removal_that_was_killed_is_ended_by_the_next_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write(tmp_path)

    def killed(*unused: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            collect_garbage(tmp_path, older_than_days=0)
    assert not cache.folder.exists()
    assert list_caches(tmp_path) == []
    (half,) = tmp_path.iterdir()
    age(tmp_path, 2)
    assert [removal.path for removal in collect_garbage(tmp_path)] == [half]
    assert list(tmp_path.iterdir()) == []
