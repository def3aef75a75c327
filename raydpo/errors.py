"""One exception tree for everything raydpo raises on purpose.

    RaydpoError
    +-- UserError              the caller can fix it: exit code 2, no traceback, all problems at once
    |   +-- ConfigError        a configuration key or value
    |   +-- DataError          input rows, formats, templates
    |   +-- ResourceError      more CPUs or GPUs asked for than there are
    |   +-- RunInUseError      another driver holds the run directory
    |   |   +-- LostLeaseError   another driver took the run directory over while this one ran
    |   +-- StorageError       full disk, a path that not all nodes see
    |   +-- ResumeError        the run directory holds something that this config cannot continue
    +-- IntegrityError         bytes on disk are not what was committed
    +-- ReferenceMismatchError cached reference values are not this reference's
    +-- PolicyMismatchError    a generator does not compute what its trainers do
    +-- JudgeError             the judge failed on more prompts than it may
    +-- NonFiniteError         three non-finite steps in a row
    +-- StateLostError         optimizer state that was in the memory of trainers alone, and died with them
    +-- WorkerError            an actor died or raised; says which one and of what
        +-- HangError          ranks that stopped reporting within the deadline
        +-- OutOfMemoryError   a micro-batch did not fit into the memory of a rank
    Stopped (KeyboardInterrupt) a signal asked the run to end, and it did: 143 for SIGTERM, 130 for SIGINT

How to add one: derive from the closest class, pass only a message (and problems) to `__init__`, so that the
exception survives pickling between processes (tests/test_errors.py tries each).
Decision: an error carries finished sentences. Whoever raises knows what was given, what is allowed, what would have
happened and what to do; whoever prints adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from signal import SIGINT, Signals

from raydpo.redaction import redacted


class RaydpoError(Exception):
    """Base class. `exit_code` is what the command line returns for it. Secrets of the environment are taken out of its text."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(each) if isinstance(each, str) else each for each in args))


class UserError(RaydpoError):
    """Something the caller can fix. `problems` holds every one found, each a finished sentence."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        given = (problems,) if isinstance(problems, str) else tuple(problems)
        self.problems: tuple[str, ...] = tuple(map(redacted, given))
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class ConfigError(UserError):
    """A configuration key or value is wrong."""


class DataError(UserError):
    """Input rows, their format or the chat template are wrong."""


class ResourceError(UserError):
    """The config asks for more than the machine or cluster has."""


class RunInUseError(UserError):
    """Another driver is working in this run directory."""


class LostLeaseError(RunInUseError):
    """Another driver took this run directory over: nothing more may be committed here."""


class StorageError(UserError):
    """A disk is full, or a path is not seen by all nodes."""


class ResumeError(UserError):
    """What lies in the run directory cannot be continued with this config."""


class IntegrityError(RaydpoError):
    """Bytes on disk differ from what was committed."""


class ReferenceMismatchError(RaydpoError):
    """Cached reference log-probs were not made by the reference of this run."""


class PolicyMismatchError(RaydpoError):
    """A generator does not compute what the trainers of the same weights do."""


class JudgeError(RaydpoError):
    """The judge failed on more prompts than it may."""


class StateLostError(RaydpoError):
    """The optimizer state that a training goes on with was in the memory of trainers that ended, and is on no disk."""


class NonFiniteError(RaydpoError):
    """Loss or gradient was not finite in too many steps in a row."""


class Cause(StrEnum):
    """Why an actor did not do its work, for whoever decides what happens next. The values are words for people."""

    RAISED = "raised"
    """Its code raised an exception; the same work would raise it again."""
    DID_NOT_FIT = "did not fit into memory"
    """Its code was refused an allocation, and said so."""
    HUNG = "hung"
    """It said nothing within the deadline."""
    KILLED = "killed by a signal"
    """Its process is gone without an exception; on Ray also by `os._exit`, which Ray cannot tell apart."""
    EXITED = "exited"
    """Its process ended by itself, with an exit code."""
    OUT_OF_HOST_MEMORY = "killed for the memory of its host"
    """Its process was chosen, because the machine ran out of memory."""
    NODE_DIED = "node died"
    """The machine, or the raylet on it, is gone."""
    PREEMPTED = "preempted"
    """The machine was taken away with notice: preempted, drained or shut down in order."""
    OWNER_DIED = "owner died"
    """The raylet of the driver's own node is gone: nothing can be started from this process any more."""
    UNREACHABLE = "unreachable"
    """A connection was lost, and nothing tells of what."""
    ENDED = "ended by the driver"
    """The run ended it, while there was work for it."""
    UNKNOWN = "unknown"
    """The runtime gave a reason that is none of these."""

    @property
    def is_preemption(self) -> bool:
        return self is Cause.PREEMPTED

    @property
    def is_user_error(self) -> bool:
        """Whether code of the role raised: another try would raise again."""
        return self is Cause.RAISED

    @property
    def is_loss(self) -> bool:
        """Whether a process, machine or connection was lost, and others started from this driver may do the work."""
        return self in _LOSSES


_LOSSES = frozenset(
    {
        Cause.KILLED,
        Cause.EXITED,
        Cause.OUT_OF_HOST_MEMORY,
        Cause.NODE_DIED,
        Cause.PREEMPTED,
        Cause.UNREACHABLE,
        Cause.UNKNOWN,
    }
)


class WorkerError(RaydpoError):
    """An actor died or raised. The message names it and the cause; `cause` is for code that decides.

    rank: of a gang, where one is to blame; None in a pool. was_idle: it died without work, so that no rows are to blame.
    """

    def __init__(
        self, message: str, cause: Cause = Cause.RAISED, rank: int | None = None, *, was_idle: bool = False
    ) -> None:
        super().__init__(message)
        self.cause, self.rank, self.was_idle = cause, rank, was_idle


class HangError(WorkerError):
    """One or more ranks stopped reporting within the deadline."""

    def __init__(self, message: str, cause: Cause = Cause.HUNG, rank: int | None = None) -> None:
        super().__init__(message, cause, rank)


class OutOfMemoryError(WorkerError):
    """A micro-batch did not fit. `smaller`: tokens of micro-batches worth a try; 0 when it held one example only."""

    def __init__(self, message: str, smaller: int = 0) -> None:
        super().__init__(message, Cause.DID_NOT_FIT)
        self.smaller = smaller


class Stopped(KeyboardInterrupt):
    """A signal asked the run to end, and it did. Not an Exception, so that nothing takes it for a failure.

    signum: the signal. committed: what is safe, as a sentence; empty where nobody could say.
    """

    def __init__(self, signum: int, committed: str = "") -> None:
        super().__init__(signum, committed)
        self.signum, self.committed = signum, committed

    @property
    def exit_code(self) -> int:
        """As a shell names a process that a signal ended: 143 for SIGTERM, 130 for SIGINT."""
        return 128 + self.signum

    def __str__(self) -> str:
        name = "Ctrl-C" if self.signum == SIGINT else Signals(self.signum).name
        return f"stopped by {name}. {self.committed}".rstrip()
