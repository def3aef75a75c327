"""A number of bytes as transformers' `max_shard_size` has it: an integer, or an integer and its unit (5GB, 300MB, 2GiB).

Comes in: what stands in a config. Goes out: bytes. Decision: KB, MB, GB and TB are powers of 1000, KiB to TiB of 1024, in any
case; transformers' Gb, a gigabit, is an error here rather than an eighth of what was meant.
"""

from __future__ import annotations

import re

_UNITS = {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", 1)
    for kind, base in (("B", 1000), ("IB", 1024))
}
_WRITTEN = re.compile(r"(\d+)\s*([KMGT]I?B)?", re.IGNORECASE | re.ASCII)


def size_in_bytes(given: int | str) -> int:
    """Bytes, at least 1. Raises ValueError with what is allowed."""
    found = _WRITTEN.fullmatch(str(given).strip())
    size = int(found[1]) * _UNITS.get((found[2] or "").upper(), 1) if found else 0
    if size < 1 or (found and found[2] and found[2].endswith("b")):
        raise ValueError(
            f"{given!r} is no size: bytes as an integer of at least 1, or with a unit, such as 5GB, 300MB or 2GiB (a byte is B)"
        )
    return size
