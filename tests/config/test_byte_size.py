"""Sizes of files as a person writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.config import Config
from raydpo.config.byte_size import size_in_bytes
from tests.config.test_load import MINIMAL, problems, write


@pytest.mark.parametrize(
    ("given", "size"),
    [(5, 5), ("5", 5), ("300MB", 3 * 10**8), ("5 gB", 5 * 10**9), ("2GiB", 2**31), ("1KB", 1000), ("3TiB", 3 * 2**40)],
)
def test_sizes(given: int | str, size: int) -> None:
    assert size_in_bytes(given) == size


def test_transformers_reads_the_same() -> None:
    from transformers.utils.hub import convert_file_size_to_int

    for text in ("5GB", "300MB", "7KB", "2GiB", "3MiB", "4KiB"):
        assert size_in_bytes(text) == convert_file_size_to_int(text)


@pytest.mark.parametrize("given", [0, -1, "", "GB", "1.5GB", "5Gb", "5 G", "0MB", "5PB", "\u0665GB", "5GB 1", True])
def test_what_is_no_size(given: int | str) -> None:
    with pytest.raises(ValueError, match=r"is no size: bytes as an integer of at least 1"):
        size_in_bytes(given)


def test_the_key_says_what_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert Config.load(path).train.max_shard_bytes == 5 * 10**9
    assert Config.load(path, ["train.max_shard_size=300MB"]).train.max_shard_bytes == 3 * 10**8
    assert Config.load(path, ["train.max_shard_size=4096"]).train.max_shard_bytes == 4096
    (found,) = problems(path, "train.max_shard_size=5Gb")
    assert "max_shard_size: '5Gb' is no size" in found
    assert "5GB, 300MB or 2GiB" in found
