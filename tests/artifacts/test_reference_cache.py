"""The reference cache: what is written is found, by key, and several processes may write at once."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydpo.artifacts import ReferenceCache, open_reference, write_json
from raydpo.errors import IntegrityError, UserError
from raydpo.schema.rows import LOGPROBS
from tests.artifacts.golden import IDENTITY, SHARDS, Rows, all_rows, assert_holds, rows_of, write

ROOT = Path(__file__).parents[2]


def test_what_was_written_is_there(tmp_path: Path) -> None:
    cache = write(tmp_path).open()
    assert_holds(cache, all_rows())
    assert cache.table().schema.equals(LOGPROBS)
    assert json.loads((cache.folder / "identity.json").read_text()) == dataclasses.asdict(IDENTITY)


def test_an_empty_cache_misses_everything(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, IDENTITY).open()
    assert cache.missing(["b", "a", "b"]) == ["b", "a"]
    assert cache.missing([]) == []
    assert cache.lookup([]) == []
    assert cache.table().num_rows == 0
    assert not cache.folder.exists(), "looking must not make a cache"


def test_missing_keeps_order_and_names_each_key_once(tmp_path: Path) -> None:
    cache = write(tmp_path, "first").open()
    there = [*rows_of("first")]
    below, above = "0" * 32, "f" * 32
    assert cache.missing([above, there[2], below, above, there[0], below]) == [above, below]


def test_lookup_of_duplicates_in_any_order(tmp_path: Path) -> None:
    cache, rows = write(tmp_path).open(), all_rows()
    keys = [*reversed(rows), *rows, next(iter(rows))]
    for key, nats in zip(keys, cache.lookup(keys), strict=True):
        np.testing.assert_array_equal(nats, rows[key])


def test_lookup_says_how_many_are_missing_and_the_first(tmp_path: Path) -> None:
    cache = write(tmp_path, "first").open()
    absent = [*rows_of("second")]
    with pytest.raises(IntegrityError, match=rf"7 of 8 rows .*{absent[0]}.*precompute"):
        cache.lookup([*rows_of("first")][:1] + absent)


def test_a_row_in_two_shards_counts_once(tmp_path: Path) -> None:
    cache, rows = write(tmp_path, "first"), rows_of("first")
    cache.write_shard("overlap", [*rows][2:4], [*rows.values()][2:4])
    assert_holds(cache.open(), rows)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(IDENTITY)])
def test_every_field_of_the_identity_makes_another_cache(tmp_path: Path, field: str) -> None:
    other = dataclasses.replace(IDENTITY, **{field: "another"})
    assert len(other.digest) == 32
    assert other.digest != IDENTITY.digest
    write(tmp_path)
    assert len(ReferenceCache(tmp_path, other).open().missing([*all_rows()])) == len(all_rows())


def test_a_shard_without_rows(tmp_path: Path) -> None:
    cache = write(tmp_path, "first")
    cache.write_shard("nothing", [], [])
    assert cache.open().damaged == []
    assert_holds(cache, rows_of("first"))


def finish(*writers: subprocess.Popen[str]) -> None:
    assert [writer.wait(timeout=300) for writer in writers] == [0] * len(writers)


def start(cache_dir: Path, rounds: int, *shifts_nats: float) -> list[subprocess.Popen[str]]:
    """A writer a shift, let go together once all are ready."""
    command = [sys.executable, "-m", "tests.artifacts.shard_writer", str(cache_dir), str(rounds)]
    writers = [
        subprocess.Popen([*command, str(shift)], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for shift in shifts_nats
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    return writers


def test_two_processes_write_the_same_shards_at_once(tmp_path: Path) -> None:
    writers = start(tmp_path, 10, 0.0, 0.0)
    golden, looked = all_rows(), 0
    while looked == 0 or any(writer.poll() is None for writer in writers):
        cache = ReferenceCache(tmp_path, IDENTITY).open()
        assert cache.damaged == []
        missing = set(cache.missing([*golden]))
        assert_holds(cache, {key: nats for key, nats in golden.items() if key not in missing})
        looked += 1
    finish(*writers)
    assert_holds(ReferenceCache(tmp_path, IDENTITY).open(), golden)


def test_two_processes_write_the_same_shards_with_values_that_differ_a_little(tmp_path: Path) -> None:
    writers = start(tmp_path, 10, 0.0, 0.25)
    while any(writer.poll() is None for writer in writers):
        cache = ReferenceCache(tmp_path, IDENTITY).open()
        assert cache.damaged == [], "nothing is damaged; two writers had different values"
    finish(*writers)
    cache = ReferenceCache(tmp_path, IDENTITY).open()
    assert cache.damaged == []
    for shard in SHARDS:
        rows = rows_of(shard)
        found: Rows = dict(zip(rows, cache.lookup([*rows]), strict=True))
        shift = rows[[*rows][1]][0] - found[[*rows][1]][0]
        for key, nats in rows.items():
            np.testing.assert_array_equal(found[key], nats - np.float32(round(float(shift), 2)))


def as_rows(table: pa.Table) -> Rows:
    assert table.schema.equals(LOGPROBS)
    pairs = zip(table["row_key"].to_pylist(), table["token_nats"].to_pylist(), strict=True)
    return {key: np.array(nats, np.float32) for key, nats in pairs}


@pytest.mark.parametrize("kind", ["cache folder", "run directory", "cache directory"])
def test_open_reference_takes_three_kinds_of_path(tmp_path: Path, kind: str) -> None:
    cache = write(tmp_path / "caches")
    write_json(tmp_path / "run" / "reference.json", {"cache": str(cache.folder)})
    paths = {"cache folder": cache.folder, "run directory": tmp_path / "run", "cache directory": tmp_path / "caches"}
    table = open_reference(str(paths[kind]))
    assert table.num_rows == len(all_rows())
    for key, nats in as_rows(table).items():
        np.testing.assert_array_equal(nats, all_rows()[key])


def test_open_reference_finds_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "caches", "first")
    assert open_reference("~/caches").num_rows == len(rows_of("first"))


def test_open_reference_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no cache; a cache folder .* is allowed"):
        open_reference(tmp_path)
    with pytest.raises(UserError, match="no cache"):
        open_reference(tmp_path / "not-there")
    digests = [write(tmp_path, "first", identity=dataclasses.replace(IDENTITY, dtype=d)).folder.name for d in "ab"]
    with pytest.raises(UserError, match=f"2 caches: {', '.join(sorted(digests))}"):
        open_reference(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"cach": 1}', '{"cache": 3}', '{"cache": "/not/there"}'])
def test_open_reference_of_a_run_whose_pointer_leads_nowhere(tmp_path: Path, text: str) -> None:
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(UserError, match=r"reference\.json"):
        open_reference(tmp_path)


def test_opening_counts_as_use(tmp_path: Path) -> None:
    cache = write(tmp_path, "first")
    os.utime(cache.folder / "identity.json", (1, 1))
    cache.open()
    assert (cache.folder / "identity.json").stat().st_mtime > 1e9
