"""What a rank moves, reads and computes until its optimizer is made."""

from __future__ import annotations

import pytest

from tests.train import start_jobs

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_under_zero_3_no_rank_moves_more_than_one_tensor(runs, gangs, dtype):
    for moves in gangs[2].run(start_jobs.count_moves, runs.spec(zero_stage=3, dtype=dtype)):
        assert moves.whole == 0
        assert (
            moves.alone <= max(moves.largest, -(-moves.weights // 2)) < moves.weights
        )  # a tensor, or a rank's own part


def test_the_count_sees_a_model_that_is_moved_whole(runs, gangs):
    for moves in gangs[2].run(start_jobs.count_moves, runs.spec(zero_stage=2)):
        assert moves.whole >= moves.weights
