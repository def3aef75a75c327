"""The training stage on the driver: plan, run the gang, commit what it stages, write down what it says.

Decision: ranks speak, the driver acts. Every file outside a staging folder is written here, under the run's lock.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from raydpo import runtime
from raydpo.artifacts import examples_digest
from raydpo.batches.order import Order
from raydpo.errors import ResumeError
from raydpo.metrics import Sinks, Watch, keep_lines
from raydpo.models.lora import merge_lora
from raydpo.pipelines.checkpoints import (
    best_metric,
    best_valid,
    commit_checkpoint,
    newest_checkpoint,
    retain,
    set_damaged_aside,
)
from raydpo.pipelines.plan import Checkpoint, Plan, plan_training, trajectory
from raydpo.pipelines.stages import ReferenceReport, ray_session, rescore_probe, trainer_ranks
from raydpo.pipelines.workspace import Workspace
from raydpo.schema.events import Advanced, Note, Observer, StageDone, StageStarted
from raydpo.schema.training import Evaluated, Finished, Probed, Skipped, Staged, Stepped, TrainEvent
from raydpo.train import TrainSpec
from raydpo.train.loop import run as train_rank

TrainingReport = dict[str, Any]


def plan_stage(workspace: Workspace, observer: Observer) -> Plan:
    """What is to do, decided before anything is scored. Raises ResumeError for what cannot be continued."""
    digests = {
        "model weights": workspace.model_digest,
        "training data": examples_digest(workspace.data, "train"),
        "evaluation data": examples_digest(workspace.data, "eval"),
    }
    newest, skipped = newest_checkpoint(workspace.checkpoints)
    for text in skipped:
        observer(Note("warning", f"checkpoint passed over: {text}"))
    plan = plan_training(workspace.config, newest, trajectory(workspace.config, digests), skipped)
    if plan.checkpoint is not None:
        _same_reference(plan.checkpoint, workspace)
    return plan


def training_stage(
    workspace: Workspace, plan: Plan, num_examples: int, reference: ReferenceReport, observer: Observer
) -> tuple[TrainingReport, dict[str, Any]]:
    """Train, or go on, or find that nothing is left to do. Returns the summary's "train" and "eval" parts."""
    if plan.action == "start" and (aside := workspace.set_aside()):
        observer(Note("info", f"the outputs of an earlier run were moved to {aside}"))
    if plan.checkpoint is not None:
        set_damaged_aside(workspace.checkpoints, plan.checkpoint)
    train = workspace.config.train
    order = Order(num_examples, train.global_batch_pairs, train.epochs, workspace.config.run.seed, train.max_steps)
    driver = Driver(workspace, plan, order, reference, observer)
    if plan.action != "done":
        _run_gang(driver)
    return driver.finish()


def _same_reference(checkpoint: Checkpoint, workspace: Workspace) -> None:
    now = workspace.identity.digest if workspace.identity else None
    then = checkpoint.meta["reference"]
    if then != now:
        raise ResumeError(
            f"{checkpoint.folder} was trained against reference {then}, this config's reference is {now}. Going on would "
            "measure rewards from another model. Restore the reference's files, or set run.dir to a new folder."
        )


def _run_gang(driver: Driver) -> None:
    workspace, plan = driver.workspace, driver.plan
    config = workspace.config
    other_start = plan.action == "start" and workspace.needs_reference and not workspace.starts_at_reference
    with ExitStack() as stack:
        stack.enter_context(ray_session(workspace, *(("reference", "train") if other_start else ("train",))))
        runtime.check_storage(workspace.dir)
        if other_start:
            driver.probe = rescore_probe(workspace, driver.reference, driver.observer)
        reference = None
        if driver.reference.identity is not None:
            reference = (workspace.cache_dir, driver.reference.identity)
        spec = TrainSpec(
            config=config,
            model=workspace.model,
            dtype=workspace.dtype,
            data=workspace.data,
            staging=workspace.staging(),
            reference=reference,
            probe=workspace.starts_at_reference,
            resume=plan.checkpoint.folder if plan.checkpoint else None,
            resume_step=plan.checkpoint.step if plan.checkpoint else 0,
            eval_history=tuple(driver.eval_history),
            skipped_steps=driver.skipped,
            chat_template=Path(template).expanduser().read_text() if (template := config.data.chat_template) else None,
        )
        driver.observer(StageStarted("train", driver.order.num_steps, "steps"))
        driver.sinks = stack.enter_context(Sinks(workspace.dir, spec.resume_step))
        keep_lines(workspace.dir / "bad_batches.jsonl", spec.resume_step)
        for _, event in trainer_ranks(workspace, "train", partial(train_rank, spec=spec)):
            driver.handle(event)
    shutil.rmtree(spec.staging, ignore_errors=True)


class Driver:
    """What the driver knows while ranks train. `handle` takes their events in order."""

    def __init__(
        self,
        workspace: Workspace,
        plan: Plan,
        order: Order,
        reference: ReferenceReport,
        observer: Observer,
    ) -> None:
        self.workspace, self.plan, self.order = workspace, plan, order
        self.reference, self.observer = reference, observer
        meta: Mapping[str, Any] = plan.checkpoint.meta if plan.checkpoint else {}
        self.eval_first: dict[str, float] = dict(meta.get("eval_first", {}))
        self.eval_last: dict[str, float] = dict(meta.get("eval_last", {}))
        self.eval_history: list[float] = list(meta.get("eval_history", []))
        self.probe: dict[str, float] = dict(meta.get("probe", {}))
        self.skipped: int = int(meta.get("skipped_steps", 0))
        self.last: Checkpoint | None = plan.checkpoint
        self.sinks: Sinks | None = None
        self._watch = Watch()
        self._metric = best_metric(workspace.config)

    def handle(self, event: TrainEvent) -> None:
        match event:
            case Stepped(step, metrics):
                self._log(step, metrics)
                self.observer(Advanced("train", step, metrics))
                for warning in self._watch.observe(metrics):
                    self.observer(Note("warning", warning))
            case Evaluated(step, metrics):
                self._evaluated(step, dict(metrics))
            case Probed(rows, worst, allowed):
                self.probe = {"rows": rows, "max_difference_nats": worst, "tolerance_nats": allowed}
                text = f"{rows} cached rows agree with the policy before its first step: max {worst:.2g} nats apart"
                self.observer(Note("info", f"{text} (allowed {allowed:.2g})"))
            case Skipped(step, loss, grad_norm, sources):
                self._skipped(step, loss, grad_norm, sources)
            case Staged():
                self.last = commit_checkpoint(event, self.workspace.checkpoints, self._meta())
                retain(self.workspace.checkpoints, self.workspace.config.train.keep_checkpoints, self._metric)
            case Finished(step, reason):
                self.observer(StageDone("train", f"{step} steps, {reason}"))

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self.sinks is not None
        self.sinks.write(step, metrics)

    def _evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.eval_first = self.eval_first or metrics
        self.eval_last = metrics
        self.eval_history.append(metrics.get("eval/rewards/margins", 0.0))
        self._log(step, metrics)
        shown = ", ".join(f"{name.removeprefix('eval/')} {metrics[name]:.4f}" for name in _SHOWN if name in metrics)
        self.observer(Note("info", f"evaluation after {step} steps: {shown}"))

    def _skipped(self, step: int, loss: float, grad_norm: float, sources: tuple[str, ...]) -> None:
        self.skipped += 1
        line = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "sources": sources}
        with (self.workspace.dir / "bad_batches.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        what = "loss" if not math.isfinite(loss) else "gradient"
        self.observer(Note("warning", f"step {step} skipped: its {what} is not finite; rows in bad_batches.jsonl"))

    def _meta(self) -> dict[str, Any]:
        return {
            "trajectory": dict(self.plan.trajectory),
            "reference": self.reference.identity.digest if self.reference.identity else None,
            "eval_first": self.eval_first,
            "eval_last": self.eval_last,
            "eval_history": self.eval_history,
            "probe": self.probe,
            "skipped_steps": self.skipped,
        }

    def finish(self) -> tuple[TrainingReport, dict[str, Any]]:
        """Publish `model/` from the last or best checkpoint."""
        assert self.last is not None
        chosen = self.last
        if self.workspace.config.train.export == "best":
            best, skipped = best_valid(self.workspace.checkpoints, self._metric)
            for text in skipped:
                self.observer(Note("warning", f"checkpoint passed over as the best: {text}"))
            chosen = best or self.last
        fresh = self.workspace.unpublished("model")
        shutil.copytree(chosen.folder / "model", fresh)
        model = self.workspace.publish(fresh, "model")
        report: TrainingReport = {
            "steps": self.last.step,
            "reason": self.last.reason,
            "skipped_steps": self.skipped,
            "exported_step": chosen.step,
            "resumed_from_step": self.plan.checkpoint.step if self.plan.checkpoint else 0,
            "model": str(model),
            "probe": self.probe,
        }
        lora = self.workspace.config.train.lora
        if lora is not None and lora.merge:
            merged = self.workspace.unpublished("model_merged")
            merge_lora(self.workspace.model.folder, model, merged, self.workspace.dtype)
            report["merged_model"] = str(self.workspace.publish(merged, "model_merged"))
        return report, {"first": self.eval_first, "last": self.eval_last}


_SHOWN = ("eval/loss", "eval/rewards/margins", "eval/rewards/accuracies", "eval/rewards/ties")
