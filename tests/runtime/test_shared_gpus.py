"""Roles that take turns on GPUs sit on the same ones: on Ray with two GPUs declared on a machine that has none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from raydpo.runtime import Gang, Pool, RankContext, gpus_shared, session
from tests.runtime.declared import declared_ray

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def two_declared_gpus() -> Iterator[None]:
    with declared_ray(2), session():
        yield


class Sitting:
    """Says which device it sees, and in which process."""

    def __call__(self, _: Any) -> tuple[str, int]:
        return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()


def rank_device(context: RankContext) -> Iterator[str]:
    yield os.environ["CUDA_VISIBLE_DEVICES"]


def test_a_rank_and_a_worker_of_one_number_have_one_device_and_workers_stand(two_declared_gpus: None) -> None:
    """Each of the two roles asks for all GPUs that there are, in three rounds."""
    with gpus_shared(2):
        pool = Pool("generate", Sitting, num_workers=2, cpus=4, gpus=1)
        with closing(pool):
            rounds = []
            for _ in range(3):
                pool.start()
                workers = sorted(pool.tell("where"))
                ranks = Gang("train", num_ranks=2, cpus=4, gpus=1, hang_timeout_s=300)
                with closing(ranks):
                    devices = dict(ranks.run(rank_device))
                rounds.append((workers, devices))
    assert rounds[0] == rounds[1] == rounds[2], "the same processes on the same devices"
    workers, devices = rounds[0]
    assert sorted(devices.values()) == [device for device, _ in workers] == ["0", "1"]


def test_afterwards_each_has_its_own_again(two_declared_gpus: None) -> None:
    with gpus_shared(2):
        pass
    with closing(Pool("generate", partial(Sitting), num_workers=1, cpus=1, gpus=1)) as pool:
        pool.start()
        assert pool.tell("where")[0][0] in {"0", "1"}
        ((_, device),) = Gang("train", num_ranks=1, cpus=1, gpus=1, hang_timeout_s=300).run(rank_device)
        assert device != pool.tell("where")[0][0]
