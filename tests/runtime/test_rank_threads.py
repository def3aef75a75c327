"""How many threads a rank has: what was asked for, or beside a GPU its share of the node."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import pytest
import torch

from raydpo.runtime.place import load_function, rank_threads


@pytest.fixture(autouse=True)
def same_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cpus", "gpus", "ranks", "threads"),
    [(1, 0, 4, 1), (3, 0, 4, 3), (1, 1, 4, 4), (0.5, 1, 2, 8), (2, 1, 4, 2), (1, 1, 40, 1)],
)
def test_a_rank_with_a_gpu_and_no_cpus_of_its_own_has_its_share(cpus, gpus, ranks, threads, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    variables = rank_threads(cpus, gpus) | {"LOCAL_WORLD_SIZE": str(ranks)}
    assert load_function(pickle.dumps(len), variables) is len
    assert os.environ["OMP_NUM_THREADS"] == str(threads)
    assert torch.get_num_threads() == threads
