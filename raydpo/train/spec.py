"""What a trainer rank is started with.

Decision: ranks get paths that every node sees and read the rest themselves; nothing large travels through the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raydpo.models.logprobs import CHUNK_TOKENS
from raydpo.models.resolve import ResolvedModel

if TYPE_CHECKING:
    from raydpo.artifacts import CacheIdentity
    from raydpo.config import Config
    from raydpo.schema.rank_events import TrainEvent


@dataclass(frozen=True)
class TrainSpec:
    """All that a trainer rank gets: one frozen, picklable value.

    config: the resolved config of the run.
    model: what training starts from.
    dtype: resolved compute dtype, "float32" or "bfloat16".
    data: folder of token shards.
    staging: folder for checkpoints before they are committed, unique to this attempt.
    reference: reference cache (directory and identity); None without a reference.
    probe: at a fresh start, compare cached rows with the trainer's own log-probs.
    resume: committed checkpoint to go on from; None at a fresh start.
    optimizer: without `resume`, the committed checkpoint of another run, of the weights of `model`, whose optimizer
        state the first step goes on with.
    resume_step: optimizer steps that `resume` holds.
    stop_step: stage a checkpoint after this step and end there, though training is not over; None to train to the end.
    eval_history: eval/rewards/margins of the evaluations before `resume`, for early stopping.
    skipped_steps, skipped_in_a_row: non-finite steps before `resume`, in all and in a row at its end.
    chat_template: Jinja text that the exported tokenizer gets.
    end_ids: tokens that answers are taught to end with, for the exported generation config.
    chunk_tokens: answer tokens of one call of the head.
    profile: record a few steps of rank 0.
    push: after the last step, say what the policy gives to a few sequences, for generators to be compared with.
    sends_weights: and share the weights with them, in a file of this node or through the driver.
    checkpoint_bytes: what a checkpoint takes, for the message of a full disk; 0: unknown.
    stands: these ranks hold what the first step needs: the run before this one on them ended with the weights of `model`, as
        its file has them in the compute dtype, and with the state in `optimizer`.
    first: what ranks do together before anything else of a fresh start, with their trainer; None: nothing.
    """

    config: Config
    model: ResolvedModel
    dtype: str
    data: Path
    staging: Path
    reference: tuple[Path, CacheIdentity] | None = None
    probe: bool = False
    resume: Path | None = None
    optimizer: Path | None = None
    resume_step: int = 0
    stop_step: int | None = None
    eval_history: tuple[float, ...] = ()
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    chat_template: str | None = None
    end_ids: tuple[int, ...] = ()
    chunk_tokens: int = CHUNK_TOKENS
    profile: bool = False
    push: bool = False
    sends_weights: bool = True
    checkpoint_bytes: int = 0
    stands: bool = False
    first: Callable[[Any], Iterator[TrainEvent]] | None = None

    @property
    def tie_tolerance_nats(self) -> float:
        """Margins within this are ties: configured, or the noise of the dtype."""
        configured = self.config.evaluate.tie_tolerance_nats
        return configured if configured is not None else {"float32": 1e-3, "bfloat16": 0.1}[self.dtype]
