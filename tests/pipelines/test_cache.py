"""What makes the reference workers run: new rows, another reference, a damaged shard. Nothing else does."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from raydpo.models import attention, varlen
from raydpo.models.logprobs import AnswerLogProbs, SequenceBatch
from raydpo.pipelines import precompute
from tests.pipelines.toy import (
    NUM_ROWS,
    NUM_TRAIN,
    Notes,
    Toy,
    committed_shards,
    config,
    flip_byte,
    make_pair,
    nats_by_row,
    read_pairs,
    write_model,
    write_pairs,
)

Summary = dict[str, Any]
COUNTS = ("rows", "rows_scored", "forwards")


def counts(summary: Summary) -> list[int]:
    return [summary["reference"][name] for name in COUNTS]


def test_a_first_run_scores_every_row(toy: Toy, scored: Summary) -> None:
    assert counts(scored)[:2] == [NUM_ROWS, NUM_ROWS]
    assert scored["reference"]["forwards"] >= NUM_ROWS / 16
    assert len(nats_by_row(toy.cache)) == NUM_ROWS
    assert nats_by_row(toy.root / "scored") == nats_by_row(toy.cache)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="another run directory"),
        pytest.param({"train.learning_rate": 0.5, "train.epochs": 3}, id="learning rate and epochs"),
        pytest.param({"objective.beta": 0.7}, id="beta"),
        pytest.param({"objective.label_smoothing": 0.3}, id="label smoothing"),
        pytest.param({"run.seed": 9, "train.global_batch_pairs": 3}, id="order of the data"),
        pytest.param({"reference.num_workers": 3, "train.num_workers": 2}, id="number of workers"),
        pytest.param({"reference.rows_per_shard": 3, "reference.tokens_per_batch": 50}, id="cuts of the work"),
        pytest.param({"train.zero_stage": 3, "train.lora": {"rank": 2}}, id="how it is trained"),
        pytest.param({"data.eval": [], "data.eval_fraction": 0.3}, id="another split"),
    ],
)
def test_nothing_is_scored_twice(toy: Toy, scored: Summary, tmp_path: Path, changes: dict[str, Any]) -> None:
    rows, rows_scored, forwards = counts(precompute(config(toy, tmp_path / "run", changes)))
    assert (rows_scored, forwards) == (0, 0)
    assert rows == (2 * NUM_TRAIN if "data.eval" in changes else NUM_ROWS)


def test_a_worker_without_memory_for_a_batch_goes_on_and_says_so_once(
    toy: Toy, scored: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is in this process; batches of more than two rows ask for memory that no machine has."""
    plain = AnswerLogProbs.forward

    def forward(self: AnswerLogProbs, batch: SequenceBatch, *extra: Any) -> Any:
        if batch.num_sequences > 2:
            torch.empty(2**50, dtype=torch.uint8)
        return plain(self, batch, *extra)

    monkeypatch.setattr(AnswerLogProbs, "forward", forward)
    notes = Notes()
    cuts = {"reference.cache_dir": str(tmp_path / "cache"), "reference.rows_per_shard": 16}
    summary = precompute(config(toy, tmp_path / "run", cuts), notes)
    (text,) = [text for text in notes.warning if "did not fit into memory" in text]
    assert "reference.tokens_per_batch (now" in text
    assert counts(summary)[:2] == [NUM_ROWS, NUM_ROWS]
    assert summary["reference"]["forwards"] >= NUM_ROWS / 2
    ours, theirs = nats_by_row(tmp_path / "cache"), nats_by_row(toy.cache)
    assert ours.keys() == theirs.keys()
    for row, nats in ours.items():
        assert nats == pytest.approx(theirs[row], abs=2e-5)


def test_a_second_run_in_the_same_directory_scores_nothing(toy: Toy, scored: Summary) -> None:
    assert counts(precompute(config(toy, toy.root / "scored"))) == [NUM_ROWS, 0, 0]


def test_a_shuffled_subset_scores_nothing(toy: Toy, scored: Summary, tmp_path: Path) -> None:
    pairs = read_pairs(toy.train)
    random.Random(0).shuffle(pairs)
    few = write_pairs(tmp_path / "few.jsonl", pairs[:20])
    changes = {"data.train": [str(few)], "data.eval": []}
    assert counts(precompute(config(toy, tmp_path / "run", changes))) == [40, 0, 0]


def test_an_added_pair_scores_its_own_rows(toy: Toy, scored: Summary, tmp_path: Path) -> None:
    cache = shutil.copytree(toy.cache, tmp_path / "cache")
    known = read_pairs(toy.train)
    new = make_pair(random.Random(1), 1000)
    half_new = {**known[3], "rejected": " something else"}
    more = write_pairs(tmp_path / "more.jsonl", [new, *known, half_new])
    changes = {"data.train": [str(more)], "reference.cache_dir": str(cache)}
    rows, rows_scored, forwards = counts(precompute(config(toy, tmp_path / "run", changes)))
    assert (rows, rows_scored) == (NUM_ROWS + 3, 3)
    assert 1 <= forwards <= 3
    assert nats_by_row(toy.cache).items() <= nats_by_row(cache).items()


def test_other_weights_in_the_same_folder_are_another_cache(toy: Toy, scored: Summary, tmp_path: Path) -> None:
    cache = shutil.copytree(toy.cache, tmp_path / "cache")
    model = shutil.copytree(toy.model, tmp_path / "model")
    changes = {"model.path": str(model), "reference.cache_dir": str(cache)}
    same = precompute(config(toy, tmp_path / "run", changes))
    assert counts(same) == [NUM_ROWS, 0, 0], "the same weights elsewhere are the same reference"
    shutil.rmtree(model)
    write_model(model, seed=7)
    other = precompute(config(toy, tmp_path / "run", changes))
    assert counts(other)[:2] == [NUM_ROWS, NUM_ROWS]
    first, second = Path(same["reference"]["cache"]), Path(other["reference"]["cache"])
    assert first.parent == second.parent == cache
    assert nats_by_row(first) == nats_by_row(toy.cache)
    assert nats_by_row(second).keys() == nats_by_row(first).keys()
    assert all(nats_by_row(second)[key] != nats_by_row(first)[key] for key in nats_by_row(first))


def test_a_flipped_byte_costs_its_shard_and_nothing_else(toy: Toy, scored: Summary, tmp_path: Path) -> None:
    cache = shutil.copytree(toy.cache, tmp_path / "cache")
    before = {path: path.read_bytes() for path in committed_shards(cache)}
    damaged = sorted(cache.glob("*/shards/*.arrow"))[2]
    flip_byte(damaged)
    notes = Notes()
    summary = precompute(config(toy, tmp_path / "run", {"reference.cache_dir": str(cache)}), notes)
    assert counts(summary)[:2] == [NUM_ROWS, 16]
    assert [str(damaged) in text for text in notes.warning] == [True]
    assert summary["reference"]["damaged_shards"] == notes.warning
    assert nats_by_row(cache) == nats_by_row(toy.cache)
    assert {path: path.read_bytes() for path in committed_shards(cache)} == before, "the same shards, byte for byte"
    assert counts(precompute(config(toy, tmp_path / "run", {"reference.cache_dir": str(cache)}))) == [NUM_ROWS, 0, 0]


def test_workers_say_what_their_attention_falls_back_to(
    toy: Toy, machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: a kernel is looked for, and none serves this device. Once, however many shards there are."""

    def looked_for(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> varlen.Kernel | None:
        heads = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        return varlen.kernel_for(query.device, query.dtype, heads, attention.segment_by_segment, False)

    monkeypatch.setattr(varlen, "_unserved", [])
    monkeypatch.setattr(attention, "_kernel", looked_for)
    varlen.kernel_for.cache_clear()
    notes = Notes()
    with pytest.warns(UserWarning, match="segment by segment"):
        summary = precompute(config(toy, tmp_path / "run", {"reference.cache_dir": str(tmp_path / "cache")}), notes)
    varlen.kernel_for.cache_clear()
    assert len(committed_shards(tmp_path / "cache")) > 1
    (said,) = [text for text in notes.info if "segment by segment" in text]
    assert said.startswith("reference: attention runs segment by segment, no varlen kernel serves cpu: ")
    assert summary["reference"]["rows_scored"] == NUM_ROWS
