"""What a verb needs of the config: the checks that look at no more than the config, by the name of the verb.

Comes in: a config, or what is left of one whose broken keys were taken out. Goes out: finished sentences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raydpo.config.cross_checks import cross_checks
from raydpo.config.rounds_checks import awaits_function, rounds_checks
from raydpo.config.section_base import is_known, say_what_is_known

if TYPE_CHECKING:
    from raydpo.config.sections import Config


def verb_checks(config: Config, verb: str | None) -> list[str]:
    """Every problem that `raydpo VERB` would name before it looks at a file. None: those of every verb alike."""
    if verb == "iterate":
        return [*rounds_checks(config, has_judge=False), *cross_checks(config, verb)]
    if verb != "check":
        return cross_checks(config, verb)
    if not is_known(config, "rounds"):
        return cross_checks(config)
    if config.rounds is None:
        return cross_checks(config, verb)
    return [*rounds_checks(config, may_await_function(config)), *cross_checks(config, _verb_of_check(config))]


def may_await_function(config: Config) -> bool:
    """Whether a judge may be handed in later, as far as is known."""
    answer = say_what_is_known([lambda: ["yes" if awaits_function(config) else "no"]])
    return answer != ["no"]


def _verb_of_check(config: Config) -> str | None:
    """A check looks at rounds where there are any, and at data then only where there is any."""
    data = config.data if is_known(config, "data") else None
    if data is None or not (is_known(data, "train") and is_known(data, "eval")):
        return None
    return "check" if data.train or data.eval else "iterate"
