"""A whole run of a streamed reference: the cache of a whole one, told by what was read, in groups of shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.driver import shared_scoring
from raydpo.errors import ConfigError
from raydpo.pipelines import precompute
from tests.pipelines.toy import NUM_ROWS, Notes, Toy, config, nats_by_row

STREAMED = {"reference.weights": "streamed", "reference.stream_tokens": 2000, "reference.tokens_per_batch": 300}


def test_a_streamed_run_fills_the_cache_that_a_whole_one_fills(toy: Toy, tmp_path: Path) -> None:
    whole = precompute(
        config(
            toy,
            tmp_path / "a",
            {**STREAMED, "reference.weights": "whole", "reference.cache_dir": str(tmp_path / "whole")},
        )
    )
    streamed = precompute(config(toy, tmp_path / "b", {**STREAMED, "reference.cache_dir": str(tmp_path / "streamed")}))
    assert nats_by_row(tmp_path / "whole") == nats_by_row(tmp_path / "streamed")
    assert len(nats_by_row(tmp_path / "streamed")) == NUM_ROWS
    shards = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*/shards/*.arrow")}
        for name in ("whole", "streamed")
    ]
    assert len(shards[0]) == -(-NUM_ROWS // 16)
    assert shards[0] == shards[1]
    assert streamed["reference"]["forwards"] == whole["reference"]["forwards"]
    assert "passes" not in whole["reference"]
    assert streamed["reference"]["passes"] < streamed["reference"]["forwards"]
    assert streamed["reference"]["weight_bytes"] > 0
    again = precompute(config(toy, tmp_path / "c", {"reference.cache_dir": str(tmp_path / "streamed")}))
    assert again["reference"]["rows_scored"] == 0


def test_a_worker_that_streams_for_want_of_memory_says_so(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raydpo.reference.way.free_bytes", lambda device: 1000)
    notes = Notes()
    found = precompute(config(toy, tmp_path / "run", {"reference.cache_dir": str(tmp_path / "cache")}), notes)
    assert found["reference"]["passes"] > 0
    said = [text for text in notes.info if "it is streamed, each layer is read" in text]
    assert len(said) == 1
    assert said[0].startswith("reference: its weights take 0.0 GB in float32")


@pytest.mark.parametrize(
    ("num_shards", "num_workers", "stream_tokens", "size"),
    [(10, 1, 100, 4), (10, 1, 10**6, 10), (10, 4, 10**6, 3), (10, 1, 1, 1), (1, 4, 10**6, 1)],
)
def test_groups_hold_several_passes_and_leave_work_for_all(
    num_shards: int, num_workers: int, stream_tokens: int, size: int
) -> None:
    assert shared_scoring.shards_at_once(num_shards, 100, num_workers, stream_tokens) == size
    groups = shared_scoring.Groups(list(range(num_shards)), size)  # type: ignore[arg-type]
    assert [work for group in groups for work in group] == list(range(num_shards))
    assert all(len(group) == size for group in groups[:-1])


def test_more_than_one_gpu_a_worker_is_refused_with_what_to_do(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gpus_per_worker is 4; at most 1 .* streamed through it layer by layer"):
        config(toy, tmp_path / "run", {"reference.gpus_per_worker": 4})
