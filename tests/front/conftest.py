"""The tiny model and pairs of the pipelines' tests, and a session without Ray for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raydpo.runtime import session
from tests.pipelines.toy import Toy, make_toy


@pytest.fixture(scope="package")
def machine() -> Iterator[None]:
    with session(kind="local", local_cpus=4):
        yield


@pytest.fixture(scope="package")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))
