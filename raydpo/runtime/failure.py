"""What went wrong in an actor, in a form that travels, and the sentence that says so.

What comes in: exceptions caught inside an actor, Ray's errors seen by the driver. What goes out: Failure records and
the RaydpoError to raise.
Decision: an actor returns its exceptions as records instead of raising them through Ray. Ray's wrapping makes
look-alike classes that depend on the version; a record keeps the class of ours and the text of all others.
"""

from __future__ import annotations

import pickle
import re
import traceback
from dataclasses import dataclass

from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError

from raydpo.errors import RaydpoError, WorkerError


@dataclass(frozen=True)
class Failure:
    """An exception that user code raised in an actor. `error` is set only for classes of raydpo.errors."""

    class_name: str
    message: str
    traceback_text: str
    error: RaydpoError | None = None

    @property
    def summary(self) -> str:
        """`ClassName: message`, on as many lines as the message has."""
        return f"{self.class_name}: {self.message}" if self.message else self.class_name


def failure_of(error: BaseException) -> Failure:
    """Record `error`, with its traceback as text."""
    kept = error if isinstance(error, RaydpoError) and _survives_pickling(error) else None
    return Failure(type(error).__name__, str(error), "".join(traceback.format_exception(error)).rstrip(), kept)


def error_of(failure: Failure, where: str) -> RaydpoError:
    """The exception to raise for `failure` of the actor described by `where` ("reference worker 1 (pid 7 on ...)")."""
    if failure.error is not None:
        failure.error.add_note(f"Raised by {where}:\n{failure.traceback_text}")
        return failure.error
    return WorkerError(f"{where} raised {failure.summary}\n{failure.traceback_text}")


def cause_of_death(error: RayError) -> str:
    """One sentence for an actor that ended without an exception of its own (killed, crashed, node lost)."""
    text = str(error)
    if isinstance(error, RayActorError) and error.preempted:
        return "its node was preempted"
    if isinstance(error, OutOfMemoryError) or "memory monitor" in text or "running low on memory" in text:
        return f"it was killed because its node ran out of memory ({_first_lines(text)})"
    if isinstance(error, RayTaskError):
        return _first_lines(text.strip().splitlines()[-1])
    if "The actor's node has died" in text or "node was terminated" in text or "node died" in text.lower():
        return f"its node died ({_first_lines(text)})"
    if "connection error code 2" in text:
        return (
            "its process ended without an exception: killed by a signal (SIGKILL, as the kernel sends it when memory "
            "runs out, or SIGSEGV) or by os._exit"
        )
    return _first_lines(text)


def _first_lines(text: str, num_characters: int = 600) -> str:
    joined = re.sub(r"\s+", " ", text).strip()
    return joined if len(joined) <= num_characters else joined[:num_characters] + " ..."


def _survives_pickling(error: RaydpoError) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - a class with a foreign __init__ may raise anything; its text travels instead
        return False
    return True
