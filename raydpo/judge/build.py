"""The section `judge` of a config -> the judge it describes.

Comes in: a checked JudgeSection, the models that it names and, for a pairwise judge without an endpoint, the completer of
a local one. Goes out: a judge, models and files loaded.
Decision: called where the judge will work, in its actor; a judge is never shipped, only the section is.
"""

from __future__ import annotations

from raydpo.config.round_sections import JudgeSection
from raydpo.errors import ConfigError, UserError
from raydpo.judge.endpoint import Endpoint
from raydpo.judge.ensemble import Ensemble, Member
from raydpo.judge.function import function_judge
from raydpo.judge.judge_inputs import Models, find_models, local_model, members_of
from raydpo.judge.pairwise import Completer, Pairwise
from raydpo.judge.rules import exact_judge, json_judge, length_judge, regex_judge
from raydpo.judge.verdict import Judge


def build_judge(section: JudgeSection, complete: Completer | None = None, models: Models | None = None) -> Judge:
    """Make the judge of `section`. Models go to the GPU where `section` reserves one.

    complete: replies of the model that `local_model(section)` names. models: what `find_models(section)` found; None: look
    now. Raises ConfigError and DataError as the judges do, and ConfigError where a local model is needed and `complete` is
    None.
    """
    return _build(section, complete, models, use_gpu=section.gpus_per_worker > 0)


def _build(section: JudgeSection, complete: Completer | None, models: Models | None, *, use_gpu: bool) -> Judge:
    match section.kind:
        case "function":
            return function_judge(section.function or "")
        case "regex":
            return regex_judge(section.pattern or "")
        case "exact":
            return exact_judge(section.answers or "")
        case "json":
            return json_judge()
        case "length":
            return length_judge(section.target_length or 1)
        case "reward_model":
            from raydpo.judge.reward_model import RewardModel

            found = (find_models(section) if models is None else models)[section.model or ""]
            return RewardModel(found.here(), section.tokens_per_batch, use_gpu=use_gpu)
        case "pairwise":
            return Pairwise(_completer(section, complete), section.instruction)
        case "ensemble":
            return _ensemble(section, complete, models, use_gpu=use_gpu)


def _ensemble(section: JudgeSection, complete: Completer | None, models: Models | None, *, use_gpu: bool) -> Judge:
    local_model(section)
    members = []
    for number, member in enumerate(members_of(section)):
        try:
            judge = _build(member, complete, models, use_gpu=use_gpu)
        except UserError as error:
            problems = [f"judge.members, number {number}: {problem}" for problem in error.problems]
            raise type(error)(problems) from error
        members.append(Member(f"member {number} ({member.kind})", member.weight, judge))
    return Ensemble(members)


def _completer(section: JudgeSection, complete: Completer | None) -> Completer:
    if section.endpoint is not None:
        return Endpoint(
            section.endpoint,
            section.model or "",
            api_key_variable=section.api_key_variable,
            timeout_s=section.timeout_s,
        )
    if complete is None:
        raise ConfigError(
            f"judge.endpoint is missing, and no local model was handed over to ask {section.model!r}; nothing could have been "
            "compared. Set judge.endpoint to the URL of a server, or hand `complete` to build_judge."
        )
    return complete
