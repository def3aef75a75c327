"""A damaged shard is found, named and set aside; the other shards stay."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.artifacts import ReferenceCache, open_reference, verify_caches
from raydpo.artifacts.arrow import write_shard
from raydpo.artifacts.digest import digest_of
from raydpo.errors import IntegrityError
from raydpo.schema.rows import LOGPROBS
from tests.artifacts.golden import IDENTITY, all_rows, assert_holds, rows_of, shard_file, write

HURT, WHOLE = "second", ("first", "third")


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def assert_only_hurt_is_lost(cache_dir: Path, named: Path) -> None:
    """`open` names the file, loses exactly the rows of its shard, and a second `open` has nothing to report."""
    cache = ReferenceCache(cache_dir, IDENTITY).open()
    assert len(cache.damaged) == 1
    assert named.name in cache.damaged[0]
    assert cache.missing([*all_rows()]) == [*rows_of(HURT)]
    assert_holds(cache, all_rows(*WHOLE))
    again = ReferenceCache(cache_dir, IDENTITY).open()
    assert again.damaged == []
    assert again.missing([*all_rows()]) == [*rows_of(HURT)]


def damaged_versions(cache_dir: Path, path: Path, versions: Iterator[bytes]) -> Iterator[int]:
    """Put each version in the place of `path`, with everything else as it was; yields its number."""
    folder = ReferenceCache(cache_dir, IDENTITY).folder
    whole = {file: file.read_bytes() for file in (folder / "shards").iterdir()}
    for number, version in enumerate(versions):
        assert version != whole[path]
        for file, data in whole.items():
            file.write_bytes(data)
        path.write_bytes(version)
        yield number
        shutil.rmtree(folder / "damaged", ignore_errors=True)


def flipped(data: bytes, places: list[tuple[int, int]]) -> Iterator[bytes]:
    for place, mask in places:
        yield data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


def test_each_of_200_flipped_bytes_is_found(cache_dir: Path) -> None:
    path = shard_file(write(cache_dir), HURT)
    data, rng = path.read_bytes(), random.Random(200)
    places = [(place, rng.randrange(1, 256)) for place in rng.sample(range(len(data)), 200)]
    found = 0
    for _ in damaged_versions(cache_dir, path, flipped(data, places)):
        assert_only_hurt_is_lost(cache_dir, path)
        found += 1
    assert found == 200


def test_a_shard_cut_or_grown_at_any_length_is_found(cache_dir: Path) -> None:
    path = shard_file(write(cache_dir), HURT)
    data = path.read_bytes()
    lengths = sorted({0, 1, 7, 8, len(data) - 8, len(data) - 1, *range(0, len(data), 61)})
    versions = [data[:length] for length in lengths] + [data + b"\0", data + data]
    for _ in damaged_versions(cache_dir, path, iter(versions)):
        assert_only_hurt_is_lost(cache_dir, path)


def test_a_record_with_any_byte_flipped_is_found_or_says_the_same(cache_dir: Path) -> None:
    path = write(cache_dir).folder / "shards" / f"{HURT}.json"
    data, rng = path.read_bytes(), random.Random(1)
    places = [(place, rng.randrange(1, 256)) for place in range(0, len(data), 2)]
    found = 0
    for _ in damaged_versions(cache_dir, path, flipped(data, places)):
        with suppress(ValueError):
            if json.loads(path.read_bytes()) == json.loads(data):
                continue  # white space became other white space
        assert_only_hurt_is_lost(cache_dir, path)
        found += 1
    assert found > 100


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", "3", '{"digest": "x"}', '{"name": "second.arrow"', "\xff"])
def test_a_record_of_another_kind_is_damage(cache_dir: Path, text: str) -> None:
    cache = write(cache_dir)
    (cache.folder / "shards" / f"{HURT}.json").write_bytes(text.encode("latin-1"))
    assert_only_hurt_is_lost(cache_dir, Path(HURT))


def test_a_shard_without_its_record_does_not_exist(cache_dir: Path) -> None:
    (write(cache_dir).folder / "shards" / f"{HURT}.json").unlink()
    cache = ReferenceCache(cache_dir, IDENTITY).open()
    assert cache.damaged == []
    assert cache.missing([*all_rows()]) == [*rows_of(HURT)]


def test_a_record_without_its_shard_is_damage(cache_dir: Path) -> None:
    path = shard_file(write(cache_dir), HURT)
    path.unlink()
    assert_only_hurt_is_lost(cache_dir, path)


def test_a_record_of_another_shard_is_damage(cache_dir: Path) -> None:
    shards = write(cache_dir).folder / "shards"
    shutil.copy(shards / "first.json", shards / f"{HURT}.json")
    assert_only_hurt_is_lost(cache_dir, Path(HURT))


def test_a_damaged_shard_is_kept_apart_and_scored_again(cache_dir: Path) -> None:
    path = shard_file(write(cache_dir), HURT)
    bad = path.read_bytes()[:-1]
    path.write_bytes(bad)
    cache = ReferenceCache(cache_dir, IDENTITY).open()
    (kept,) = (cache.folder / "damaged").glob("*.arrow")
    assert kept.read_bytes() == bad
    write(cache_dir, HURT)
    assert_holds(cache.open(), all_rows())


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf, 1e-6])
def test_a_value_that_is_no_log_probability_is_damage(cache_dir: Path, value: float) -> None:
    cache, rows = write(cache_dir), rows_of(HURT)
    spoilt = [nats.copy() for nats in rows.values()]
    spoilt[3][5] = value
    cache.write_shard(HURT, [*rows], spoilt)
    assert "not a log-probability" in cache.open().damaged[0]
    assert cache.missing([*all_rows()]) == [*rows]


def test_num_tokens_that_differ_from_the_values_are_damage(cache_dir: Path) -> None:
    cache = write(cache_dir, "first")
    table = pa.table({"row_key": ["k"], "token_nats": [[-1.0]], "num_tokens": [2]}, schema=LOGPROBS)
    record = vars(write_shard(cache.folder / "shards" / "odd.arrow", table, add_hash=True))
    (cache.folder / "shards" / "odd.json").write_text(json.dumps({**record, "digest": digest_of(record)}))
    assert "num_tokens" in cache.open().damaged[0]
    assert cache.missing(["k"]) == ["k"]


def test_reading_and_verifying_name_the_file_and_change_nothing(cache_dir: Path) -> None:
    cache = write(cache_dir)
    path = shard_file(cache, HURT)
    path.write_bytes(path.read_bytes()[::-1])
    before = sorted(cache.folder.rglob("*"))
    with pytest.raises(IntegrityError, match=path.name):
        open_reference(cache_dir)
    checked, problems = verify_caches(cache_dir)
    assert checked == 3
    assert [path.name in problem for problem in problems] == [True]
    assert sorted(cache.folder.rglob("*")) == before
