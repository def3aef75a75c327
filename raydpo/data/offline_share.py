"""A random share of a data set as raw rows, to be mixed into the pairs of a round."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from raydpo.artifacts import digest_of
from raydpo.data.sources import find
from raydpo.errors import DataError


def sources_digest(key: str, names: Sequence[str]) -> str:
    """Digest of what the files of config key `key` hold. Raises DataError for those that cannot be read."""
    sources, problems = find(key, names)
    if problems:
        raise DataError(problems)
    return digest_of([source.digest() for source in sources])


def offline_rows(names: Sequence[str], number: int, chance: Random) -> list[dict[str, Any]]:
    """`number` rows of `data.train`, drawn without replacement, in the order of the files; all where there are fewer.

    Lines that are no rows are passed over here; a row that training cannot use is quarantined there, as always.
    Raises DataError for files that cannot be read.
    """
    sources, problems = find("data.train", names)
    if problems:
        raise DataError(problems)
    kept: list[tuple[int, dict[str, Any]]] = []
    seen = 0
    for source in sources:
        for line in source.rows():
            if line.row is None:
                continue
            seen += 1  # reservoir sampling, Vitter 1985, algorithm R
            if len(kept) < number:
                kept.append((seen, line.row))
            elif (place := chance.randrange(seen)) < number:
                kept[place] = (seen, line.row)
    return [row for _, row in sorted(kept, key=lambda one: one[0])]
