"""Everything that a run of rounds needs before its first prompt: sections checked, prompts read, the engine described."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from raydpo import runtime
from raydpo.artifacts import digest_of_rows, fence, settle, shown, weights_digest, write_json
from raydpo.config import Config
from raydpo.config.cross_checks import outside_sources
from raydpo.config.mixture_entry import paths_of
from raydpo.config.outside import is_outside, source_sha256
from raydpo.config.round_sections import RoundsSection
from raydpo.config.rounds_checks import awaits_function
from raydpo.data.embedding_rows import smallest
from raydpo.data.ends_said import ends_said
from raydpo.data.offline_share import sources_digest
from raydpo.data.prompts import PromptReport, read_prompts
from raydpo.data.row_ends import decided
from raydpo.data.template import open_tokenizer
from raydpo.data.tokenizer import TextTokenizer
from raydpo.driver.actors import demand
from raydpo.driver.judges import Judging
from raydpo.driver.ledger import Ledger
from raydpo.errors import ConfigError
from raydpo.generate.engine import EngineSpec
from raydpo.judge.verdict import Judge
from raydpo.models.balancing import KEY as BALANCING
from raydpo.models.balancing import balancing_in
from raydpo.models.config_file import num_embeddings
from raydpo.redaction import redacted_values
from raydpo.rounds.preflight import check_room, check_rounds, check_same_run
from raydpo.rundir.rounds_folder import RoundsFolder
from raydpo.rundir.workspace import Workspace, find_workspace
from raydpo.schema.events import Note, Observer
from raydpo.schema.samples import Prompt


@dataclass(frozen=True)
class Setup:
    """Everything that a run of rounds has before its first round.

    config: fitted to the model.
    layout: paths of the run.
    engine: how a generator is made, with the initial policy.
    tokenizer: of the policy.
    prompts, eval_prompts: what rounds sample from, and what evaluations answer.
    judging: what scores answers.
    demands: CPUs and GPUs of every role.
    ledger: what roles start and load.
    """

    config: Config
    layout: RoundsFolder
    engine: EngineSpec
    tokenizer: TextTokenizer
    prompts: Sequence[Prompt]
    eval_prompts: Sequence[Prompt]
    judging: Judging
    demands: tuple[runtime.Demand, ...]
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def rounds(self) -> RoundsSection:
        return self.layout.rounds

    def check(self) -> None:
        """In a Ray session, before anything is written. Raises ResourceError and ResumeError."""
        check_room(self.config)
        digests = {
            "model weights": weights_digest(self.layout.initial.folder),
            BALANCING: balancing_in(self.layout.initial.folder, self.config.train.router_aux_loss).coefficient,
            "model.dtype": self.engine.dtype,
            "prompts": digest_of_rows(map(vars, self.prompts)),
            "held-out prompts": digest_of_rows(map(vars, self.eval_prompts)),
            **{f"judge.{key}": value for key, value in self.judging.inputs.items()},
        }
        for key, name in (("rounds.pairs", self.rounds.pairs), ("generate.engine", self.engine.engine)):
            if is_outside(name):
                digests[f"source of {key} {name}"] = source_sha256(name)
        digests |= outside_sources(self.config)
        if self.rounds.offline_share:
            digests["offline pairs"] = sources_digest("data.train", paths_of(self.config.data.train))
        check_same_run(self.layout, digests)

    def write_summary(self, summary: dict[str, Any]) -> None:
        fence(self.layout.dir / "summary.json")
        write_json(self.layout.dir / "summary.json", redacted_values(summary))
        settle(self.layout.dir / "summary.json")


def set_up(config: Config, judge: Judge | None, observer: Observer, *, weights: bool = True) -> Setup:
    """Raises ConfigError and DataError with every problem, before Ray is started. weights: whether those of a hub id are
    downloaded."""
    check_rounds(config, judge is not None)
    workspace = find_workspace(config, "iterate", weights=weights)
    for text in workspace.notes:
        observer(Note("warning", text))
    config = workspace.config
    engine = _engine(workspace)
    tokenizer = open_tokenizer(str(workspace.model.tokenizer), config.data.chat_template)
    tokenizer.ends = decided(tokenizer, config.data.bos, config.data.eos, tuple(reversed(workspace.model.folders)))
    ends = ends_said(tokenizer)
    if not (config.data.train or config.data.eval):
        observer(Note("info", ends.text))
    prompts, eval_prompts = _read(workspace, tokenizer, observer)
    layout = RoundsFolder(config, workspace.dir, workspace.model)
    is_colocated, ledger = layout.rounds.placement == "colocated", Ledger()
    judging = Judging(judge, config.judge, engine, is_colocated=is_colocated, ledger=ledger)
    policy = replace(engine, end_ids=ends.ids)
    return Setup(config, layout, policy, tokenizer, prompts, eval_prompts, judging, _demands(config), ledger)


def examine(config: Config, observer: Observer) -> dict[str, Any]:
    """What `raydpo check` says of a config with rounds. Loads no model, starts no Ray and writes nothing.

    Where the config names no judge, one is taken to be handed in later. Raises ConfigError and DataError as `set_up` does.
    """
    judge = None
    if awaits_function(config):
        observer(Note("info", "the config names no judge: raydpo.iterate(config, judge=function) has to bring one"))
        judge = _not_asked
    setup = set_up(config, judge, observer, weights=False)
    counts = {"prompts": len(setup.prompts), "eval_prompts": len(setup.eval_prompts)}
    return {
        "run_dir": shown(setup.layout.dir),
        "prompts": {**counts, "in_both": num_in_both(setup.prompts, setup.eval_prompts)},
    }


def _not_asked(prompt: str, responses: list[str]) -> list[float]:
    """Stands for a judge that is handed in later."""
    raise AssertionError("a check asks no judge")


def _engine(workspace: Workspace) -> EngineSpec:
    config, generate = workspace.config, workspace.config.generate
    return EngineSpec(
        model=str(workspace.model.folder),
        engine=generate.engine,
        dtype="float32" if workspace.dtype == "float32" else "bfloat16",
        use_gpu=generate.gpus_per_worker > 0,
        gpu_share=min(1.0, generate.gpus_per_worker) or 1.0,
        parallel=generate.vllm.parallel(generate.gpus_per_worker),
        vllm=generate.vllm,
        max_length=config.data.max_length,
        threads=max(1, int(generate.cpus_per_worker)),
    )


def _read(workspace: Workspace, tokenizer: TextTokenizer, observer: Observer) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts and held-out prompts that leave room for the longest answer; reports what became of the lines."""
    config = workspace.config
    rounds, generate, found = config.rounds, config.generate, dict[str, list[Prompt]]()
    assert rounds is not None
    room = config.data.max_length - max(generate.max_new_tokens, rounds.eval_max_new_tokens or 0)
    if room < 1:
        raise ConfigError(
            f"generate.max_new_tokens: {generate.max_new_tokens} leaves no room for a prompt in data.max_length = "
            f"{config.data.max_length}. Lower it, or raise data.max_length as far as the model has positions."
        )
    for key, names in (("rounds.prompts", rounds.prompts), ("rounds.eval_prompts", rounds.eval_prompts)):
        found[key], report = read_prompts(
            key,
            names,
            tokenizer,
            max_length=room + 1,
            control_tokens=config.data.control_tokens,
            max_bad_fraction=config.data.max_bad_fraction,
            embedding=smallest([("model.path", num_embeddings("model.path", workspace.model.folder))]),
            settings=config.data,
        )
        for source, columns in report.columns_not_read.items():
            observer(Note("info", f"{key}: {source}: columns that are not read: {', '.join(columns)}"))
        if names:
            observer(Note("info", f"{key}: {_said(report)}"))
    prompts, eval_prompts = found.values()
    if number := num_in_both(prompts, eval_prompts):
        observer(
            Note(
                "warning",
                f"{number:,} of {len(eval_prompts):,} held-out prompts (rounds.eval_prompts) stand in rounds.prompts too: "
                "the policy trains on them, and will do better there than on prompts that it has not seen",
            )
        )
    return prompts, eval_prompts


def num_in_both(prompts: Sequence[Prompt], eval_prompts: Sequence[Prompt]) -> int:
    """How many held-out prompts are, token for token, prompts that are trained on."""
    return len({prompt.key for prompt in prompts} & {prompt.key for prompt in eval_prompts})


def _said(report: PromptReport) -> str:
    """One line on what became of the lines."""
    left_out = ", ".join(f"{number:,} {reason}" for reason, number in report.quarantined.items())
    text = f"{report.num_prompts:,} prompts of {report.lines_read:,} lines"
    return (
        text
        + f", {report.num_duplicates:,} twice" * bool(report.num_duplicates)
        + f", left out: {left_out}" * bool(left_out)
    )


def _demands(config: Config) -> tuple[runtime.Demand, ...]:
    """Of every role that reserves something; colocated generators on CPUs share those of the trainers."""
    roles = ["train", *(["reference"] if config.objective.needs_reference else [])]
    if config.rounds is not None and (config.rounds.placement == "split" or config.generate.gpus_per_worker):
        roles.append("generate")
    if config.judge is not None and config.judge.gpus_per_worker:
        roles.append("judge")
    return tuple(demand(config, role) for role in roles)
