"""JSON that somebody else may have written: whatever is wrong with it is a ValueError.

Comes in: text or a file. Goes out: values. Decision: nesting beyond what any file of ours or of a model has is an error like a
missing bracket, since whoever walks the value later would call itself once for each level.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_MOST_DEPTH = 100
_MOST_BYTES = 64 << 20


def parse_json(text: str | bytes) -> Any:
    """The value. ValueError for what is no JSON, also for text that is not UTF-8 and for more than a hundred levels."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if is_deeper(value, _MOST_DEPTH):
        raise ValueError("nested too deeply")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds. OSError where it cannot be read, ValueError where it holds none."""
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes; up to {_MOST_BYTES:,} are read")
    value = parse_json(path.read_bytes())
    if not isinstance(value, dict):
        raise ValueError(f"it holds {type(value).__name__}, not an object")
    return value


def is_deeper(value: Any, depth: int) -> bool:
    """Whether `value` is nested more than `depth` levels deep."""
    level = [value]
    while level and depth >= 0:
        depth -= 1
        inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [one for values in inner for one in values]
    return bool(level)
