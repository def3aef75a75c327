"""Whatever a judge does becomes scores or a reason, and never a zero that nobody gave."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from raydpo.judge import NoVerdict, Row, Verdict, judge_row, judge_rows
from raydpo.schema.pulse import listen


def test_every_row_is_a_sign_of_life() -> None:
    beats: list[int] = []
    before = listen(lambda: beats.append(1))
    try:
        judge_rows(answering([1.0]), [("a", ["x"]), ("b", ["y"]), ("c", ["z"])])
    finally:
        listen(before)
    assert len(beats) == 3


def answering(answer: Any) -> Any:
    return lambda prompt, responses: answer


def raising(error: BaseException) -> Any:
    def judge(prompt: str, responses: list[str]) -> list[float]:
        raise error

    return judge


@pytest.mark.parametrize(
    "answer",
    [
        [0.5, -2],
        (0.5, -2.0),
        np.array([0.5, -2.0], dtype=np.float32),
        torch.tensor([0.5, -2.0]),
        [np.float32(0.5), np.int64(-2)],
        [Fraction(1, 2), -2],
    ],
    ids=["list", "tuple", "numpy", "torch", "numpy numbers", "fraction"],
)
def test_numbers_in_any_container_are_scores(answer: Any) -> None:
    verdict = judge_row(answering(answer), "p", ["a", "b"])
    assert verdict == Verdict((0.5, -2.0), "")
    assert verdict.scores is not None
    assert all(type(score) is float for score in verdict.scores)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "returned a NoneType; a list of 2 numbers"),
        (0.0, "returned a float"),
        ("12", "returned a str"),
        ({"a": 1, "b": 2}, "returned a dict"),
        (iter([1.0, 2.0]), "returned a list_iterator"),
        (np.float64(1), "returned a float64"),
        (torch.tensor(1.0), "returned a Tensor"),
        ([], "0 scores for 2 responses"),
        ([1.0], "1 scores for 2 responses"),
        ([1.0, 2.0, 3.0], "3 scores for 2 responses"),
        ([1.0, float("nan")], "score 1 is nan (float); a finite number"),
        ([float("-inf"), 1.0], "score 0 is -inf (float)"),
        ([10**400, 1.0], "score 0 is 1000"),
        ([True, False], "score 0 is True (bool)"),
        ([np.True_, 1.0], "score 0 is"),
        ([1.0, None], "score 1 is None (NoneType)"),
        ([1.0, "1.0"], "score 1 is '1.0' (str)"),
        ([1.0, 1j], "score 1 is 1j (complex)"),
        ([[1.0], [2.0]], "score 0 is [1.0] (list)"),
        (np.array([[1.0], [2.0]]), "score 0 is [1.0] (list)"),
        (np.array([True, False]), "score 0 is True (bool)"),
        ([torch.tensor(1.0), 1.0], "score 0 is tensor(1.) (Tensor)"),
    ],
)
def test_anything_else_is_a_failure_with_its_reason(answer: Any, reason: str) -> None:
    verdict = judge_row(answering(answer), "p", ["a", "b"])
    assert verdict.scores is None
    assert reason in verdict.reason
    assert len(verdict.reason) <= 300


def test_an_exception_is_a_failure_with_class_and_message() -> None:
    assert judge_row(raising(KeyError("x")), "p", ["a"]) == Verdict(None, "KeyError: 'x'")
    assert judge_row(raising(ValueError()), "p", ["a"]) == Verdict(None, "ValueError")
    assert judge_row(raising(NoVerdict("not known")), "p", ["a"]) == Verdict(None, "not known")
    long = judge_row(raising(RuntimeError("x" * 1000)), "p", ["a"])
    assert long.reason == "RuntimeError: " + "x" * 286


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_passes_through(error: type[BaseException]) -> None:
    with pytest.raises(error):
        judge_row(raising(error()), "p", ["a"])
    with pytest.raises(error):
        judge_rows(raising(error()), [("p", ["a"])])


def test_a_judge_cannot_change_the_responses() -> None:
    responses = ["a", "b"]

    def judge(prompt: str, given: list[str]) -> list[float]:
        given.clear()
        return [1.0, 2.0]

    assert judge_row(judge, "p", responses).scores == (1.0, 2.0)
    assert responses == ["a", "b"]


ROWS: list[Row] = [("p", ["a", "bb"]), ("q", ["ccc"]), ("r", [])]


def lengths(prompt: str, responses: list[str]) -> list[float]:
    if prompt == "bad":
        raise ValueError("bad prompt")
    return [float(len(response)) for response in responses]


class Many:
    """`many` gives what it was told to; asked alone, lengths."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, prompt: str, responses: list[str]) -> list[float]:
        return lengths(prompt, responses)

    def many(self, rows: Sequence[Row]) -> list[Verdict]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_rows_are_asked_one_by_one_without_many() -> None:
    verdicts = judge_rows(lengths, [*ROWS, ("bad", ["x"])])
    assert verdicts == [Verdict((1.0, 2.0)), Verdict((3.0,)), Verdict(()), Verdict(None, "ValueError: bad prompt")]


def test_many_is_preferred_and_checked() -> None:
    given = [Verdict((7.0, 8.0)), Verdict(None, "why"), Verdict(())]
    assert judge_rows(Many(given), ROWS) == given
    assert judge_rows(Many(tuple(given)), ROWS) == given
    bad = judge_rows(Many([Verdict((float("nan"), 1.0)), Verdict((1.0, 2.0)), 3.0]), ROWS)
    assert [verdict.scores for verdict in bad] == [None, None, None]
    assert ["nan" in bad[0].reason, "2 scores for 1" in bad[1].reason, "float" in bad[2].reason] == [True] * 3


@pytest.mark.parametrize("answer", [None, 1.0, [], [Verdict((1.0, 2.0))]])
def test_many_that_gives_no_verdicts_fails_every_row(answer: Any) -> None:
    verdicts = judge_rows(Many(answer), ROWS)
    assert [verdict.scores for verdict in verdicts] == [None, None, None]
    assert all("was to return 3 verdicts" in verdict.reason for verdict in verdicts)


def test_where_many_raises_only_the_bad_row_fails() -> None:
    verdicts = judge_rows(Many(RuntimeError("out of memory")), [ROWS[0], ("bad", ["x"]), ROWS[1]])
    assert verdicts == [Verdict((1.0, 2.0)), Verdict(None, "ValueError: bad prompt"), Verdict((3.0,))]
