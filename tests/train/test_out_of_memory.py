"""Memory that a micro-batch did not get becomes an error that says what could be tried; any other error stays itself."""

import numpy as np
import pytest
import torch

from raydpo.artifacts import ExampleTable
from raydpo.batches import collate
from raydpo.errors import OutOfMemoryError
from raydpo.train.step import fitting
from tests.train import jobs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table(world):
    return ExampleTable.open(world.data, "train")


def micro_batch(table, examples):
    return collate(table, examples, range(2), lambda keys: [np.zeros(1)] * len(keys))


def more_than_there_is():
    return torch.empty(2**50, dtype=torch.uint8)


def test_of_several_examples_half_is_worth_a_try(table):
    batch = micro_batch(table, [0, 1, 2])
    with (
        pytest.raises(OutOfMemoryError, match=r"micro-batch of [\d,]+ tokens \(3 examples\) did not fit") as caught,
        fitting(batch),
    ):
        more_than_there_is()
    assert caught.value.smaller == batch.sequences.input_ids.numel() // 2
    assert "gradient_checkpointing" not in str(caught.value)


def test_one_example_cannot_be_split(table):
    with (
        pytest.raises(OutOfMemoryError, match=r"set train\.gradient_checkpointing: true") as caught,
        fitting(micro_batch(table, [0])),
    ):
        more_than_there_is()
    assert caught.value.smaller == 0


def test_what_a_gpu_raises_is_known(table):
    with pytest.raises(OutOfMemoryError, match="CUDA out of memory"), fitting(micro_batch(table, [0, 1])):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_an_optimizer_step_without_memory_is_told_the_same_way(runs, gangs):
    spec = runs.spec()
    spec.staging.mkdir(parents=True, exist_ok=True)
    ((error, smaller),) = gangs[1].run(jobs.train_without_memory_for_the_optimizer, spec)
    assert "did not fit into memory" in error
    assert smaller > 0


def test_another_error_stays_itself(table):
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught, fitting(micro_batch(table, [0, 1])):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert type(caught.value) is RuntimeError
