"""Whether what a run will write fits on its disks, asked before it begins. By the heads of the weight files, without torch.

Comes in: a workspace, and what is planned. Goes out: bytes, one sentence, or a StorageError with the arithmetic and what to
change. Decision: the most that lies there at one time counts, so that a run which starts does not end at its last
checkpoint; the price is that a run which would just fit may be refused. Where no head can be read nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from raydpo.config import Config
from raydpo.disk import free_bytes, sized
from raydpo.errors import StorageError
from raydpo.models.carried_files import OTHERS, TOKENIZER
from raydpo.models.trained_size import TrainedSize, size_of_full, size_of_lora
from raydpo.models.weight_shapes import shapes_of_model
from raydpo.reference.plan import ShardPlan
from raydpo.rundir.checkpoints import PREFIX
from raydpo.rundir.resume import Plan
from raydpo.rundir.workspace import Workspace
from raydpo.schema.rows import KEY_LENGTH

_STATE_BYTES = 12
"""Of a trained weight in a checkpoint: float32 master and two moments."""
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}
_REFERENCE_BYTES = 4
"""A reference that follows the policy is kept in float32."""
_SHARD_BYTES = 4096
"""Of a shard and its record without its values."""


@dataclass(frozen=True)
class DiskNeed:
    """The most that a training holds in its run directory at one time.

    size: weights of model, training and export.
    dtype_bytes: of a weight in an export.
    other_bytes: of tokenizer and config next to the weights of an export.
    num_checkpoints: checkpoints; num_references: references that follow the policy.
    is_merged: whether there is a `model_merged/`.
    has_state: whether checkpoints hold what training goes on from (train.save: all).
    """

    size: TrainedSize
    dtype_bytes: int
    other_bytes: int
    num_checkpoints: int
    num_references: int
    is_merged: bool
    has_state: bool

    @property
    def checkpoint(self) -> int:
        """Bytes of one: the model of it, and what training goes on from."""
        return self.model + self.size.trained * _STATE_BYTES * self.has_state

    @property
    def model(self) -> int:
        return self.size.exported * self.dtype_bytes + self.other_bytes

    @property
    def merged(self) -> int:
        return (self.size.model * self.dtype_bytes + self.other_bytes) * self.is_merged

    @property
    def references(self) -> int:
        return self.num_references * (self.size.model * _REFERENCE_BYTES + self.other_bytes)

    @property
    def checkpoints(self) -> int:
        return self.num_checkpoints * self.checkpoint

    @property
    def total(self) -> int:
        return self.checkpoints + self.model + self.merged + self.references

    @property
    def terms(self) -> str:
        """The sum, in words."""
        weights = f"{self.size.exported:,} weights x {self.dtype_bytes}"
        weights += f" + {self.size.trained:,} trained x {_STATE_BYTES}" if self.has_state else ""
        found = [
            f"{self.num_checkpoints} checkpoints x {self.checkpoint:,} ({weights} + {self.other_bytes:,} next to them)",
            f"model/ {self.model:,}",
        ]
        found += [f"model_merged/ {self.merged:,}"] if self.merged else []
        found += [f"{self.num_references} references {self.references:,}"] if self.references else []
        return " + ".join(found)


def training_need(workspace: Workspace, num_steps: int, *, has_eval: bool) -> DiskNeed | None:
    """Of a whole training of `num_steps` steps; None where the weights cannot be counted."""
    folder, lora = workspace.trained_from.whole().folder, workspace.config.train.lora
    if (shapes := shapes_of_model(folder)) is None:
        return None
    size = size_of_full(shapes) if lora is None else size_of_lora(shapes, **lora.placed())
    return need_of(workspace, size, num_steps, has_eval=has_eval)


def need_of(workspace: Workspace, size: TrainedSize, num_steps: int, *, has_eval: bool) -> DiskNeed:
    """Of a training of `num_steps` steps of a model of this size."""
    folder, lora = workspace.trained_from.whole().folder, workspace.config.train.lora
    return DiskNeed(
        size=size,
        dtype_bytes=_DTYPE_BYTES[workspace.dtype],
        other_bytes=_bytes_of(
            path for pattern in (*TOKENIZER, *OTHERS, "config.json") for path in folder.glob(pattern)
        ),
        num_checkpoints=_num_checkpoints(workspace.config, num_steps, has_eval),
        num_references=_num_references(workspace.config, num_steps, has_eval),
        is_merged=lora is not None and lora.merge,
        has_state=workspace.config.train.save == "all",
    )


def _num_checkpoints(config: Config, num_steps: int, has_eval: bool) -> int:
    """Those that are kept, the best of those that were evaluated, and the one that is being written; or all that are made."""
    train = config.train
    every = [train.save_every, config.reference.sync_every, train.eval_every if train.export == "best" else None]
    made = num_steps if train.save_every_minutes else 1 + sum((num_steps - 1) // each for each in every if each)
    return max(1, min(train.keep_checkpoints + has_eval + 1, made, num_steps))


def _num_references(config: Config, num_steps: int, has_eval: bool) -> int:
    """Each checkpoint that is kept was trained against one and goes on with the next."""
    every = config.reference.sync_every
    return 0 if every is None else min((num_steps - 1) // every, config.train.keep_checkpoints + 1 + 2 * has_eval)


def check_training_room(workspace: Workspace, plan: Plan, num_steps: int, *, has_eval: bool) -> None:
    """Raise StorageError where a training does not fit on the disk of run.dir. What lies there of the run counts as there."""
    need = training_need(workspace, num_steps, has_eval=has_eval)
    if need is None:
        return
    there, wanted, terms = 0, need.total, need.terms
    if plan.action == "done":
        wanted, terms = need.model + need.merged, "model/ and what belongs to it"
    elif plan.action == "resume":
        found = [_bytes_of(folder.glob(f"{PREFIX}*/**/*")) for folder in (workspace.checkpoints, workspace.references)]
        there = sum(map(min, found, (need.checkpoints, need.references)))
    free = free_bytes(workspace.dir)
    if wanted - there <= free:
        return
    fewer = need.checkpoints - need.checkpoint * min(need.num_checkpoints, 2 + has_eval)
    hint = f"train.keep_checkpoints: 1 needs {fewer:,} bytes less; " if fewer and plan.action != "done" else ""
    raise StorageError(
        f"run.dir: {workspace.dir} will hold up to {wanted:,} bytes at one time ({terms}), {there:,} of them are there, and "
        f"{free:,} bytes are free: {wanted - there - free:,} too few. It would have ended at a full disk, so nothing "
        f"was trained. Free some space, or set run.dir to a larger disk; {hint}train.lora needs far less."
    )


def said_of_room(workspace: Workspace, num_steps: int, *, has_eval: bool) -> tuple[str, bool] | None:
    """A sentence on the disk of run.dir, and whether a training from its start fits; None where nothing is known."""
    need = training_need(workspace, num_steps, has_eval=has_eval)
    if need is None:
        return None
    free = free_bytes(workspace.dir)
    text = (
        f"checkpoints will take up to {sized(need.checkpoints)} ({need.num_checkpoints} at one time), with model/ and what "
        f"belongs to it {sized(need.total)}; {sized(free)} free in {workspace.dir}"
    )
    return text, need.total <= free


def check_cache_room(cache_dir: Path, works: ShardPlan) -> None:
    """Raise StorageError where the log-probs of `works` do not fit on the disk of the cache."""
    rows, tokens = works.num_rows, works.num_answer_tokens
    need, free = cache_bytes(rows, tokens, len(works)), free_bytes(cache_dir)
    if need > free:
        raise StorageError(
            f"reference.cache_dir: {cache_dir} will get {need:,} bytes ({rows:,} rows x {KEY_LENGTH + 12} + {tokens:,} answer "
            f"tokens x 4 + {len(works):,} shards x {_SHARD_BYTES:,}), and {free:,} bytes are free. It would have ended "
            "at a full disk, so nothing was scored. Free some space, or set reference.cache_dir to a larger disk."
        )


def cache_bytes(num_rows: int, num_answer_tokens: int, num_shards: int) -> int:
    """Of the reference log-probs of so many rows."""
    return num_rows * (KEY_LENGTH + 12) + num_answer_tokens * 4 + num_shards * _SHARD_BYTES


def _bytes_of(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in set(paths) if path.is_file())
