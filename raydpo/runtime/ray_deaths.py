"""What Ray's errors say of an actor that is gone: its cause, and a clause for people.

What comes in: an error of Ray. What goes out: a `Death`.
Decision: Ray tells most causes in the text of one class alone, so texts are looked for, the most telling first; each of them
is in the list of what a newer Ray may change (tests/stack). What none of them fits is passed on in Ray's words, as unknown.
"""

from __future__ import annotations

import re

from ray.exceptions import (
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from raydpo.errors import Cause
from raydpo.runtime.failure import Death

_TAKEN = ("node was preempted:", "node was terminated expectedly", "forcibly preempted")
_OUT_OF_MEMORY = ("memory monitor", "running low on memory")
_OWNER_GONE = ("its owner has died", "The object's owner has exited")
_NODE_GONE = ("its node has died", "node was terminated", "Owner's node has crashed")
_KILLED = (
    "its process ended without an exception: killed by a signal (SIGKILL, as the kernel sends it when memory runs out, or "
    "SIGSEGV) or by os._exit"
)


def death_of(error: RayError) -> Death:
    """How the actor ended that `error` tells of."""
    text = str(error)
    if isinstance(error, RayTaskError):
        return Death(Cause.RAISED, _shortened(text.strip().splitlines()[-1]))
    if isinstance(error, GetTimeoutError):
        return Death(Cause.HUNG, "it did not answer in time")
    if (isinstance(error, RayActorError) and error.preempted) or _has(text, _TAKEN):
        return Death(Cause.PREEMPTED, f"its node was preempted, drained or shut down ({_last_line(text)})")
    if isinstance(error, OutOfMemoryError) or _has(text, _OUT_OF_MEMORY):
        return Death(Cause.OUT_OF_HOST_MEMORY, f"it was killed because its node ran out of memory ({_shortened(text)})")
    if isinstance(error, LocalRayletDiedError) or _has(text, _OWNER_GONE):
        return Death(
            Cause.OWNER_DIED,
            "the raylet of the driver's own node is gone (killed, or the node ran out of memory), and Ray ended all that this "
            "driver had started; the actor is not to blame, and the same command goes on from what is committed",
        )
    if isinstance(error, NodeDiedError) or _has(text, _NODE_GONE):
        return Death(Cause.NODE_DIED, f"its node died ({_last_line(text)})")
    if isinstance(error, WorkerCrashedError) or "connection error code 2" in text:
        return Death(Cause.KILLED, _KILLED)
    if "killed by `ray.kill`" in text:
        return Death(Cause.KILLED, "somebody ended it with ray.kill")
    if isinstance(error, ActorUnavailableError):
        return Death(Cause.UNREACHABLE, f"it cannot be reached ({_shortened(text)})")
    if "its worker process has died" in text:
        return Death(Cause.EXITED, f"its process ended ({_last_line(text)})")
    return Death(Cause.UNKNOWN, _shortened(text))


def _has(text: str, any_of: tuple[str, ...]) -> bool:
    return any(part in text for part in any_of)


def _last_line(text: str) -> str:
    """Where Ray's messages of several lines say why."""
    return _shortened((text.strip().splitlines() or [""])[-1])


def _shortened(text: str, num_characters: int = 600) -> str:
    joined = re.sub(r"\s+", " ", text).strip().rstrip(".")
    return joined if len(joined) <= num_characters else joined[:num_characters] + " ..."
