"""The DeepSpeed engine of one rank, behind five methods: forward, backward, step, snapshot, load.

Decision: the caller owns the accumulation boundary (`managed_gradient_accumulation: false`), so that a global batch may
have any number of micro-batches; a step whose gradient is not finite is refused here, on all ranks alike.
Stage 0 in float32 runs a plain torch optimizer under DeepSpeed, which neither clips with a reported norm nor refuses
NaN: `GuardedAdamW` does both. All other stages do it themselves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.config.sections import TrainSection
from raydpo.errors import ResumeError
from raydpo.models.hollow import HollowModel
from raydpo.models.logprobs import AnswerLogProbs, Extra, SequenceBatch
from raydpo.train.deepspeed_settings import deepspeed_config, stage_of
from raydpo.train.group_timeout import give_time, group_timeout
from raydpo.train.held_state import held, refresh, trained, whole_shape
from raydpo.train.host_adam import DEEPSPEED, check_nvme, make_adam, offloaded_adam, start_step
from raydpo.train.ranges import OPTIMIZER, named
from raydpo.train.rendezvous import init_method
from raydpo.train.sharding import shard
from raydpo.train.state_files import Fragment, SavedState, StateFile, shares, write_state

os.environ.setdefault("DS_BUILD_OPS", "0")  # no op is compiled but what `native_ops` asks for


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips the global norm and refuses non-finite gradients when `guard` is set (stage 0, float32)."""

    guard = False
    max_norm = 0.0
    grad_norm = 0.0
    applied = True

    def step(self, closure: Any = None) -> Any:
        if not self.guard:
            return super().step(closure)
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        limit = self.max_norm or math.inf
        self.grad_norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        self.applied = math.isfinite(self.grad_norm)
        return super().step(closure) if self.applied else None


@dataclass(frozen=True)
class Snapshot:
    """One rank's part of a training state, in CPU memory of its own: it stays as it is while training goes on.

    fragments: its elements. rank: whose. num_ranks: of how many.
    """

    fragments: Sequence[Fragment]
    rank: int
    num_ranks: int

    def write(self, folder: Path) -> StateFile:
        """Into a file of this rank alone. Not collective; may run in a thread. Raises StorageError when the disk is full."""
        return write_state(folder, self.fragments, self.rank, self.num_ranks)


class DeepSpeedEngine:
    """One rank's engine around `AnswerLogProbs`."""

    def __init__(
        self,
        scoring: AnswerLogProbs,
        train: TrainSection,
        dtype: str,
        num_ranks: int,
        use_gpu: bool,
        source: HollowModel | None = None,
    ) -> None:
        """source: under stage 3, where weights are read from that are not in `scoring`."""
        import deepspeed

        # A shared-memory kernel would be compiled at the first start; gloo and nccl need no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._owns_group = not torch.distributed.is_initialized()
        backend, timeout = "nccl" if use_gpu else "gloo", group_timeout(train.hang_timeout_s)
        deepspeed.init_distributed(backend, verbose=False, timeout=timeout, init_method=init_method())
        self.num_ranks = num_ranks
        trainable = [p for p in scoring.parameters() if p.requires_grad]
        self.stage = stage = stage_of(train, dtype)
        sizes = [p.numel() for p in trainable]
        config = deepspeed_config(train, dtype, num_ranks, use_gpu=use_gpu, sizes=sizes)
        check_nvme(config)
        self.updated_by = offloaded_adam(train, config, use_gpu=use_gpu)
        is_deepspeed = self.updated_by is not None and self.updated_by.optimizer == DEEPSPEED
        self._guard = None if is_deepspeed else _guarded(trainable, train, is_on=stage == 0)
        self._host_adam = make_adam(trainable, train) if is_deepspeed else None
        if stage == 3:
            shard(scoring, config, source)
        self.engine, *_ = deepspeed.initialize(
            model=scoring,
            model_parameters=trainable,
            optimizer=self._guard or self._host_adam,
            config=config,
            dist_init_required=False,
        )
        if self._owns_group:
            give_time(timeout)
        self.device = self.engine.device

    def forward(self, batch: SequenceBatch, extra: Extra = "nothing") -> Tensor:
        """Log-probs of the answer tokens, [N] float32 nats, or [2 or 3, N] as `AnswerLogProbs` says."""
        found: Tensor = self.engine(batch, extra)
        return found

    def routed(self, batch: SequenceBatch, extra: Extra, top_k: int) -> tuple[Tensor, Tensor]:
        """Log-probs as of `forward`, and what the routers did: [2, E] of `raydpo.models.routing.tally`."""
        found: tuple[Tensor, Tensor] = self.engine(batch, extra, top_k)
        return found

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of `loss`. DeepSpeed averages over ranks, so the loss is multiplied by their number."""
        self.engine.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> tuple[bool, float]:
        """Update with the accumulated gradient. Returns (applied, gradient norm before clipping), equal on all ranks."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._host_adam is not None:
            start_step(self._host_adam)
        with named(OPTIMIZER):
            self.engine.step()
        if self._guard is not None and self._guard.guard:
            return self._guard.applied, self._guard.grad_norm
        applied = not bool(getattr(self.engine.optimizer, "overflow", False))
        return applied, float(self.engine.get_global_grad_norm() or 0.0)

    def snapshot(self) -> Snapshot:
        """This rank's part of the training state as it is now, copied to CPU memory. Not collective: nothing is gathered.

        Training may go on as soon as it returns; every element is in the snapshot of exactly one rank.
        """
        fragments, rank = held(self.engine, self.stage), torch.distributed.get_rank()
        mine = list(shares(fragments, rank, self.num_ranks)) if self.stage == 0 else fragments
        return Snapshot([fragment.copied() for fragment in mine], rank, self.num_ranks)

    def load(self, folder: Path) -> None:
        """Go on from what ranks saved in `folder`, however many they were and whatever their ZeRO stage. Collective.

        Each rank reads the ranges that it updates from now on. Raises ResumeError, on all ranks alike, when the files do not
        hold exactly the parameters that train here.
        """
        saved, fragments = SavedState(folder), held(self.engine, self.stage)
        wanted = {name: whole_shape(parameter) for name, parameter in trained(self.engine)}
        self._agree(saved.problems or saved.misfits(wanted))
        self._agree(saved.fill(fragments))
        for fragment in fragments:
            fragment.step.fill_(saved.steps[fragment.name])
        refresh(self.engine, self.stage)

    def _agree(self, problems: list[str]) -> None:
        """Raise ResumeError with what any rank found. Collective."""
        found: list[Any] = [None] * self.num_ranks
        torch.distributed.all_gather_object(found, problems)
        if told := list(dict.fromkeys(problem for each in found for problem in each)):
            raise ResumeError(
                [
                    "the training state of a checkpoint does not fit this run, so nothing was trained. Go on with the settings "
                    "and the version that wrote it, or set run.resume: never to start anew and keep the old outputs aside.",
                    *told,
                ]
            )

    def close(self, *, keeps_group: bool = False) -> None:
        """Free the model and the process group that this engine made: a process can have many, one by one. Collective.

        keeps_group: the next engine of this process goes on with it.
        """
        self.engine.destroy()  # hooks that the garbage collector cannot see through
        if self.stage == 3:
            _forget_modules()
        if self._owns_group and not keeps_group and torch.distributed.is_initialized():
            import deepspeed

            deepspeed.comm.destroy_process_group()  # torch's, and what DeepSpeed remembers of it


def _guarded(trainable: list[nn.Parameter], train: TrainSection, *, is_on: bool) -> GuardedAdamW:
    adam = GuardedAdamW(
        trainable,
        lr=train.learning_rate,
        betas=(train.adam_beta1, train.adam_beta2),
        weight_decay=train.weight_decay,
        fused=True,  # one pass over the weights, on CPU and GPU, and no other tensor of their size
    )
    adam.guard, adam.max_norm = is_on, train.max_grad_norm
    return adam


def _forget_modules() -> None:
    """Empty what ZeRO-3 keeps for as long as the process lives and which holds every model: a stack, and a cache of methods."""
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    FWD_MODULE_STACK.clear()
    for function in vars(PartitionedParameterCoordinator).values():
        for cell in getattr(function, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()
