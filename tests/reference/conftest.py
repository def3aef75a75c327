"""The small world of the training tests: two models, token shards, a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.train.world import World, make_world


@pytest.fixture(scope="module", autouse=True)
def quiet_torch() -> Iterator[None]:
    """One thread, because tiny models lose much to threads on a busy machine, and their number decides the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def denormals() -> Iterator[None]:
    """Denormal numbers come back after what a worker process switches off for itself, because hypothesis draws them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))
