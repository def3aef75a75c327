"""What a judge is, and what becomes of its answer: scores of a row, or the reason why there are none.

Comes in: a judge (any callable) and rows of a prompt with its responses. Goes out: one `Verdict` a row.
Decision: a judge that fails never scores 0. A zero is a score like any other, would be the worst of its row, and would
teach the policy what the judge's bug says. Price: every caller has to look whether there are scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

from raydpo.redaction import redacted
from raydpo.schema.pulse import beat

Row = tuple[str, list[str]]
"""A prompt and the responses to it."""
LONGEST_REASON = 300
"""Characters."""


class Judge(Protocol):
    """Scores responses to one prompt: one finite number each, higher is better.

    A judge may also have `many(rows: Sequence[Row]) -> list[Verdict]`, which `judge_rows` prefers: one Verdict a row, in
    order, the same as rows get alone.
    """

    def __call__(self, prompt: str, responses: list[str]) -> list[float]: ...


class NoVerdict(Exception):
    """What a judge raises for a row that it cannot score. The text alone becomes the reason."""


@dataclass(frozen=True)
class Verdict:
    """scores: one for each response, or None, and then `reason` says why, without secrets of the environment."""

    scores: tuple[float, ...] | None
    reason: str = ""

    def __post_init__(self) -> None:
        text = self.reason.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair fits into no file
        object.__setattr__(self, "reason", redacted(text))

    @classmethod
    def failed(cls, reason: str) -> Verdict:
        """No scores; `reason` is cut to 300 characters."""
        return cls(None, redacted(reason)[:LONGEST_REASON])


def judge_row(judge: Judge, prompt: str, responses: Sequence[str]) -> Verdict:
    """Ask `judge` about one row. Whatever it raises or returns becomes a Verdict; only KeyboardInterrupt, SystemExit and
    their like pass through."""
    beat()
    try:
        answer = judge(prompt, list(responses))
    except NoVerdict as error:
        return Verdict.failed(str(error))
    except Exception as error:  # noqa: BLE001 - a judge is the user's code, and its failure is a result
        return Verdict.failed(_described(error))
    return verdict_of(answer, len(responses))


def judge_rows(judge: Judge, rows: Sequence[Row]) -> list[Verdict]:
    """A Verdict for each row: from `judge.many` where there is one, else row by row.

    Where `many` raises, rows are asked one by one, so that one bad row fails alone.
    """
    many = getattr(judge, "many", None)
    if many is None:
        return [judge_row(judge, prompt, responses) for prompt, responses in rows]
    try:
        verdicts = many([(prompt, list(responses)) for prompt, responses in rows])
    except Exception:  # noqa: BLE001 - as above; each row says what is wrong with it
        return [judge_row(judge, prompt, responses) for prompt, responses in rows]
    if not isinstance(verdicts, list | tuple) or len(verdicts) != len(rows):
        given = f"{len(verdicts)} of them" if isinstance(verdicts, list | tuple) else f"a {type(verdicts).__name__}"
        return [Verdict.failed(f"`many` was to return {len(rows)} verdicts and returned {given}")] * len(rows)
    return [_checked(verdict, len(responses)) for verdict, (_, responses) in zip(verdicts, rows, strict=True)]


def scores_of_one(many: Callable[[Sequence[Row]], list[Verdict]], prompt: str, responses: list[str]) -> list[float]:
    """Scores of one row from a judge's `many`. Raises NoVerdict with the reason of a failed one."""
    (verdict,) = many([(prompt, responses)])
    if verdict.scores is None:
        raise NoVerdict(verdict.reason)
    return list(verdict.scores)


def verdict_of(answer: Any, num_responses: int) -> Verdict:
    """What a judge returned as a Verdict: a list, tuple or array of `num_responses` finite numbers, else a failure."""
    if not isinstance(answer, list | tuple):
        listed = answer.tolist() if hasattr(answer, "tolist") else None
        if not isinstance(listed, list):
            return Verdict.failed(
                f"the judge returned a {type(answer).__name__}; a list of {num_responses} numbers is allowed"
            )
        answer = listed
    if len(answer) != num_responses:
        return Verdict.failed(f"the judge returned {len(answer)} scores for {num_responses} responses")
    scores = [_finite(score) for score in answer]
    for number, (score, given) in enumerate(zip(scores, answer, strict=True)):
        if score is None:
            shown = f"{given!r:.100}"
            return Verdict.failed(f"score {number} is {shown} ({type(given).__name__}); a finite number is allowed")
    return Verdict(tuple(score for score in scores if score is not None))


def _finite(score: Any) -> float | None:
    if isinstance(score, bool) or not isinstance(score, Real):
        return None
    try:
        value = float(score)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def _checked(verdict: Any, num_responses: int) -> Verdict:
    if not isinstance(verdict, Verdict):
        return Verdict.failed(f"`many` returned a {type(verdict).__name__} where a Verdict is allowed")
    return verdict if verdict.scores is None else verdict_of(verdict.scores, num_responses)


def _described(error: Exception) -> str:
    message = str(error)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
