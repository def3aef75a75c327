"""What the driver knows while ranks train, and what it does about each thing that they say.

Comes in: events of ranks, in order. Goes out: committed checkpoints, lines of metrics, and at the end `model/`.
Decision: everything here follows from the newest checkpoint, so that going on after a kill and going on after ranks that
ran out of memory are one and the same.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydpo.artifacts import ExampleTable, fetch, shown
from raydpo.artifacts.kept_pairs import put_together
from raydpo.config import Config
from raydpo.config.cross_checks import best_metric
from raydpo.data.store import taught_ends
from raydpo.disk import append_line, full_disk, removed_on_error
from raydpo.driver.actors import show_step
from raydpo.driver.disk_room import training_need
from raydpo.driver.export_proof import StandingProver, prove
from raydpo.driver.healing import Budget
from raydpo.driver.moving_reference import References
from raydpo.driver.reference_stage import ReferenceReport
from raydpo.metrics import Sinks, Watch
from raydpo.models.merging import merge_lora
from raydpo.rundir.checkpoints import best_valid, commit_checkpoint, retain, step_said
from raydpo.rundir.made_with import made_with, moved
from raydpo.rundir.resume import Checkpoint, Plan
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Advanced, Note, Observer, StageDone
from raydpo.schema.rank_events import (
    Alive,
    Evaluated,
    Finished,
    Noted,
    PolicyProbe,
    Probed,
    Profiled,
    RowsScored,
    Skipped,
    Staged,
    Staging,
    Stepped,
    TrainEvent,
    UpdatedBy,
    WeightsPart,
)
from raydpo.schema.shared_weights import SharedWeights
from raydpo.train import TrainSpec

TrainingReport = dict[str, Any]
Receive = Callable[[WeightsPart | SharedWeights | PolicyProbe], None]


class Driver:
    """What the driver knows while ranks train. `handle` takes their events in order."""

    def __init__(
        self,
        workspace: Workspace,
        plan: Plan,
        references: References,
        reference: ReferenceReport,
        observer: Observer,
        receive: Receive | None = None,
        prover: StandingProver | None = None,
        is_wanted: Callable[[int], bool] = lambda num_steps: True,
    ) -> None:
        self.receive, self._is_wanted, self._prover = receive, is_wanted, prover
        self.workspace, self.plan, self.references = workspace, plan, references
        self.reference, self.observer = reference, observer
        self.scored = reference
        self.tokens_per_microbatch = workspace.config.train.tokens_per_microbatch
        need = training_need(workspace, references.order.num_steps, has_eval=False)
        self._checkpoint_bytes = need.checkpoint if need else 0
        self.profiled: Path | None = None
        train = workspace.config.train
        self.budget = Budget(train.max_failures, train.max_preemptions)
        self.num_ranks: int | None = None
        self.has_finished = False
        self.last: Checkpoint | None = plan.checkpoint
        self.moved: list[str] = list(self.last.meta.get("moved", [])) if self.last else []
        self._note_moves()
        self.rewind()
        self.sinks: Sinks | None = None
        self._staging = workspace.staging()  # of the ranks at work
        self._watch = Watch()
        self._metric = best_metric(workspace.config)

    def rewind(self) -> None:
        """Know what was known at the newest checkpoint that ranks can go on from, no more."""
        if self.last is not None and self.last.holds_weights_alone and not self.last.reason:
            self.last = None
        meta: Mapping[str, Any] = self.last.meta if self.last else {}
        self.eval_first: dict[str, float] = dict(meta.get("eval_first", {}))
        self.eval_last: dict[str, float] = dict(meta.get("eval_last", {}))
        self.eval_history: list[float] = list(meta.get("eval_history", []))
        self.probe: dict[str, float] = dict(meta.get("probe", self.reference.probe))
        self.skipped: int = int(meta.get("skipped_steps", 0))
        self.syncs: list[dict[str, Any]] = list(meta.get("syncs", []))
        self._last_skipped = (0, 0)  # step, and how many in a row up to it
        self.in_work = self.step + 1
        self._parts: dict[int, list[Staged]] = {}
        self._metas: dict[int, dict[str, Any]] = {}
        self._record_sync()

    def rows_in_work(self) -> str:
        """Where the examples of the step in work were read from."""
        table, order = ExampleTable.open(self.workspace.data, "train"), self.references.order
        sources = [table.source(int(example)) for example in order.examples(self.in_work - 1)]
        return ", ".join(sources[:_SHOWN_ROWS]) + f" and {len(sources) - _SHOWN_ROWS} more" * (
            len(sources) > _SHOWN_ROWS
        )

    def _note_moves(self) -> None:
        """Say what another version or layout goes on here, and keep it for the summary."""
        self._made_with = made_with(self.workspace.config)
        self._say_moves(self._made_with)

    def _say_moves(self, now: Mapping[str, Any]) -> None:
        if self.last is None or self.is_over:
            return
        fresh = moved(self.last.meta.get("made_with", {}), now, self.last.step)
        if fresh:
            is_chosen = all(text.startswith("train.") for text in fresh)
            said = f"{'; '.join(fresh)}: the state is the same, the last digits of what follows need not be"
            self.observer(Note("info" if is_chosen else "warning", said))
        self.moved += fresh

    @property
    def config(self) -> Config:
        """The run's, with micro-batches that fitted so far."""
        train = self.workspace.config.train.model_copy(update={"tokens_per_microbatch": self.tokens_per_microbatch})
        return self.workspace.config.model_copy(update={"train": train})

    @property
    def step(self) -> int:
        """The step that training goes on from."""
        return self.last.step if self.last else 0

    def committed(self) -> str:
        """What is safe, as a sentence."""
        return step_said(self.last)

    @property
    def is_over(self) -> bool:
        return self.has_finished or (self.last is not None and bool(self.last.reason))

    @property
    def skipped_in_a_row(self) -> int:
        step, number = self._last_skipped
        return number if step == self.step else 0

    def move_reference(self) -> None:
        """Make the reference that is due at the newest checkpoint, and score with it what the next steps read."""
        current = self.references.after(self.last)
        self.observer(Note("info", f"the reference was updated from the policy after {self.step} steps"))
        self.reference = self.references.score(current, self.last, self.observer)
        self.references.retain()
        self._record_sync()
        self._watch = Watch()  # what it saw was measured from another reference

    def _record_sync(self) -> None:
        every, identity = self.references.every, self.reference.identity
        if every is None or identity is None or not self.step or self.step % every:
            return
        report = self.reference.to_json()
        counts = {name: report[name] for name in ("rows", "rows_scored", "forwards")}
        self.syncs.append({"step": self.step, "reference": identity.digest, **counts})

    def spec(self, stop: int | None) -> TrainSpec:
        """What ranks that go on from the newest checkpoint get. stop: the step at which they end; None: the last."""
        workspace, config, identity = self.workspace, self.config, self.reference.identity
        template = config.data.chat_template
        self._staging = workspace.staging()
        return TrainSpec(
            config=config,
            model=workspace.trained_from,
            dtype=workspace.dtype,
            data=workspace.data,
            staging=self._staging,
            reference=None if identity is None else (workspace.cache_dir, identity),
            probe=workspace.starts_at_reference,
            resume=self.last.folder if self.last else None,
            optimizer=self.plan.optimizer,
            resume_step=self.step,
            stop_step=stop,
            eval_history=tuple(self.eval_history),
            skipped_steps=self.skipped,
            skipped_in_a_row=self.skipped_in_a_row,
            profile=config.profile and self.profiled is None,
            push=self.receive is not None,
            sends_weights=self._is_wanted(self.references.order.num_steps),
            chat_template=Path(template).expanduser().read_text() if template else None,
            end_ids=taught_ends(workspace.data),
            checkpoint_bytes=self._checkpoint_bytes,
            first=self.reference.first,
        )

    def handle(self, event: TrainEvent) -> None:
        if isinstance(event, Stepped | Alive | Skipped):
            self.in_work = max(self.in_work, event.step + 1)
        match event:
            case Stepped(step, metrics):
                self._log(step, metrics)
                self.observer(Advanced("train", step, metrics))
                show_step(step, metrics, self.num_ranks or 0)
                for warning in self._watch.observe(metrics):
                    self.observer(Note("warning", warning))
            case Evaluated(step, metrics):
                self._evaluated(step, dict(metrics))
                put_together(self._staging, step, self.workspace.dir)
            case RowsScored():
                self._rows_scored(event)
            case Noted(text):
                self.observer(Note("info", text))
            case UpdatedBy(optimizer, text):
                self.observer(Note("info", text))
                self._made_with |= {"optimizer": optimizer}
                self._say_moves({"optimizer": optimizer})
            case Profiled(folder, text) if not Path(folder).is_dir():
                self.profiled = Path(folder)
                self.observer(
                    Note("info", f"{text}; table.txt and the trace are in {folder} on the node of the first rank")
                )
            case Profiled(folder, text):
                self.profiled = self.workspace.publish(Path(folder), "profile")
                self.observer(Note("info", f"{text}; table.txt and the trace are in {self.profiled}"))
            case Probed(rows, worst, allowed, noise):
                found = {"rows": rows, "max_difference_nats": worst, "tolerance_nats": allowed, "noise_nats": noise}
                self.probe = found
                text = f"{rows} cached rows agree with the policy before its first step: max {worst:.2g} nats apart"
                self.observer(Note("info", f"{text} (allowed {allowed:.2g}; rounding: {noise:.2g} a token)"))
            case Skipped(step, loss, grad_norm, sources):
                self._skipped(step, loss, grad_norm, sources)
            case Staging(step):
                self._metas[step] = self._meta()
            case Staged():
                self._staged(event)
            case Finished(step, reason):
                self.has_finished = True
                self.observer(StageDone("train", f"{step} steps, {reason}"))
            case WeightsPart() | SharedWeights() | PolicyProbe() if self.receive is not None:
                self.receive(event)

    def _rows_scored(self, event: RowsScored) -> None:
        """Count what trainers scored; at the end the cache is whole, and is the reference of what follows."""
        report, cache = self.reference, self.reference.cache
        assert cache is not None
        rows, forwards = report.rows_scored + event.rows, report.forwards + event.forwards
        self.reference = replace(report, rows_scored=rows, forwards=forwards)
        self.observer(Advanced("reference", rows))
        if event.is_last:
            cache.open()
            cache.write_index()
            self.scored = self.reference = replace(self.reference, first=None)
            self.observer(StageDone("reference", f"{rows} of {report.rows} rows scored by the trainers"))

    def _staged(self, event: Staged) -> None:
        """Commit a checkpoint once the parts of all ranks are there, with what was known when they were copied."""
        parts = self._parts.setdefault(event.step, [])
        parts.append(event)
        if len(parts) < event.num_parts:
            return
        meta = self._metas.pop(event.step)
        self.last = commit_checkpoint(self._parts.pop(event.step), self.workspace.checkpoints, meta)
        self.budget.refill()
        retain(self.workspace.checkpoints, self.workspace.config.train.keep_checkpoints, self._metric)

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        assert self.sinks is not None
        self.sinks.write(step, metrics)

    def _evaluated(self, step: int, metrics: dict[str, float]) -> None:
        self.eval_first = self.eval_first or metrics
        self.eval_last = metrics
        self.eval_history.append(metrics.get("eval/rewards/margins", 0.0))
        self._log(step, metrics)
        self.observer(Evaluated(step, metrics))
        shown = ", ".join(f"{name.removeprefix('eval/')} {metrics[name]:.4f}" for name in _SHOWN if name in metrics)
        self.observer(Note("info", f"evaluation after {step} steps: {shown}"))

    def _skipped(self, step: int, loss: float, grad_norm: float, sources: tuple[str, ...]) -> None:
        self.skipped += 1
        before, number = self._last_skipped
        self._last_skipped = (step, number + 1 if before == step - 1 else 1)
        line = {"step": step, "loss": str(loss), "grad_norm": str(grad_norm), "sources": sources}
        append_line(self.workspace.dir / "bad_batches.jsonl", json.dumps(line))
        what = "loss" if not math.isfinite(loss) else "gradient"
        self.observer(Note("warning", f"step {step} skipped: its {what} is not finite; rows in bad_batches.jsonl"))

    def _meta(self) -> dict[str, Any]:
        return {
            "trajectory": dict(self.plan.trajectory),
            "save": self.workspace.config.train.save,
            "reference": self.reference.identity.digest if self.reference.identity else None,
            "first_reference": self.workspace.identity.digest if self.workspace.identity else None,
            "syncs": self.syncs,
            "eval_first": self.eval_first,
            "eval_last": self.eval_last,
            "eval_history": self.eval_history,
            "probe": self.probe,
            "skipped_steps": self.skipped,
            "made_with": self._made_with,
            "moved": self.moved,
        }

    def finish(self) -> tuple[TrainingReport, dict[str, Any], list[dict[str, Any]]]:
        """Publish `model/` from the last or best checkpoint."""
        assert self.last is not None
        chosen = self.last
        if self.workspace.config.train.export == "best":
            best, skipped = best_valid(self.workspace.checkpoints, self._metric)
            for text in skipped:
                self.observer(Note("warning", f"checkpoint passed over as the best: {text}"))
            chosen = best or self.last
        fetch(chosen.folder)
        published, exports = self._export(chosen.folder)
        report: TrainingReport = {
            "steps": self.last.step,
            "reason": self.last.reason,
            "skipped_steps": self.skipped,
            "exported_step": chosen.step,
            "resumed_from_step": self.plan.checkpoint.step if self.plan.checkpoint else 0,
            "model": shown(published["model"]),
            "probe": self.probe,
            "moved": self.moved,
        }
        if "model_merged" in published:
            report["merged_model"] = shown(published["model_merged"])
        report["exports"] = {name: found for name, found in exports.items() if found}
        return report, {"first": self.eval_first, "last": self.eval_last}, self.syncs

    def _export(self, checkpoint: Path) -> tuple[dict[str, Path], dict[str, dict[str, float]]]:
        """Publish `model/` and, where asked for, the adapter merged into its base, once all are proven: name -> folder, and
        name -> proof."""
        workspace, lora = self.workspace, self.workspace.config.train.lora
        source = checkpoint / "model"
        makers: dict[str, Callable[[Path], object]] = {"model": lambda fresh: shutil.copytree(source, fresh)}
        if lora is not None and lora.merge:
            base, ends = workspace.trained_from.folder, taught_ends(workspace.data)
            size = workspace.config.train.max_shard_bytes
            makers["model_merged"] = lambda fresh: merge_lora(base, source, fresh, workspace.dtype, ends, size)
        fresh = {name: workspace.unpublished(name) for name in makers}
        proofs = {}
        with removed_on_error(*fresh.values()):
            for name, make in makers.items():
                with full_disk(workspace.dir / name):
                    make(fresh[name])
                proofs[name] = prove(workspace, fresh[name], checkpoint, name, self.observer, self._prover)
            return {name: workspace.publish(folder, name) for name, folder in fresh.items()}, proofs


_SHOWN_ROWS = 8
_SHOWN = ("eval/loss", "eval/rewards/margins", "eval/rewards/accuracies", "eval/rewards/ties")
