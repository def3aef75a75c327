"""The section `judge` of a config -> the judge it describes.

Comes in: a checked JudgeSection, the models that it names and, for a pairwise judge without an endpoint, the completer of
a local one. Goes out: a judge, models and files loaded.
Decision: called where the judge will work, in its actor; a judge is never shipped, only the section is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from raydpo.config.outside import calling, is_outside
from raydpo.config.round_sections import KINDS, JudgeSection
from raydpo.judge.asked import Asked, unheard
from raydpo.judge.deadline import bounded
from raydpo.judge.judge_inputs import Given, Models
from raydpo.judge.pairwise import Completer
from raydpo.judge.verdict import Judge

_NAMED = {"function": "judge.function {0.function}", "regex": "judge.pattern {0.pattern}"}


def build_judge(
    section: JudgeSection,
    complete: Completer | None = None,
    models: Models | None = None,
    tell: Callable[[Asked], None] = unheard,
) -> Judge:
    """Make the judge of `section`. Models go to the GPU where `section` reserves one.

    complete: replies of the model that `local_model(section)` names. models: what `find_models(section)` found; None: look
    now. tell: gets the progress of requests to a server, from several threads. Raises ConfigError and DataError as the judges
    do, and ConfigError where a local model is needed and `complete` is None.
    """

    def build(one: JudgeSection) -> Judge:
        make = KINDS.resolve(one.kind)
        with calling(KINDS.key, one.kind):
            judge: Judge = make(**one.settings) if is_outside(one.kind) else make(one, given)
        if one.kind not in ("function", "regex") and not is_outside(one.kind):
            return judge
        return bounded(judge, one.row_timeout_s, _NAMED.get(one.kind, one.kind).format(one))

    given = Given(complete, models, num_gpus=math.ceil(section.gpus_per_worker), tell=tell, build=build)
    return build(section)
