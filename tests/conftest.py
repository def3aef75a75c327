"""What every test may rely on."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# A machine that is busy with something else makes any example slow, and what is slow once is not slow again.
settings.register_profile("raydpo", deadline=None, print_blob=True)
settings.load_profile("raydpo")

# What one process of ours compiled, all others read: an environment without bytecode compiles everything in each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


def pytest_collection() -> None:
    """Modules of tests import nearly everything there is. None of that is garbage, so it is not looked through for any."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    """Workers switch denormals off for their process; in a test process they come back, because hypothesis draws them."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def ray_is_said(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that has a Ray in this process carries the marker, so that those without it stay quick."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        assert request.node.get_closest_marker("ray"), "there is a Ray here: mark the test with pytest.mark.ray"
