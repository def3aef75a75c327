"""One local Ray a test module, with more CPUs declared than the machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raydpo.runtime import session


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    with session(local_cpus=8):
        yield
