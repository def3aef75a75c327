"""What went wrong in an actor, in a form that travels, and the sentence that says so.

What comes in: exceptions caught inside an actor, deaths that its runtime saw. What goes out: records of both and the
RaydpoError to raise.
Decision: an actor returns its exceptions as records instead of raising them through Ray. Ray's wrapping makes
look-alike classes that depend on the version; a record keeps the class of ours and the text of all others.
"""

from __future__ import annotations

import pickle
import traceback
from dataclasses import dataclass

from raydpo.errors import Cause, RaydpoError, WorkerError
from raydpo.redaction import redacted


@dataclass(frozen=True)
class Failure:
    """An exception that user code raised in an actor.

    class_name: its class.
    message: its text.
    traceback_text: its traceback, as text.
    error: the exception itself; None unless its class is one of raydpo.errors.
    """

    class_name: str
    message: str
    traceback_text: str
    error: RaydpoError | None = None

    @property
    def summary(self) -> str:
        """`ClassName: message`, on as many lines as the message has."""
        return f"{self.class_name}: {self.message}" if self.message else self.class_name


@dataclass(frozen=True)
class Death:
    """How an actor ended, or was lost, without an exception of its own.

    cause: its kind, for decisions.
    text: a clause without a full stop, for people.
    """

    cause: Cause
    text: str


def failure_of(error: BaseException) -> Failure:
    """Record `error`, with its traceback as text; here, in its own process, whose secrets the text may hold."""
    kept = error if isinstance(error, RaydpoError) and _survives_pickling(error) else None
    shown = redacted("".join(traceback.format_exception(error)).rstrip())
    return Failure(type(error).__name__, redacted(str(error)), shown, kept)


def error_of(failure: Failure, where: str) -> RaydpoError:
    """The exception to raise for `failure` of the actor described by `where` ("reference worker 1 (pid 7 on ...)")."""
    if failure.error is not None:
        failure.error.add_note(f"Raised by {where}:\n{failure.traceback_text}")
        return failure.error
    return WorkerError(f"{where} raised {failure.summary}\n{failure.traceback_text}")


def _survives_pickling(error: RaydpoError) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - a class with a foreign __init__ may raise anything; its text travels instead
        return False
    return True
