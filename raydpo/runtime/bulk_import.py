"""Imports of large libraries in one go.

Comes in: names of modules, or a block that imports. Goes out: nothing. Decision: no garbage is collected meanwhile. What a
library makes while it is imported stays, and looking at a million new objects again and again takes a fifth of the time of
an import of torch and transformers; the price is that what is garbage in this process waits until the block ends.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in the block by itself. In the end it is as it was."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def import_modules(modules: Sequence[str]) -> None:
    """As far as they can be imported; whoever needs one that cannot says so itself."""
    with uncollected():
        for module in modules:
            with suppress(Exception):
                importlib.import_module(module)
