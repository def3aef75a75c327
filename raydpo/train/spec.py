"""All that a trainer rank is told: one frozen, picklable value.

Decision: ranks get paths that every node sees and read the rest themselves; nothing large travels through the driver.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from raydpo.artifacts import CacheIdentity
from raydpo.config import Config
from raydpo.models.resolve import ResolvedModel


@dataclass(frozen=True)
class TrainSpec:
    """model: what training starts from. dtype: resolved compute dtype. data: folder of token shards. reference: cache
    directory and identity, None without a reference. probe: compare cached rows with the trainer's own at a fresh start.
    staging: attempt-unique folder for checkpoints. resume: committed checkpoint to go on from. eval_history: margins
    of earlier evaluations."""

    config: Config
    model: ResolvedModel
    dtype: str
    data: Path
    staging: Path
    reference: tuple[Path, CacheIdentity] | None = None
    probe: bool = False
    resume: Path | None = None
    resume_step: int = 0
    eval_history: tuple[float, ...] = field(default=())

    @property
    def tie_tolerance_nats(self) -> float:
        """Margins within this are ties: configured, or the noise of the dtype."""
        configured = self.config.evaluate.tie_tolerance_nats
        return configured if configured is not None else {"float32": 1e-3, "bfloat16": 0.1}[self.dtype]
