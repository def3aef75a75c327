"""The actors that a run asks the runtime for: a session with room for its roles, and the gang of trainer ranks.

Comes in: a workspace. Goes out: an open session, and what ranks yield. Decision: sizes are read from the config here and
nowhere else, so that what is checked at the start is what is asked for later.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, TypeVar

from raydpo import runtime
from raydpo.config import Config
from raydpo.config.round_sections import GenerateSection, JudgeSection
from raydpo.config.scheduling_section import SchedulingSection
from raydpo.config.sections import ReferenceSection, TrainSection
from raydpo.config.worker_range import bounds
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer, ignore

T = TypeVar("T")

_MODEL_LIBRARIES = ("torch", "transformers.modeling_utils")
"""What every role that holds a model imports. Not DeepSpeed, which chooses its accelerator while it is imported."""


def libraries_of(engine: str = "transformers") -> Sequence[str]:
    """Modules that processes with a model of this engine may share. vLLM prepares its process by itself."""
    return _MODEL_LIBRARIES if engine == "transformers" else ()


def session_of(
    config: Config,
    demands: Sequence[runtime.Demand] = (),
    observer: Observer = ignore,
    *,
    in_process: bool = True,
    lends_cpus: bool = False,
) -> AbstractContextManager[Any]:
    """A session with the runtime that a config names. observer: is told what is waited for. in_process: whether
    a role of one actor may share this process. lends_cpus: as of `runtime.session`."""
    run = config.run
    patience = runtime.NodePatience(run.wait_for_nodes_s, lambda text: observer(Note("info", text)))
    in_process = in_process and run.runtime_in_process
    return runtime.session(
        demands, kind=run.runtime, in_process=in_process, patience=patience, run=run.dir, lends_cpus=lends_cpus
    )


def actor_session(
    workspace: Workspace, observer: Observer, *roles: str, lends_cpus: bool = False
) -> AbstractContextManager[Any]:
    """A session of `run.runtime` with enough for each of `roles` ("reference", "train"), which run one after the other."""
    demands = [demand(workspace.config, role) for role in roles]
    return session_of(workspace.config, demands, observer, lends_cpus=lends_cpus)


def demand(config: Config, role: str) -> runtime.Demand:
    """What a role needs at least: the fewest workers that its section allows."""
    section = getattr(config, role)
    workers, _ = bounds(section.num_workers)
    return runtime.Demand(
        role, workers, section.cpus_per_worker, section.gpus_per_worker, placement(section.scheduling)
    )


def placement(scheduling: SchedulingSection) -> runtime.Placement:
    """On which nodes the actors of a section go."""
    return runtime.Placement(scheduling.strategy, scheduling.resources, scheduling.label_selector)


def room_for_ranks(config: Config) -> int:
    """Trainer ranks that the nodes of the open session have room for, within the range that the config allows."""
    least, most = config.train.ranks
    return max(least, runtime.count_room(replace(demand(config, "train"), workers=most)))


def show_step(step: int, metrics: Mapping[str, float], num_ranks: int) -> None:
    """Let the cluster's monitoring see a training step."""
    shown: dict[str, float] = {"raydpo_step": step, "raydpo_ranks": num_ranks}
    names = {
        "loss": "raydpo_loss",
        "rewards/margins": "raydpo_reward_margin",
        "tokens_per_s": "raydpo_tokens_per_second",
    }
    shown |= {gauge: metrics[name] for name, gauge in names.items() if name in metrics}
    for gauge, value in shown.items():
        runtime.gauge(gauge, value, "train")


def worker_limits(section: GenerateSection | JudgeSection | ReferenceSection, name: str) -> dict[str, Any]:
    """Threads, GPUs, nodes, retries and deadline of a pool of the workers that a section describes. name: of the section."""
    return {
        "threads": section.cpus_per_worker,
        "gpus": section.gpus_per_worker,
        "max_retries": section.max_retries,
        "hang_timeout_s": section.hang_timeout_s,
        "hang_key": f"{name}.hang_timeout_s",
        "placement": placement(section.scheduling),
    }


def trainer_limits(train: TrainSection) -> dict[str, Any]:
    """CPUs, nodes and deadline of a pool that does a piece of work for the trainers."""
    return {
        "cpus": train.cpus_per_worker,
        "hang_timeout_s": train.hang_timeout_s,
        "hang_key": "train.hang_timeout_s",
        "placement": replace(placement(train.scheduling), strategy="PACK"),
    }


def trainer_ranks(
    workspace: Workspace,
    name: str,
    function: Callable[[runtime.RankContext], Iterator[T]],
    max_unread: int | None = None,
    num_ranks: int | None = None,
    observer: Observer = ignore,
) -> Generator[tuple[int, T], None, None]:
    """Run `function` on the gang of ranks that `train` asks for: (rank, what it yields). Needs a session.

    num_ranks: None: the fewest that the config allows. observer: is told which node has which ranks, where there are several.
    """

    config = workspace.config
    gang = trainer_gang(config, name, num_ranks or config.train.ranks[0], observer, keeps=False)
    try:
        yield from gang.run(function, max_unread)
    finally:
        gang.close()


def trainer_gang(
    config: Config, name: str, num_ranks: int, observer: Observer, *, keeps: bool, home: runtime.Backend | None = None
) -> runtime.Gang:
    """The ranks that `train` asks for, which start when they have something to run. keeps, home: as `keeps` and `backend` of
    `Gang`."""

    def placed(places: Sequence[runtime.Place]) -> None:
        if runtime.count_nodes() > 1:
            observer(Note("info", f"{name}: ranks {runtime.spread_of(places)}"))

    train = config.train
    return runtime.Gang(
        name,
        num_ranks=num_ranks,
        cpus=train.cpus_per_worker,
        gpus=train.gpus_per_worker,
        hang_timeout_s=train.hang_timeout_s,
        preload=libraries_of(),
        placement=placement(train.scheduling),
        placed=placed,
        keeps=keeps,
        backend=home,
    )
