"""Judges that are rules on the text: a pattern, the right answer, valid JSON, a length.

Comes in: a prompt and its responses. Goes out: one number each.
Decision: a rule that cannot decide (a prompt without a known answer) raises; it never answers 0. Patterns and files are
read once, when the judge is made, so that mistakes in them stop a run before anything was generated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from raydpo.config.round_sections import JudgeSection
from raydpo.errors import ConfigError, DataError
from raydpo.judge.judge_inputs import Given
from raydpo.judge.verdict import Judge, NoVerdict


def make_regex(section: JudgeSection, given: Given) -> Judge:
    """The judge of a section of kind regex."""
    return regex_judge(section.pattern or "")


def make_exact(section: JudgeSection, given: Given) -> Judge:
    """The judge of a section of kind exact."""
    return exact_judge(section.answers or "")


def make_json(section: JudgeSection, given: Given) -> Judge:
    """The judge of a section of kind json."""
    return json_judge()


def make_length(section: JudgeSection, given: Given) -> Judge:
    """The judge of a section of kind length."""
    return length_judge(section.target_length or 1)


def regex_judge(pattern: str) -> Judge:
    """1 where `pattern` is found anywhere in a response (re.search), else 0. Raises ConfigError when it is no pattern."""
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(
            f"judge.pattern: {pattern!r} is not a regular expression of Python: {error}. No response could have been scored. "
            r"Fix it; a literal ( [ . * + ? or \ needs a \ before it."
        ) from error
    return _each(lambda response: float(compiled.search(response) is not None))


def exact_judge(path: str) -> Judge:
    r"""1 for a response that is the answer of the prompt's row in the JSONL file `path`, else 0.

    Rows are {"prompt": text, "answer": text}. Prompts are compared as they are, answers without outer white space. A
    prompt that the file lacks gets no verdict. Raises DataError with every problem of the file.
    """
    answers = _read_answers(Path(path).expanduser())

    def judge(prompt: str, responses: list[str]) -> list[float]:
        if prompt not in answers:
            raise NoVerdict(f"no row of {path} has the prompt {prompt!r:.150}")
        return [float(response.strip() == answers[prompt]) for response in responses]

    return judge


def json_judge() -> Judge:
    """1 for a response that is one JSON text (RFC 8259; its white space around it is fine, NaN is not), else 0.

    Texts nested deeper than the parser can follow, about a thousand levels, get 0, as section 9 of the RFC allows.
    """
    return _each(lambda response: float(is_json(response)))


def is_json(text: str) -> bool:
    """Whether all of `text` is one JSON value."""
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)  # str: numbers of any length
    except (ValueError, RecursionError):
        return False
    return True


def length_judge(target_length: int) -> Judge:
    """Minus the distance of a response from `target_length` characters, divided by it: 0 is best."""
    return _each(lambda response: -abs(len(response) - target_length) / target_length)


def _each(score: Callable[[str], float]) -> Judge:
    return lambda prompt, responses: [score(response) for response in responses]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_answers(path: Path) -> dict[str, str]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(
            f"judge.answers: {path} cannot be read: {error.strerror}. A JSONL file with prompt and answer in each row is "
            f"needed, at a path that every node sees (looked for {path.absolute()})."
        ) from error
    answers: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row, problem = _row(line)
        if not problem and answers.setdefault(row["prompt"], row["answer"].strip()) != row["answer"].strip():
            problem = "its prompt has another answer in a row above; one answer to a prompt is allowed"
        if problem:
            problems.append(f"judge.answers: {path}:{number}: {problem}.")
    if not answers and not problems:
        problems.append(f"judge.answers: {path} has no rows; every prompt would have gone without a verdict.")
    if problems:
        raise DataError(problems)
    return answers


def _row(line: bytes) -> tuple[dict[str, Any], str]:
    """A row with prompt and answer, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return {}, f"not a line of JSON in UTF-8 ({error})"
    if not isinstance(row, dict):
        return {}, f'of type {type(row).__name__}; an object {{"prompt": text, "answer": text}} is allowed'
    for key in ("prompt", "answer"):
        if not isinstance(row.get(key), str):
            given = f"is of type {type(row[key]).__name__}" if key in row else "is missing"
            return {}, f"{key} {given}; text is needed"
    return row, ""
