"""What the judges of a section read in addition to prompts and responses: models and files. Found once, described by content.

Comes in: a checked JudgeSection. Goes out: the models that workers load, and what scores depend on.
Decision: a hub id is resolved to a commit on the driver and workers take that commit, so that digests are of the weights
that gave the scores. Price: the driver downloads what a judge loads, and hashes it at every start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.artifacts import digest_of, file_sha256, tokenizer_digest, weights_digest
from raydpo.config.outside import is_outside, source_sha256
from raydpo.config.round_sections import JUDGE_FREE, KINDS, JudgeSection, kind_of
from raydpo.errors import ConfigError
from raydpo.judge.asked import Asked
from raydpo.judge.verdict import Judge
from raydpo.models.resolve import ResolvedModel, resolve_model
from raydpo.redaction import redacted_values

Models = Mapping[str, ResolvedModel]
"""Name as the section gives it -> where it was found."""


@dataclass(frozen=True)
class Given:
    """What judges of ours are made with in addition to their section.

    complete: replies of a language model, if there is one.
    models: what `find_models` found; None: look now.
    num_gpus: of their worker, a part of one counts as one; 0: they compute on the CPU.
    tell: gets the progress of requests to a server.
    build: makes the judge of a member.
    """

    complete: Any
    models: Models | None
    num_gpus: int
    tell: Callable[[Asked], None]
    build: Callable[[JudgeSection], Judge]


def members_of(section: JudgeSection) -> list[JudgeSection]:
    """The judges of an ensemble; none of any other kind."""
    return [JudgeSection.model_validate(member) for member in section.members]


def loads_model(section: JudgeSection) -> bool:
    """Whether the judge itself, not one of its members, loads a model in its worker."""
    loads = kind_of(section.kind).loads
    return loads == "classifier" or (loads == "language model" and section.endpoint is None)


def asks_local_model(section: JudgeSection) -> bool:
    """Whether the judge itself asks a language model that its worker loads."""
    return loads_model(section) and kind_of(section.kind).loads == "language model"


def asks_local_models(section: JudgeSection) -> bool:
    """Whether the judge, or one of its members, asks a language model that its worker loads."""
    return any(asks_local_model(each) for each in _judges(section))


def asks_server(section: JudgeSection) -> bool:
    """Whether the judge, or one of its members, asks a server."""
    return any(each.endpoint is not None for each in _judges(section))


def shows_marks(section: JudgeSection) -> bool:
    """Whether the judge, or one of its members, shows answers to a language model between marks."""
    return any(kind_of(each.kind).loads == "language model" for each in _judges(section))


def runs_named_code(section: JudgeSection) -> bool:
    """Whether the config names what runs in the judge or in one of its members, a function or a pattern: it may hang."""
    return any(each.kind in ("function", "regex") or is_outside(each.kind) for each in _judges(section))


def is_comparative(section: JudgeSection) -> bool:
    """Whether scores are of the responses of one row against each other, and mean nothing across rows. Of an outside judge
    its class says so."""
    if is_outside(section.kind):
        return bool(getattr(KINDS.resolve(section.kind), "is_comparative", False))
    return kind_of(section.kind).is_comparative or any(map(is_comparative, members_of(section)))


def may_use_gpu(section: JudgeSection) -> bool:
    """Whether a GPU of its own can be of use to the judge: to a model, or to code of others, which may do what it likes."""
    return any(loads_model(each) or kind_of(each.kind).runs_anything for each in _judges(section))


def local_model(section: JudgeSection) -> str | None:
    """Folder or hub id of the language model that pairwise judges without an endpoint ask; None when there is no such.

    Raises ConfigError when members of an ensemble name different ones.
    """
    models = sorted({each.model or "" for each in _judges(section) if asks_local_model(each)})
    if len(models) > 1:
        raise ConfigError(
            f"judge.members: pairwise judges without an endpoint name {len(models)} models ({', '.join(models)}); a judge "
            "worker loads one, so nothing was loaded. Name one model, or serve the others and set their endpoint."
        )
    return models[0] if models else None


def reply_tokens(section: JudgeSection) -> int:
    """Longest reply of the model of `local_model`: what the judge that asks it allows, or the most of several members."""
    return max(each.max_tokens for each in _judges(section) if asks_local_model(each))


def find_model(name: str) -> ResolvedModel:
    """The model `name` of a judge, with weights that can be read. Raises ConfigError."""
    found = resolve_model("judge.model", name)
    if not all(any(folder.glob("*.safetensors")) for folder in found.folders):
        raise ConfigError(
            f"judge.model: {name} has no *.safetensors (looked in {found.folder}); weights in other files are not read, "
            "because loading those may run code. Nothing was scored. Convert the model with save_pretrained."
        )
    return found


def find_models(section: JudgeSection) -> dict[str, ResolvedModel]:
    """Every model that a worker of `section` loads. Raises ConfigError for the first one that is not there."""
    names = {each.model or "" for each in _judges(section) if loads_model(each)}
    return {name: find_model(name) for name in sorted(names)}


def inputs_of(section: JudgeSection, models: Models) -> dict[str, Any]:
    """What scores depend on, as JSON: settings but those of JUDGE_FREE, and contents in place of paths.

    Of a function and of the model behind an endpoint only the name is known, of a secret the name of its variable.
    """
    kept = section.model_dump(mode="json", exclude={*JUDGE_FREE, "answers", "members", "settings"})
    inputs: dict[str, Any] = redacted_values(kept)
    if is_outside(section.kind):
        settings = redacted_values(dict(section.settings))
        inputs |= {"settings": settings, "source_sha256": source_sha256(section.kind)}
    if kind_of(section.kind).loads != "language model":
        del inputs["max_tokens"]  # which came later than scores that are kept
    if section.answers is not None:
        inputs["answers_sha256"] = file_sha256(Path(section.answers).expanduser())
    if loads_model(section):
        found = models[section.model or ""]
        del inputs["model"]
        digests = [weights_digest(folder) for folder in found.folders]
        whole = digests[0] if found.base is None else digest_of(digests)
        inputs |= {"model_digest": whole, "tokenizer_digest": tokenizer_digest(found.tokenizer)}
    if section.members:
        inputs["inputs_of_members"] = [inputs_of(member, models) for member in members_of(section)]
    return inputs


def _judges(section: JudgeSection) -> Iterator[JudgeSection]:
    """The judge and, of an ensemble, its members at any depth."""
    yield section
    for member in members_of(section):
        yield from _judges(member)
