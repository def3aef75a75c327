"""Ranks that score the reference under ZeRO-3 with unequal work: they stay in step, and values are those of one process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from raydpo.artifacts import ReferenceCache
from raydpo.driver.trainer_scoring import RowsFirst
from raydpo.models.layout import choose_layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.pretrained import load_model
from raydpo.reference.forward import cut, score_rows
from raydpo.reference.plan import plan_shards, wanted_rows
from raydpo.reference.shard_rows import ShardRows
from raydpo.schema.rank_events import RowsScored
from tests.train.world import NUM_EVAL, NUM_TRAIN

CHUNK_TOKENS, ROWS_PER_SHARD, TOKENS_PER_BATCH = 60, 32, 400


@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_with_unequal_batches_and_calls_of_the_head_write_what_one_process_gives(world, runs, tmp_path, stage):
    identity = world.scorer_spec(tmp_path).identity
    first = RowsFirst(world.data, ("train", "eval"), 2, tmp_path, identity, ROWS_PER_SHARD, TOKENS_PER_BATCH)
    works = list(
        plan_shards(wanted_rows(world.data, first.splits, 2), ReferenceCache(tmp_path, identity).open(), ROWS_PER_SHARD)
    )
    spec = replace(
        runs.spec(zero_stage=stage, max_steps=1), reference=(tmp_path, identity), first=first, chunk_tokens=CHUNK_TOKENS
    )
    run = runs.fresh(spec, num_ranks=2)
    assert run.error == ""

    model = load_model(world.reference, "float32", "auto")
    layout, _ = choose_layout(model, "auto")
    rows, cache, num_batches, head_calls = ShardRows(world.data), ReferenceCache(tmp_path, identity).open(), [], []
    for work in works:
        each = rows.of(work, TOKENS_PER_BATCH)
        expected, forwards = score_rows(AnswerLogProbs(model, CHUNK_TOKENS), each.rows, TOKENS_PER_BATCH, layout, "cpu")
        for one, two in zip(cache.lookup(list(work.keys)), expected, strict=True):
            assert np.array_equal(one, two)
        num_batches.append(forwards)
        cuts = cut(each.rows, TOKENS_PER_BATCH, layout)
        head_calls.append([-(-sum(len(answer) for _, answer in each.rows[a:b]) // CHUNK_TOKENS) for a, b in cuts])
    pairs = list(zip(head_calls[::2], head_calls[1::2], strict=False))
    assert len(works) % 2 == 1, "in the last turn a rank has no shard"
    assert any(len(one) != len(two) for one, two in pairs), "ranks have unequal numbers of batches"
    assert any(a != b for one, two in pairs for a, b in zip(one, two, strict=False)), "and of calls of the head"

    scored = run.of(RowsScored)
    assert sum(event.rows for event in scored) == 2 * (NUM_TRAIN + NUM_EVAL)
    assert sum(event.forwards for event in scored) == sum(num_batches)
    assert [event.is_last for event in scored] == [False] * (len(scored) - 1) + [True]
    assert run.probed.max_difference_nats < 1e-4
    assert abs(run.losses[0] - float(torch.tensor(2.0).log())) < 1e-4, "the policy starts as what was scored"
