"""Runs in one process, one after the other: each gives back what it took, the model and the open files."""

import gc
import os

import pytest

from raydpo.models.logprobs import AnswerLogProbs
from raydpo.pipelines import train
from tests.pipelines.toy import Toy, config


def num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_run_gives_back_its_model_and_its_files(toy: Toy, tmp_path, stage):
    """Of two runs, the first may import and cache."""
    files = []
    for number in range(2):
        train(config(toy, tmp_path / str(number), {"train.zero_stage": stage, "train.epochs": 1}))
        gc.collect()
        files.append(num_files())
        assert not [found for found in gc.get_objects() if isinstance(found, AnswerLogProbs)]
    assert files[1] <= files[0]
