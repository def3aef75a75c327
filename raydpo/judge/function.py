"""A judge that is a function of the user's: "package.module:name" -> the function.

Goes out: a callable (prompt, responses) -> scores.
Decision: the module is imported by name on the node that judges; what is not there is an error before the first prompt.
"""

from __future__ import annotations

from raydpo.config.doors import JUDGE_FUNCTIONS
from raydpo.config.outside import importable as importable
from raydpo.config.round_sections import JudgeSection
from raydpo.judge.judge_inputs import Given
from raydpo.judge.verdict import Judge


def make(section: JudgeSection, given: Given) -> Judge:
    """The judge of a section of kind function."""
    return function_judge(section.function or "")


def function_judge(name: str) -> Judge:
    """Import the function `name` ("package.module:name").

    Raises ConfigError when the form is another, the module cannot be imported, or it has no such function.
    """
    judge: Judge = JUDGE_FUNCTIONS.resolve(name)
    return judge
