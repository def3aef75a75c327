"""What goes between generators, judges and trainers of a round: prompts, samples, requests.

Every token list holds ids of the policy's tokenizer. Nothing here is ever tokenised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from raydpo.schema.shared_weights import SharedWeights


class Conversation(str):
    """A prompt of messages as one text, for a judge that reads text; and as they came, for one with a chat template.

    turns: the messages, role and content each. tools: descriptions of tools, or None.
    """

    turns: Sequence[Mapping[str, Any]]
    tools: Any

    def __new__(cls, text: str, turns: Sequence[Mapping[str, Any]] = (), tools: Any = None) -> Self:
        made = super().__new__(cls, text)
        made.turns, made.tools = turns, tools
        return made


@dataclass(frozen=True)
class Prompt:
    """One prompt of a round.

    key: digest of the ids.
    text: what a judge reads (of messages: a Conversation).
    ids: token ids that the policy reads.
    record: fields of the row that a preference record repeats ("prompt": text or messages; for spin "chosen" of the
        data, text or, where it has several turns, messages).
    """

    key: str
    text: str
    ids: tuple[int, ...]
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled.

    num_answers: of each prompt.
    max_new_tokens: of each answer, at most.
    temperature, top_p: as everywhere; not read when greedy.
    stop: texts that end an answer.
    greedy: the likeliest token each time.
    """

    num_answers: int
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    greedy: bool = False


@dataclass(frozen=True)
class Sample:
    """One answer.

    ids: token ids as they were sampled, the end-of-sequence token included if one was.
    text: without control tokens.
    ending: eos, stop (a text of `Sampling.stop`), or length (cut off).
    """

    ids: tuple[int, ...]
    text: str
    ending: Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Generate:
    """Sample answers to prompts.

    prompts: token ids of each.
    sampling: how.
    seed: of all of them together.
    version: of the policy that must sample.
    """

    prompts: tuple[tuple[int, ...], ...]
    sampling: Sampling
    seed: int
    version: int


@dataclass(frozen=True)
class Generated:
    """What a `Generate` gave.

    answers: answers[p][k] is the k-th answer to prompt p.
    version: of the policy that gave them.
    busy_s: seconds that it took; of several requests at a time, those since the one before was done.
    num_steps: forwards of the engine, counted likewise; 0 where it does not tell.
    """

    answers: tuple[tuple[Sample, ...], ...]
    version: int
    busy_s: float
    num_steps: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(len(sample.ids) for samples in self.answers for sample in samples)


@dataclass(frozen=True)
class Score:
    """Teacher-forced log-probs of answers: (prompt ids, answer ids) of each sequence."""

    sequences: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class Scored:
    """What a `Score` gave.

    nats: nats[s] has the log-prob of each answer token of sequence s.
    top_ids, top_nats: the likeliest token at each of those positions, and its log-prob.
    version: of the policy that scored.
    """

    nats: tuple[tuple[float, ...], ...]
    top_ids: tuple[tuple[int, ...], ...]
    top_nats: tuple[tuple[float, ...], ...]
    version: int


@dataclass(frozen=True)
class LoadFolder:
    """Take all weights from a model folder of the same architecture, in place. The policy is then `version`."""

    folder: str
    version: int


@dataclass(frozen=True)
class LoadWeights:
    """Take these weights in place (weight sync). They may come in several parts; in between nothing may be generated.

    weights: name in memory -> CPU tensor; tied weights come once.
    version: of the policy, once the last part is in.
    is_last: whether this part is the last one.
    is_partial: weights that come in no part are those of the folder that the engine started with (an adapter's merged
        matrices come alone).
    """

    weights: Mapping[str, Any]
    version: int
    is_last: bool
    is_partial: bool = False


@dataclass(frozen=True)
class TakeWeights:
    """Take weights from a file of this node, in place (weight sync). The policy is then `version`."""

    weights: SharedWeights
    version: int


@dataclass(frozen=True)
class DropWeights:
    """Remove the file of a push, whichever policy is held; asked of generators where the driver is on another node."""

    weights: SharedWeights


@dataclass(frozen=True)
class Sleep:
    """Give up the memory of the device until `Wake`, in the process that stands.

    keeps_weights: in main memory; otherwise no policy is held after it, and a folder is read.
    """

    keeps_weights: bool


@dataclass(frozen=True)
class Wake:
    """Take the memory of the device again. Nothing happens to one that is awake."""


Request = Generate | Score | LoadFolder | LoadWeights | TakeWeights | DropWeights | Sleep | Wake
