"""A server for the tests of this folder, and a bucket of its own for each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from raydpo.artifacts.mirror_path import ROOT_VARIABLE
from raydpo.artifacts.placeholder import store_at
from tests.storage.server import Server

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def bucket(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty bucket, with the environment that leads there and a folder for working copies."""
    for name, value in environment(server.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{next(_NUMBERS)}"
    server.add_bucket(name)
    store_at.cache_clear()
    return f"s3://{name}"


def environment(endpoint: str, copies: Path) -> dict[str, str]:
    """What a process needs to reach the server at `endpoint`."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test-access",
        "AWS_SECRET_ACCESS_KEY": "test-secret-value",
        ROOT_VARIABLE: str(copies),
    }
