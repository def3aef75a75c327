"""Names of data sets of other projects as entries of data.train and data.eval.

Comes in: a name with its config, split and count. Goes out: a path, `hub:owner/name/config:split`, or a mapping with a count.
"""

from __future__ import annotations

import re
from typing import Any

_FILES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".gz", ".zst")


def entry(name: str, split: str | None = None, config: str | None = None, count: int | None = None) -> Any:
    """An entry of ours. ValueError for a name that is neither a path nor owner/name."""
    if name.startswith(("/", "./", "../", "~")) or name.endswith(_FILES):
        path = name
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        path = f"hub:{name}{f'/{config}' if config else ''}{f':{split}' if split else ''}"
    else:
        raise ValueError(f"{name!r} is neither a path nor owner/name of a hub")
    return path if count is None else {"path": path, "count": count}


def mixed(name: str, share: float, word: Any, split: str | None) -> Any:
    """An entry of a mixture: a share (1.0: all; 0.5: half) or, above 1 or without a point, a count."""
    is_count = isinstance(word, int) and not isinstance(word, bool)
    if is_count:
        return entry(name, split, count=int(share))
    found = entry(name, split)
    return found if share == 1 else {"path": found, "passes": share}
