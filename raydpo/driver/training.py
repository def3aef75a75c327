"""The training stage: plan, run the gang, and hand what it says to the `Driver`.

Decision: ranks speak, the driver acts. Every file outside a staging folder is written by the driver, under the run's lock.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import digest_of, examples_digest, read_commit, require_lease
from raydpo.config import Config
from raydpo.config.cross_checks import outside_sources
from raydpo.driver.actors import actor_session, trainer_ranks
from raydpo.driver.moving_reference import References
from raydpo.driver.reference_stage import ReferenceReport
from raydpo.driver.train_events import Driver, Receive, TrainingReport
from raydpo.errors import OutOfMemoryError
from raydpo.metrics import Sinks, keep_lines
from raydpo.models.balancing import KEY, balancing_in
from raydpo.models.lora import check_lora
from raydpo.rundir.checkpoints import newest_checkpoint, set_damaged_aside
from raydpo.rundir.resume import Plan, plan_training, trajectory
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer, StageStarted
from raydpo.train.loop import run as train_rank

_UNREAD = 4
"""Events that a rank may be ahead of the driver when they carry weights."""


def check_adapter(config: Config, folder: Path) -> None:
    """Raise ConfigError when the adapter that `train.lora` asks for cannot be put on the model in `folder`."""
    if (lora := config.train.lora) is not None:
        check_lora(folder, **lora.placed())


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
    return replace(plan, optimizer=optimizer)


def training_stage(
    workspace: Workspace,
    plan: Plan,
    references: References,
    reference: ReferenceReport,
    observer: Observer,
    receive: Receive | None = None,
) -> tuple[TrainingReport, dict[str, Any], list[dict[str, Any]]]:
    """Train, or go on, or find that nothing is left to do. Returns the summary's "train" and "eval" parts and the updates
    of the reference.

    reference: of the steps up to the next update; the later ones are made and scored here. receive: gets the weights after
    the last step, if one is made here.
    """
    if plan.action == "start" and (aside := workspace.set_aside()):
        observer(Note("info", f"the outputs of an earlier run were moved to {aside}"))
    if plan.checkpoint is not None:
        set_damaged_aside(workspace.checkpoints, plan.checkpoint)
    references.warn(observer)
    driver = Driver(workspace, plan, references, reference, observer, receive)
    if plan.action != "done":
        observer(StageStarted("train", references.order.num_steps, "steps"))
        while True:
            stop = references.stop_after(driver.step)
            _run_fitting(driver, stop)
            if stop is None or driver.is_over:
                break
            driver.move_reference()
    elif workspace.config.profile:
        observer(Note("warning", "profile: training is over, so no step was left to record; set another run.dir"))
    references.retain()
    return driver.finish()


def _run_fitting(driver: Driver, stop: int | None) -> None:
    """Run the gang; where a micro-batch does not fit, go on from the newest checkpoint with smaller ones.

    Decision: ranks start anew, because a rank that ran out of memory in the middle of a backward pass has left half a
    gradient and its peers in a collective. The global batch stays what it was, so no number of the run changes.
    """
    while True:
        try:
            return _run_gang(driver, stop)
        except OutOfMemoryError as error:
            if not error.smaller:
                raise
            driver.tokens_per_microbatch = error.smaller
            driver.rewind()
            driver.observer(
                Note(
                    "warning",
                    f"{error} Going on after step {driver.step} with train.tokens_per_microbatch: {error.smaller}; the "
                    "global batch and its update stay as they are.",
                )
            )


def _run_gang(driver: Driver, stop: int | None) -> None:
    workspace = driver.workspace
    require_lease(workspace.dir)
    with ExitStack() as stack:
        stack.enter_context(actor_session(workspace, "train"))
        runtime.check_storage(workspace.dir)
        spec = driver.spec(stop)
        driver.sinks = stack.enter_context(Sinks(workspace.dir, spec.resume_step, workspace.config.train.sinks))
        keep_lines(workspace.dir / "bad_batches.jsonl", spec.resume_step)
        ranks = trainer_ranks(workspace, "train", partial(train_rank, spec=spec), _UNREAD if spec.push else None)
        for _, event in ranks:
            driver.handle(event)
    shutil.rmtree(spec.staging, ignore_errors=True)
