"""A reference that follows the policy (TR-DPO, arXiv 2404.09656): which one a step is trained against, and making it.

Comes in: committed checkpoints. Goes out: `<run>/references/step-N`, a committed model folder for each update, made of
the policy after N steps and the reference before; and its log-probs of the rows that the steps up to the next update
read.
Decision: which reference is current follows from the step alone, and each has a cache of its own, named by the digest
of its weights: values of an older one cannot be taken for it. Trainer ranks end at each update and start again from the
checkpoint, the way they do after a kill; the price is one start of the ranks an update.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydpo import runtime
from raydpo.artifacts import commit_folder, digest_of, discard, fetch, read_commit, verify_folder
from raydpo.batches.order import Order
from raydpo.disk import full_disk, removed_on_error
from raydpo.driver.reference_stage import ReferenceReport, reference_stage
from raydpo.driver.standing_scorers import StandingScorers
from raydpo.errors import ConfigError, IntegrityError, ResumeError
from raydpo.models.blend import blend, other_shapes
from raydpo.rundir.checkpoints import PREFIX, committed
from raydpo.rundir.resume import Checkpoint
from raydpo.rundir.workspace import Workspace
from raydpo.schema.events import Note, Observer


@dataclass(frozen=True)
class References:
    """The references of a run, by the step they were made at; 0 is the one that the config names.

    A reference is handed out as the workspace that scores with it. With `reference.sync_every` unset there is 0 alone.
    scorers: workers that stand, and score all of them.
    """

    workspace: Workspace
    order: Order
    scorers: StandingScorers | None = None

    @classmethod
    def of(cls, workspace: Workspace, num_examples: int, scorers: StandingScorers | None = None) -> References:
        """Of a run that trains on `num_examples` examples."""
        return cls(workspace, Order.of(workspace.config, num_examples), scorers)

    @property
    def every(self) -> int | None:
        return self.workspace.config.reference.sync_every

    def after(self, checkpoint: Checkpoint | None) -> Workspace:
        """The reference that training goes on with from `checkpoint`, made if it is due. Raises ResumeError.

        Of a finished run, whose steps are all made: the workspace as it is.
        """
        if checkpoint is None:
            if self.every is not None:
                self._same_shapes()
            return self.workspace
        if self.every is None:
            return self._trained_against(checkpoint)
        first = self.workspace.identity.digest if self.workspace.identity else None
        if checkpoint.meta.get("first_reference", first) != first:
            raise _other_reference(checkpoint, str(checkpoint.meta["first_reference"]), str(first))
        if checkpoint.reason:
            return self.workspace
        is_due = checkpoint.step % self.every == 0
        return self._made_from(checkpoint) if is_due else self._trained_against(checkpoint)

    def score(self, current: Workspace, checkpoint: Checkpoint | None, observer: Observer) -> ReferenceReport:
        """Log-probs under `current`, which is `after(checkpoint)`, of all rows that are read until the next update.

        Of the first reference, which other runs share, those of every row. Of a later one the rows of the whole stretch
        between two updates, also in its middle: shards are then cut in the same places, and values are the same bit for
        bit. Nothing for a finished run. A start from other weights than the reference's is a reason to probe the cache.
        """
        if self.every is not None and checkpoint is not None:
            if checkpoint.reason:
                return ReferenceReport(0)
            start = checkpoint.step - checkpoint.step % self.every
            if start > 0:
                steps = range(start, self.stop_after(start) or self.order.num_steps)
                training = np.unique(np.concatenate([self.order.examples(step) for step in steps]))
                of_stretch = {"train": training}
                return reference_stage(current, ("train", "eval"), observer, of_stretch, scorers=self.scorers)
        is_probed = checkpoint is None and current.needs_reference and not current.starts_at_reference
        more: dict[str, Any] = {"has_trainers": checkpoint is None, "scorers": self.scorers}
        return reference_stage(current, ("train", "eval"), observer, probe=is_probed, **more)

    def stop_after(self, step: int) -> int | None:
        """The step at which ranks that go on from `step` stop for the next update; None for the end of training."""
        if self.every is None:
            return None
        stop = (step // self.every + 1) * self.every
        return stop if stop < self.order.num_steps else None

    def warn(self, observer: Observer) -> None:
        """Say so when there will be no update."""
        if self.every is not None and self.stop_after(0) is None:
            steps = self.order.num_steps
            text = f"reference.sync_every: {self.every}, and training has {steps} steps: the reference never moves"
            observer(Note("warning", text))

    def retain(self) -> None:
        """Delete the references that no checkpoint was trained against or goes on with."""
        if self.every is None:
            return
        kept = set()
        for step in (checkpoint.step for checkpoint in committed(self.workspace.checkpoints)):
            kept |= {self._folder(step - step % self.every), self._folder(self._number(step))}
        with runtime.deferred():
            for path in self.workspace.references.glob(f"{PREFIX}*"):
                if path not in kept:
                    discard(path)

    def _number(self, step: int) -> int:
        """The reference that step `step` was trained against."""
        return 0 if self.every is None else (step - 1) // self.every * self.every

    def _folder(self, number: int) -> Path:
        return self.workspace.references / f"{PREFIX}{number:06d}"

    def _trained_against(self, checkpoint: Checkpoint) -> Workspace:
        found = self._find(self._number(checkpoint.step), checkpoint)
        now = found.identity.digest if found.identity else None
        if checkpoint.meta["reference"] != now:
            raise _other_reference(checkpoint, checkpoint.meta["reference"], now)
        return found

    def _find(self, number: int, wanted_by: Checkpoint) -> Workspace:
        if number == 0:
            return self.workspace
        folder = self._folder(number)
        problems = verify_folder(folder)
        if not problems:
            return self.workspace.measured_from(folder)
        source = self.workspace.checkpoints / folder.name
        if missing := verify_folder(source):
            raise ResumeError(
                f"{wanted_by.folder} goes on with the reference of step {number}, and that cannot be used ({problems[0]}) or "
                f"made again ({missing[0]}). Going on would measure rewards from another model. Restore one of the two "
                "folders, or set run.dir to a new one."
            )
        return self._made_from(Checkpoint(source, read_commit(source)["meta"]))

    def _made_from(self, checkpoint: Checkpoint) -> Workspace:
        """The reference of the update at `checkpoint`: the one on disk if it was made of the same weights."""
        alpha = self.workspace.config.reference.sync_alpha
        before = self._trained_against(checkpoint) if alpha < 1 else None
        files = read_commit(checkpoint.folder)["files"]
        policy = {name: file["sha256"] for name, file in files.items() if name.startswith("model/")}
        identity = before.identity if before else None
        source = digest_of({"policy": policy, "before": identity.weights if identity else None, "alpha": alpha})
        folder = self._folder(checkpoint.step)
        if not _is_made_of(source, folder):
            meta = {"step": checkpoint.step, "alpha": alpha, "source": source}
            fetch(checkpoint.folder)
            _write(checkpoint.folder / "model", before.measured_by.here() if before else None, alpha, folder, meta)
        return self.workspace.measured_from(folder)

    def _same_shapes(self) -> None:
        workspace = self.workspace
        if workspace.reference != workspace.model and (
            lines := other_shapes(workspace.trained_from.folder, workspace.measured_by.folder)
        ):
            raise ConfigError(
                f"reference.sync_every: {self.every} needs a reference.model of the shape of model.path; it differs in "
                f"{len(lines)} tensors ({lines[0]}). Nothing was trained. Leave sync_every out, or give a model of that shape."
            )


def _is_made_of(source: str, folder: Path) -> bool:
    """Whether `folder` is a whole reference that was made of `source`."""
    try:
        made_of = read_commit(folder)["meta"]["source"]
    except (IntegrityError, KeyError):
        return False
    return bool(made_of == source) and not verify_folder(folder)


def _write(policy: Path, before: Path | None, alpha: float, folder: Path, meta: Mapping[str, Any]) -> None:
    """Blend into `folder`, which gets its name once it is whole and durable; what had the name before goes."""
    staging = folder.with_name(f".staging-{uuid.uuid4().hex[:12]}")
    with removed_on_error(staging):
        with full_disk(folder):
            blend(policy, before, alpha, staging)
        commit_folder(staging, folder, meta, replace=True)


def _other_reference(checkpoint: Checkpoint, then: str | None, now: str | None) -> ResumeError:
    return ResumeError(
        f"{checkpoint.folder} was trained against reference {then}, this config's reference is {now}. Going on would "
        "measure rewards from another model. Restore the reference's files, or set run.dir to a new folder."
    )
