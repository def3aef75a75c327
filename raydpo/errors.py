"""One exception tree for everything raydpo raises on purpose.

    RaydpoError
    +-- UserError              the caller can fix it: exit code 2, no traceback, all problems at once
    |   +-- ConfigError        a configuration key or value
    |   +-- DataError          input rows, formats, templates
    |   +-- ResourceError      more CPUs or GPUs asked for than there are
    |   +-- RunInUseError      another driver holds the run directory
    |   +-- StorageError       full disk, a path that not all nodes see
    |   +-- ResumeError        the run directory holds something that this config cannot continue
    +-- IntegrityError         bytes on disk are not what was committed
    +-- ReferenceMismatchError cached reference values are not this reference's
    +-- PolicyMismatchError    a generator does not compute what its trainers do
    +-- JudgeError             the judge failed on more prompts than it may
    +-- NonFiniteError         three non-finite steps in a row
    +-- WorkerError            an actor died or raised; says which one and of what
        +-- HangError          ranks that stopped reporting within the deadline
        +-- OutOfMemoryError   a micro-batch did not fit into the memory of a rank

How to add one: derive from the closest class, pass only a message (and problems) to `__init__`, so that the
exception survives pickling between processes (tests/test_errors.py tries each).
Decision: an error carries finished sentences. Whoever raises knows what was given, what is allowed, what would have
happened and what to do; whoever prints adds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

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


class NonFiniteError(RaydpoError):
    """Loss or gradient was not finite in too many steps in a row."""


class WorkerError(RaydpoError):
    """An actor died or raised. The message names it and the cause."""


class HangError(WorkerError):
    """One or more ranks stopped reporting within the deadline."""


class OutOfMemoryError(WorkerError):
    """A micro-batch did not fit. `smaller`: tokens of micro-batches worth a try; 0 when it held one example only."""

    def __init__(self, message: str, smaller: int = 0) -> None:
        super().__init__(message, smaller)
        self.smaller = smaller

    def __str__(self) -> str:
        return str(self.args[0])
