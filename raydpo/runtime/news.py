"""What a worker says while it works on an item: a sign of life, and news for whoever asked.

Goes out: `News`. Decision: a worker of a pool that has a listener answers with an iterator, `News` as often as it likes and
its answer last; a class of its own, so that no answer is taken for one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class News:
    """News of an item. event: anything small that can be pickled."""

    event: Any
