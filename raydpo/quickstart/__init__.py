"""The quickstart: a task that a program can check, a fresh small model, and two whole runs of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"quickstart": "offline_dpo", "quickstart_rounds": "on_policy"}

__all__ = ["quickstart", "quickstart_rounds"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
