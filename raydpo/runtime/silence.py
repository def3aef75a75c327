"""How long an actor of a pool has been silent, and where it is: what the deadline of an item is measured by.

Comes in: beats in the actor; on the driver, actors that gave no answer for long. Goes out: which of them are hung, with the
innermost frames of each.
Decision: a beat writes the time into a memory file that another process of the node can read (as `stacks` does), so that it
costs a microsecond and nothing travels; the driver looks only when an answer is overdue. Linux only: elsewhere the whole item
has to be done within the deadline.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from raydpo.runtime.backend import Actors
from raydpo.runtime.place import Place
from raydpo.runtime.stacks import Stacks, offer_stacks
from raydpo.schema.pulse import listen

_FORMAT = "d"
_NO_STACK = "  (its stack could not be read)"

Watched = Mapping[int, tuple[Place, Stacks | None, float]]
"""Number of a worker -> where it is, what it offered (None: nothing), and for how many seconds it gave no answer."""


def offer_signs() -> Stacks:
    """In the actor: get ready to write the stack, and write the time at each beat."""
    offered = offer_stacks()
    if offered.descriptor < 0:
        return offered
    descriptor = os.memfd_create("raydpo-pulse")

    def note() -> None:
        os.pwrite(descriptor, struct.pack(_FORMAT, time.monotonic()), 0)

    note()
    listen(note)
    return replace(offered, pulse=descriptor)


def read_silence_s(stacks: Stacks) -> str:
    """On the actor's node, in another process: seconds since its last beat, as text; empty when there is no telling.

    The clock is the one of the machine, the same in all its processes.
    """
    with suppress(OSError, struct.error):
        found = Path(f"/proc/{stacks.pid}/fd/{stacks.pulse}").read_bytes()
        return str(time.monotonic() - struct.unpack(_FORMAT, found)[0])
    return ""


def silences(actors: Actors, overdue: Watched) -> dict[int, float]:
    """On the driver: seconds since each gave its last sign of life, an answer or a beat."""
    asked = {number: (place, stacks) for number, (place, stacks, _) in overdue.items() if stacks and stacks.pulse >= 0}
    beats = actors.silences_s(asked) if asked else {}
    return {number: min(silent_s, beats.get(number, silent_s)) for number, (_, _, silent_s) in overdue.items()}


def frames_of(actors: Actors, hung: Watched) -> dict[int, str]:
    """Where each of them is, in text for an error message."""
    asked = {number: (place, stacks) for number, (place, stacks, _) in hung.items() if stacks is not None}
    frames = actors.stacks(asked) if asked else {}
    return {number: frames.get(number) or _NO_STACK for number in hung}
