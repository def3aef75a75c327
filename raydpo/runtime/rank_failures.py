"""From the failures of several ranks to the one exception that tells what happened.

What comes in: one record a failing rank. What goes out: the error to raise.
Decision: when one rank fails, its peers fail of it in their collectives. So failures are read in three classes,
exceptions first, then deaths, and last what looks like a lost peer; the first class that is not empty is the cause, the
rest is listed below it. What looks like a lost peer is a list of texts of torch, gloo and NCCL: a guess, but it only
orders the message, nothing is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raydpo.errors import Cause, RaydpoError, WorkerError
from raydpo.runtime.failure import Death, Failure

_LOST_PEER = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken pipe|peer|gloo|nccl|socket|tcpstore|"
    r"timed out (waiting|after)|barrier|DistBackendError|DistNetworkError|DistStoreError",
    re.IGNORECASE,
)
_LOST_PEER_CLASSES = frozenset(
    {"DistBackendError", "DistNetworkError", "DistStoreError", "RuntimeError", "ConnectionError", "TimeoutError"}
)


@dataclass(frozen=True)
class RankFailure:
    """How a rank ended.

    rank: its number.
    place: where it ran, in words.
    cause: a Failure (it raised) or a Death (its process is gone).
    """

    rank: int
    place: str
    cause: Failure | Death

    @property
    def is_death(self) -> bool:
        return isinstance(self.cause, Death)

    @property
    def kind(self) -> Cause:
        """For decisions."""
        if isinstance(self.cause, Death):
            return self.cause.cause
        return Cause.UNREACHABLE if self.is_collateral else Cause.RAISED

    @property
    def is_collateral(self) -> bool:
        """Whether it looks like the loss of another rank."""
        if isinstance(self.cause, Death) or self.cause.error is not None:
            return False
        return self.cause.class_name in _LOST_PEER_CLASSES and _LOST_PEER.search(self.cause.message) is not None


def verdict(name: str, failures: Sequence[RankFailure]) -> RaydpoError:
    """The exception for `failures` (at least one) of the gang `name`.

    One class of raydpo.errors on all original failures comes back as it is; anything else is a WorkerError. Its cause is
    that of the first rank that is to blame, and a preemption where there was one: what the others met follows from it.
    """
    ordered = sorted(failures, key=lambda failure: failure.rank)
    raised = [failure for failure in ordered if not failure.is_death and not failure.is_collateral]
    died = [failure for failure in ordered if failure.is_death]
    original = raised or died or ordered
    own = _one_own_error(name, original)
    if own is not None:
        return own
    lines = [_sentence(name, original)]
    rest = [failure for failure in ordered if failure not in original]
    lines += [f"After that: {_sentence(name, [failure])}" for failure in rest]
    first = original[0].cause
    if isinstance(first, Failure):
        lines.append(f"Traceback of rank {original[0].rank}:\n{first.traceback_text}")
    blamed = next((failure for failure in ordered if failure.kind.is_preemption), original[0])
    return WorkerError("\n".join(lines), blamed.kind, blamed.rank)


def _one_own_error(name: str, original: Sequence[RankFailure]) -> RaydpoError | None:
    errors = [failure.cause.error if isinstance(failure.cause, Failure) else None for failure in original]
    first = errors[0]
    if first is None or any(type(error) is not type(first) for error in errors):
        return None
    ranks = ", ".join(str(failure.rank) for failure in original)
    assert isinstance(original[0].cause, Failure)
    if isinstance(first, WorkerError) and first.rank is None:
        first.rank = original[0].rank
    first.add_note(f"Raised in {name} by rank {ranks} ({original[0].place}):\n{original[0].cause.traceback_text}")
    return first


def _sentence(name: str, failures: Sequence[RankFailure]) -> str:
    """Identical causes share a sentence."""
    groups: dict[str, list[RankFailure]] = {}
    for failure in failures:
        text = failure.cause.text if isinstance(failure.cause, Death) else failure.cause.summary
        groups.setdefault(("died: " if failure.is_death else "raised ") + text, []).append(failure)
    return " ".join(f"{name}: {_ranks(members)} {what}." for what, members in groups.items())


def _ranks(failures: Sequence[RankFailure]) -> str:
    named = ", ".join(f"{failure.rank} ({failure.place})" for failure in failures)
    return ("rank " if len(failures) == 1 else "ranks ") + named
