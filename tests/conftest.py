"""What every test may rely on."""

import compileall
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import raydpo

# A machine that is busy with something else makes any example slow, and what is slow once is not slow again.
settings.register_profile("raydpo", deadline=None, print_blob=True)
settings.load_profile("raydpo")

PACKAGE = Path(raydpo.__file__).parent


def pytest_configure(config: pytest.Config) -> None:
    """Compile the package once: where the environment forbids to write bytecode, each process that a test starts would
    compile it anew. Modules that tests write are not touched, because some are edited within a second."""
    if not hasattr(config, "workerinput"):
        compileall.compile_dir(PACKAGE, quiet=2)


def pytest_collection() -> None:
    """Modules of tests import nearly everything there is. None of that is garbage, so it is not looked through for any."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Libraries that count what they made find all of it collected at the end."""
    gc.unfreeze()


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup() -> None:
    """A server that forks processes is of one environment, and pytest writes the name of the test and its phase into it:
    without this, no two tests would share a server."""
    os.environ["PYTEST_CURRENT_TEST"] = "one of raydpo's"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call() -> None:
    """As for fixtures."""
    os.environ["PYTEST_CURRENT_TEST"] = "one of raydpo's"


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
