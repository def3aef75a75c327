"""Every error class crosses process borders whole, and knows its exit code."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from raydpo import errors
from raydpo.errors import Cause, RaydpoError, UserError, WorkerError


def tree(root: type[RaydpoError]) -> Iterator[type[RaydpoError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


CLASSES = sorted({c for c in tree(RaydpoError) if c.__module__ == errors.__name__}, key=lambda c: c.__name__)


def test_the_tree_in_the_header_is_the_tree() -> None:
    assert errors.__doc__ is not None
    drawn = [word for word in errors.__doc__.replace("+--", " ").split() if word.endswith("Error")]
    assert sorted(set(drawn)) == [c.__name__ for c in CLASSES]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_survives_pickle(kind: type[RaydpoError]) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        error = kind("one sentence.")
        copy = pickle.loads(pickle.dumps(error, protocol))
        assert type(copy) is kind
        assert str(copy) == str(error) == "one sentence."
        assert copy.exit_code == (2 if issubclass(kind, UserError) else 1)


def test_what_code_decides_by_survives_pickle() -> None:
    error = WorkerError("one sentence.", Cause.PREEMPTED, 3)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.cause, copy.rank) == ("one sentence.", Cause.PREEMPTED, 3)
    assert copy.cause.is_preemption
    short = pickle.loads(pickle.dumps(errors.OutOfMemoryError("too long.", smaller=128)))
    assert (str(short), short.smaller, short.cause) == ("too long.", 128, Cause.DID_NOT_FIT)


@pytest.mark.parametrize("kind", [c for c in CLASSES if issubclass(c, UserError)], ids=lambda c: c.__name__)
def test_all_problems_survive_pickle(kind: type[UserError]) -> None:
    copy = pickle.loads(pickle.dumps(kind(["first.", "second."])))
    assert copy.problems == ("first.", "second.")
    assert str(copy) == "first.\nsecond."
    again = pickle.loads(pickle.dumps(copy))
    assert again.problems == copy.problems


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_survives_a_subclass_that_only_passes_the_message(kind: type[RaydpoError]) -> None:
    with pytest.raises(RaydpoError, match="text"):
        raise pickle.loads(pickle.dumps(kind("text")))
