"""The training stage: plan, run the gang, and hand what it says to the `Driver`.

Decision: ranks speak, the driver acts. Every file outside a staging folder is written by the driver, under the run's lock.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import digest_of, examples_digest, read_commit, require_lease
from raydpo.config import Config
from raydpo.config.cross_checks import outside_sources
from raydpo.driver.actors import demand, room_for_ranks, session_of, trainer_ranks
from raydpo.driver.moving_reference import References
from raydpo.driver.reference_stage import ReferenceReport
from raydpo.driver.standing_trainers import StandingTrainers
from raydpo.driver.train_events import Driver, Receive, TrainingReport
from raydpo.errors import OutOfMemoryError, WorkerError
from raydpo.metrics import Sinks, keep_lines
from raydpo.models.balancing import KEY, balancing_in
from raydpo.models.lora import check_lora
from raydpo.models.packed import check_packable
from raydpo.rundir.checkpoints import newest_checkpoint, set_damaged_aside
from raydpo.rundir.resume import Plan, check_state, plan_training, trajectory
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer, StageStarted
from raydpo.schema.rank_events import TrainEvent
from raydpo.train import TrainSpec
from raydpo.train.boundary import order_stop
from raydpo.train.loop import run as train_rank

_UNREAD = 4
"""Events that a rank may be ahead of the driver when they carry weights."""


_ASK_NODES_S = 5.0
"""Seconds between two questions whether a node is being drained, as Ray Train asks."""


def check_adapter(config: Config, folder: Path) -> None:
    """Raise ConfigError when the adapter that `train.lora` asks for cannot be put on the model in `folder`."""
    if (lora := config.train.lora) is not None:
        check_lora(folder, **lora.placed())
        if lora.quantize_base != "none":
            check_packable(folder)


def plan_stage(workspace: Workspace, observer: Observer, optimizer: Path | None = None) -> Plan:
    """What is to do, decided before anything is scored. Raises ResumeError for what cannot be continued, and ConfigError for
    an adapter that does not fit.

    optimizer: checkpoint of another run whose optimizer state a start goes on with.
    """
    check_adapter(workspace.config, workspace.trained_from.folder)
    digests = {
        "model weights": workspace.model_digest,
        "training data": examples_digest(workspace.data, "train"),
        "evaluation data": examples_digest(workspace.data, "eval"),
        **outside_sources(workspace.config),
        "model.dtype": workspace.dtype,
        KEY: balancing_in(workspace.model.folder, workspace.config.train.router_aux_loss).coefficient,
        "optimizer state": "none" if optimizer is None else digest_of(read_commit(optimizer)["files"]),
    }
    newest, skipped = newest_checkpoint(workspace.checkpoints)
    for text in skipped:
        observer(Note("warning", f"checkpoint passed over: {text}"))
    plan = plan_training(workspace.config, newest, trajectory(workspace.config, digests), skipped)
    if plan.action == "start" and optimizer is not None:
        check_state(optimizer)
    return replace(plan, optimizer=optimizer)


def training_stage(
    workspace: Workspace,
    plan: Plan,
    references: References,
    reference: ReferenceReport,
    observer: Observer,
    receive: Receive | None = None,
    trainers: StandingTrainers | None = None,
    is_wanted: Callable[[int], bool] = lambda num_steps: True,
) -> tuple[TrainingReport, dict[str, Any], list[dict[str, Any]], ReferenceReport]:
    """Train, or go on, or find that nothing is left to do. Returns the summary's "train" and "eval" parts, the updates
    of the reference, and the report of the first one with what trainers scored of it.

    reference: of the steps up to the next update; the later ones are made and scored here. receive: gets the weights after
    the last step, if one is made here. trainers: whose ranks train; None: ranks of this training. is_wanted: whether anybody
    takes the weights after so many steps.
    """
    if plan.action == "start" and (aside := workspace.set_aside()):
        observer(Note("info", f"the outputs of an earlier run were moved to {aside}"))
    if plan.checkpoint is not None:
        set_damaged_aside(workspace.checkpoints, plan.checkpoint)
    references.warn(observer)
    if text := runtime.short_stop(workspace.config.run.stop_grace_s):
        observer(Note("warning", text))
    if workspace.config.train.save == "weights" and plan.action != "done" and trainers is None:
        text = "train.save: weights: nothing goes on from these checkpoints; a run that is interrupted starts over"
        observer(Note("warning", text))
    prover = None if trainers is None else trainers.prover
    driver = Driver(workspace, plan, references, reference, observer, receive, prover, is_wanted)
    if plan.action != "done":
        observer(StageStarted("train", references.order.num_steps, "steps"))
        while not driver.is_over:
            stop = references.stop_after(driver.step)
            _run_healing(driver, stop, trainers)
            if driver.step == stop:
                driver.move_reference()
    elif workspace.config.profile:
        observer(Note("warning", "profile: training is over, so no step was left to record; set another run.dir"))
    references.retain()
    return *driver.finish(), driver.scored


def _run_healing(driver: Driver, stop: int | None, trainers: StandingTrainers | None) -> None:
    """Run the gang; where a rank is lost or a micro-batch does not fit, go on from the newest checkpoint.

    Decision: ranks start anew, because a rank that ended in the middle of a backward pass has left half a gradient and its
    peers in a collective. The global batch stays what it was, so no number of the run changes. A gang also ends, and starts
    larger, when there is room for more ranks.
    """
    while not driver.is_over and (stop is None or driver.step < stop):
        try:
            _run_gang(driver, stop, trainers)
        except OutOfMemoryError as error:
            if not error.smaller:
                raise
            driver.tokens_per_microbatch = error.smaller
            how = (
                f" with train.tokens_per_microbatch: {error.smaller}; the global batch and its update stay as they are."
            )
            _go_on(driver, error, how)
        except WorkerError as error:
            counted = driver.budget.spend(error, driver.in_work, driver.rows_in_work)
            _go_on(driver, error, f" ({counted}).")


def _go_on(driver: Driver, error: WorkerError, how: str) -> None:
    driver.rewind()
    driver.observer(Note("warning", f"{error} Going on after step {driver.step}{how}"))


def _run_gang(driver: Driver, stop: int | None, trainers: StandingTrainers | None) -> None:
    workspace = driver.workspace
    require_lease(workspace.dir)
    with ExitStack() as stack:
        stack.enter_context(session_of(workspace.config, (), driver.observer))
        runtime.check_storage(workspace.dir)  # asks every node: one that is being lost is known as lost afterwards
        runtime.wait_for_room(demand(workspace.config, "train"))
        spec, num_ranks = driver.spec(stop), room_for_ranks(workspace.config)
        stack.callback(_remove, spec.staging)
        names, warn = workspace.config.train.sinks, lambda text: driver.observer(Note("warning", text))
        driver.sinks = stack.enter_context(Sinks(workspace.dir, spec.resume_step, names, warn))
        keep_lines(workspace.dir / "bad_batches.jsonl", spec.resume_step)
        unread = _UNREAD if spec.push else None
        if trainers is None:
            function = partial(train_rank, spec=spec)
            ranks = trainer_ranks(workspace, "train", function, unread, num_ranks, driver.observer)
        else:
            ranks = trainers.run(workspace, spec, unread, num_ranks, driver.observer)
        stack.enter_context(closing(ranks))
        if driver.num_ranks not in (None, num_ranks):
            driver.observer(Note("info", f"{num_ranks} ranks from here on, {driver.num_ranks} before"))
        driver.num_ranks = num_ranks
        _follow(driver, ranks, spec)


def _remove(staging: Path) -> None:
    """Half a checkpoint would keep a full disk full. A signal meanwhile comes after it."""
    with runtime.deferred():
        shutil.rmtree(staging, ignore_errors=True)


def _follow(driver: Driver, ranks: Iterator[tuple[int, TrainEvent]], spec: TrainSpec) -> None:
    """Handle what ranks say to its end. What asks them to end lets them come to a step boundary and commit it."""
    spec.staging.mkdir(parents=True, exist_ok=True)
    nodes = _Nodes(driver, runtime.leaving_nodes())
    stop = partial(order_stop, spec.staging)
    with ExitStack() as stack:
        is_said = False
        for number, (_, event) in enumerate(ranks):
            if number == 0:  # what ranks did before was to load the model: nothing to save
                stack.enter_context(runtime.deferred(stop, driver.committed))
            before = driver.last
            driver.handle(event)
            if runtime.requested() and not is_said:
                is_said = True
                grace_s = driver.config.run.stop_grace_s
                text = f"asked to stop: saving at the next step boundary, within {grace_s:g} s; a second signal ends at once"
                driver.observer(Note("warning", text))
            if driver.config.train.save == "all" and nodes.have_changed(is_committed=driver.last is not before):
                stop()  # a checkpoint at the next boundary, and then with the nodes that there are


class _Nodes:
    """Whether a gang should make room for others, or take more room. leaving: nodes that were being drained before it began."""

    def __init__(self, driver: Driver, leaving: frozenset[str]) -> None:
        self._driver, self._leaving, self._since_s = driver, leaving, time.monotonic()

    def have_changed(self, *, is_committed: bool) -> bool:
        """Asked after each event; the cluster is asked every few seconds, and after a commit. Said once."""
        num_ranks, config = self._driver.num_ranks or 0, self._driver.config
        if is_committed and num_ranks < config.train.ranks[1] and room_for_ranks(config) > num_ranks:
            return True
        if time.monotonic() - self._since_s < _ASK_NODES_S:
            return False
        self._since_s = time.monotonic()
        fresh = runtime.leaving_nodes() - self._leaving
        self._leaving |= fresh
        if fresh:
            text = "a node is being taken away: saving at the next step boundary, and going on without it"
            self._driver.observer(Note("warning", text))
        return bool(fresh)
