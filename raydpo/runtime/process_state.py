"""What an actor changes in the process that it shares with the driver: put back when it pauses, set again when it goes on.

Environment variables; of torch, where it is there, the threads, the state of the generator of random numbers and whether
denormal numbers are flushed. Torch is looked at and never imported here. Process groups are destroyed by who made them
(`train.deepspeed_engine`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_TINY = 1e-39
"""A float32 that is not 0 and not normal."""


class ProcessState:
    """Of one actor. `active` is not entered twice at a time."""

    def __init__(self) -> None:
        self._variables: dict[str, str | None] = {}
        self._torch: tuple[Any, ...] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, the process is as the actor left it; afterwards as it was before."""
        environment, torch = dict(os.environ), _torch_state()
        _set_variables(self._variables)
        _set_torch(self._torch)
        try:
            yield
        finally:
            self._torch = _torch_state()
            _set_torch(torch)
            names = environment.keys() | os.environ.keys()
            changed = {name for name in names if environment.get(name) != os.environ.get(name)}
            self._variables |= {name: os.environ.get(name) for name in changed | self._variables.keys()}
            _set_variables({name: environment.get(name) for name in changed})


def _set_variables(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _torch_state() -> tuple[Any, ...] | None:
    """(threads, random state, whether denormals are flushed); None where torch was not imported yet."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_rng_state"):
        return None
    flushes = float(torch.full((), _TINY) * 1.0) == 0.0
    return torch.get_num_threads(), torch.get_rng_state(), flushes


def _set_torch(state: tuple[Any, ...] | None) -> None:
    if state is None:
        return
    torch = sys.modules["torch"]
    threads, random_state, flushes = state
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_rng_state(random_state)
    torch.set_flush_denormal(flushes)
