"""Rows that hold a list of scored answers, read as best against worst.

Decision: the first of equal answers counts; rows whose best and worst score are equal are left out as tied_scores,
since either order would be noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from raydpo.data.bad_rows import BadRow, number, text
from raydpo.data.chat_rows import message_pair
from raydpo.data.format import Format
from raydpo.data.messages import Example, Row, is_message
from raydpo.data.plain_rows import standard
from raydpo.data.row_view import is_absent, peek

_PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input")
_ANSWERS_NAMES = ("answers", "responses", "completions", "candidates", "outputs", "generations")
_SCORES_NAMES = ("scores", "ratings", "rewards", "score", "rating", "reward")
_ANSWER_NAMES = ("response", "answer", "completion", "text", "content", "output")
_SCORE_NAMES = ("overall_score", "score", "rating", "reward")


def _first_name(row: Row, names: Sequence[str], kind: type) -> str | None:
    return next((name for name in names if isinstance(peek(row, name), kind)), None)


def fits_scored(row: Row) -> bool:
    """A prompt and a list of answers with scores, inside the answers or in a list of their own; no chosen and rejected."""
    if not is_absent(row.get("chosen")) and not is_absent(row.get("rejected")):
        return False
    name = _first_name(row, _ANSWERS_NAMES, list)
    if name is None or not row[name] or not any(row.get(prompt) for prompt in _PROMPT_NAMES):
        return False
    if isinstance(row[name][0], Mapping) and not is_message(row[name][0]):
        return _first_name(row[name][0], _ANSWER_NAMES, str) is not None
    return _first_name(row, _SCORES_NAMES, list) is not None


def scored(row: Row, num_answers: int) -> Example:
    """Best against worst by score; the first of equals. Equal best and worst scores: tied_scores."""
    name = _first_name(row, _ANSWERS_NAMES, list)
    if name is None:
        raise BadRow("missing_field", f"no list of answers; looked for {', '.join(_ANSWERS_NAMES)}")
    answers = list(row[name])
    scores_name = _first_name(row, _SCORES_NAMES, list)
    if scores_name is not None:
        scores = [number(score, scores_name) for score in row[scores_name]]
    else:
        scores = [number(_named(answer, _SCORE_NAMES, name), f"{name} score") for answer in answers]
    answers = [_named(answer, _ANSWER_NAMES, name) if isinstance(answer, Mapping) else answer for answer in answers]
    if len(scores) != len(answers):
        raise BadRow("length_mismatch", f"{len(answers)} answers but {len(scores)} scores")
    if len(answers) < num_answers:
        raise BadRow("too_few_answers", f"{name} holds {len(answers)} answers, {num_answers} are needed")
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    if num_answers > 1 and scores[best] == scores[worst]:
        raise BadRow("tied_scores", f"best and worst answer both have score {scores[best]:g}")
    prompt_name = next((candidate for candidate in _PROMPT_NAMES if row.get(candidate) is not None), "prompt")
    prompt, sides = row.get(prompt_name), {"chosen": answers[best], "rejected": answers[worst]}
    if not isinstance(prompt, list) and not isinstance(sides["chosen"], list):
        return standard({"prompt": text(prompt, prompt_name), **sides}, num_answers)
    turns = {
        side: [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        for side, answer in sides.items()
    }
    return message_pair({"prompt": prompt, "tools": row.get("tools"), **turns}, num_answers)


def _named(answer: Any, names: Sequence[str], where: str) -> Any:
    if not isinstance(answer, Mapping):
        raise BadRow("missing_field", f"{where} holds answers without a score")
    return next((answer[name] for name in names if answer.get(name) is not None), None)


SCORED = Format("scored", "lists of answers, best against worst", fits_scored, scored, place=40)
