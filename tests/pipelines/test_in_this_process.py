"""Runs in one process, one after the other: each gives back what it took, the model and the open files."""

import gc
import os

import pytest
import torch

from raydpo.models.logprobs import AnswerLogProbs
from raydpo.pipelines import train
from raydpo.schema.events import Advanced
from tests.pipelines.toy import Toy, config

pytestmark = pytest.mark.slow


def num_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Groups:
    """Time-outs of the process groups that there are while a run trains, in seconds."""

    def __init__(self) -> None:
        self.found: set[float] = set()
        self.number = 0

    def __call__(self, event: object) -> None:
        if isinstance(event, Advanced) and event.stage == "train":
            groups = torch.distributed.distributed_c10d._world.pg_map
            backends = [group._get_backend(torch.device("cpu")) for group in groups]
            self.found |= {backend.options._timeout.total_seconds() for backend in backends}
            self.number = len(groups)


def test_process_groups_time_out_after_the_driver_has_spoken(toy: Toy, tmp_path):
    groups = Groups()
    train(config(toy, tmp_path / "run", {"train.max_steps": 1, "train.hang_timeout_s": 4000}), groups)
    assert groups.number == 2, "torch's, and one of DeepSpeed's own"
    assert groups.found == {2 * 4000 + 60}


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
