"""The clock of this machine. No decision of a run is made by a clock; times in logs and certificates are.

Comes in: the kernel's own word on whether something keeps its clock in step.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from raydpo.doctor.finding import Finding

_UNSYNCHRONISED = 5
_TIMEX_BYTES = 512
"""More than the kernel's structure has; zeros ask and change nothing."""


def check() -> Iterator[Finding]:
    """Whether the clock is kept in step."""
    yield judged(kernel_state())


def kernel_state() -> int | None:
    """What adjtimex answers: 0 to 4 in step, 5 not; None where there is no such call."""
    try:
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES)))
    except (OSError, AttributeError):
        return None
    return state if state >= 0 else None


def judged(state: int | None) -> Finding:
    """The finding for a state of the kernel's clock."""
    if state is None:
        return Finding("clock", "ok", "the kernel does not say whether something keeps the clock in step")
    if state == _UNSYNCHRONISED:
        return Finding(
            "clock",
            "warn",
            "nothing keeps the clock in step (NTP): times in logs of several machines will not fit together, and hub downloads "
            "fail once it is far off; a run decides nothing by it. Start chrony or systemd-timesyncd.",
        )
    return Finding("clock", "ok", "kept in step (NTP)")
