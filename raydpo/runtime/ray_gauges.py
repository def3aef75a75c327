"""Gauges of Ray's metrics, made once a name: Ray would warn of a second one.

Comes in: names, help texts and values. Goes out: what the node's metrics agent exports.
Decision: a gauge that cannot be made or set is no reason to end a run; it is left out without a word.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

from ray.util.metrics import Gauge


def set_gauge(name: str, help_text: str, value: float, labels: dict[str, str]) -> None:
    """Set a gauge of this process."""
    with suppress(Exception):
        _gauge(name, help_text, tuple(labels)).set(value, labels)


@cache
def _gauge(name: str, help_text: str, keys: tuple[str, ...]) -> Any:
    return Gauge(name, help_text, keys)
