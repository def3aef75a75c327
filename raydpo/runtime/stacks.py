"""Where a silent rank is: the innermost frames of its main thread, without its cooperation.

What comes in: a rank's place and what it offered at its start. What goes out: text for an error message.
Decision: faulthandler writes the stack from a signal handler, so that a rank stuck in native code answers too; into a
memory file that another process of the node reads through /proc, so that nothing is left on disk. Linux only:
elsewhere the message does without.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from raydpo.runtime.place import Place

_NUM_FRAMES = 12
_NOT_THEIRS = ("/ray/_private/", "/raydpo/runtime/local_actor.py", "/raydpo/runtime/fork_server.py", "<frozen runpy>")
_RECORD_S = 5.0
"""What NCCL, which looks once a second, gets to write its record."""
_ANSWER_S = 30.0
"""How long a rank may take to write its stack: it gets no turn at once on a busy machine."""


@dataclass(frozen=True)
class Stacks:
    """A process that writes its stack to `descriptor` on SIGUSR1; -1 where that is not possible.

    pulse: descriptor that holds the time of its last beat (`silence`), -1 without one.
    """

    pid: int
    descriptor: int
    pulse: int = -1


def offer_stacks() -> Stacks:
    """In the rank: get ready to write the stack of all threads on SIGUSR1."""
    if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self/fd"):
        return Stacks(os.getpid(), -1)
    descriptor = os.memfd_create("raydpo-stacks")
    faulthandler.register(signal.SIGUSR1, file=descriptor, all_threads=True, chain=False)
    return Stacks(os.getpid(), descriptor)


def gather(
    ranks: Mapping[int, tuple[Place, Stacks]],
    ask: Callable[[Place, Stacks], Any],
    answer: Callable[[Any, float], str],
    timeout_s: float,
) -> dict[int, str]:
    """On the driver: what another process of each rank's node reads of it; ranks of which it reads nothing are left out.

    ask: starts the reading on a rank's node. answer: waits for it.
    """
    readers = {rank: ask(place, stacks) for rank, (place, stacks) in ranks.items() if stacks.descriptor >= 0}
    deadline_s = time.monotonic() + timeout_s
    found = {rank: answer(pending, max(0.1, deadline_s - time.monotonic())) for rank, pending in readers.items()}
    return {rank: text for rank, text in found.items() if text}


def read_stack(stacks: Stacks) -> str:
    """On the rank's node, in another process: ask for the stack and read it."""
    ask_flight_recorder(stacks.pid)
    path = Path(f"/proc/{stacks.pid}/fd/{stacks.descriptor}")
    before = ""
    with suppress(OSError):
        os.kill(stacks.pid, signal.SIGUSR1)
        deadline_s = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline_s:
            time.sleep(0.1)
            text = path.read_text(errors="replace")
            if "Current thread" in text and text == before:  # else it may be in the middle of writing
                return innermost_frames(text)
            before = text
    return ""


def flight_pipe(pid: int) -> str:
    """What NCCL puts its rank and ".pipe" behind, to make the pipe through which it is asked for its record."""
    return f"/tmp/raydpo-nccl-{pid}-"


def ask_flight_recorder(pid: int) -> None:
    """On the rank's node: let NCCL write its last collectives where TORCH_NCCL_DEBUG_INFO_TEMP_FILE says, if it is there."""
    pipes = glob(f"{flight_pipe(pid)}*.pipe")
    for pipe in pipes:
        with suppress(OSError):  # nobody reads it
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            os.write(descriptor, b"1")
            os.close(descriptor)
    time.sleep(_RECORD_S * bool(pipes))


def innermost_frames(dump: str, num_frames: int = _NUM_FRAMES) -> str:
    """The first frames of the thread that took the signal, which is the main one."""
    lines = dump.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith("Current thread")), len(lines))
    frames = []
    for line in lines[start + 1 :]:
        if not line.startswith("  "):
            break
        frames.append(line)
    kept = [line for line in frames if not any(place in line for place in _NOT_THEIRS)]
    return "\n".join(kept[:num_frames])
