"""The DeepSpeed engine of one rank, behind five methods: forward, backward, step, save, load.

Decision: the caller owns the accumulation boundary (`managed_gradient_accumulation: false`), so that a global batch may
have any number of micro-batches; a step whose gradient is not finite is refused here, on all ranks alike.
Stage 0 in float32 runs a plain torch optimizer under DeepSpeed, which neither clips with a reported norm nor refuses
NaN: `GuardedAdamW` does both. All other stages do it themselves.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raydpo.config.sections import TrainSection
from raydpo.models.logprobs import AnswerLogProbs, Extra, SequenceBatch
from raydpo.train.ranges import OPTIMIZER, named
from raydpo.train.rendezvous import init_method

os.environ.setdefault("DS_BUILD_OPS", "0")  # no op is compiled: the optimizer is torch's


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


class DeepSpeedEngine:
    """One rank's engine around `AnswerLogProbs`."""

    def __init__(self, scoring: AnswerLogProbs, train: TrainSection, dtype: str, num_ranks: int, use_gpu: bool) -> None:
        import deepspeed

        # A shared-memory kernel would be compiled at the first start; gloo and nccl need no compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._owns_group = not torch.distributed.is_initialized()
        deepspeed.init_distributed("nccl" if use_gpu else "gloo", verbose=False, init_method=init_method())
        self.num_ranks = num_ranks
        trainable = [p for p in scoring.parameters() if p.requires_grad]
        self._optimizer = GuardedAdamW(
            trainable,
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            weight_decay=train.weight_decay,
            fused=True,  # one pass over the weights, on CPU and GPU, and no other tensor of their size
        )
        stage = 1 if train.zero_stage == 0 and dtype == "bfloat16" else train.zero_stage
        self._guarded = stage == 0
        self._optimizer.guard, self._optimizer.max_norm = self._guarded, train.max_grad_norm
        self.stage = stage
        self.engine, *_ = deepspeed.initialize(
            model=scoring,
            model_parameters=trainable,
            optimizer=self._optimizer,
            config=deepspeed_config(train, stage, dtype, num_ranks),
            dist_init_required=False,
        )
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
        with named(OPTIMIZER):
            self.engine.step()
        if self._guarded:
            return self._optimizer.applied, self._optimizer.grad_norm
        applied = not bool(getattr(self.engine.optimizer, "overflow", False))
        return applied, float(self.engine.get_global_grad_norm() or 0.0)

    def save(self, folder: Path) -> None:
        """Write optimizer and parameter state of this rank. Collective."""
        self.engine.save_checkpoint(str(folder), tag="state", save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, with the same number of ranks and the same stage. Collective."""
        path, _ = self.engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        if path is None:
            raise RuntimeError(f"{folder} holds no DeepSpeed state, although its manifest is whole")

    def close(self) -> None:
        """Destroy the process group that this engine made, so that another one can be made in this process. Collective."""
        if self._owns_group and torch.distributed.is_initialized():
            import deepspeed

            deepspeed.comm.destroy_process_group()  # torch's, and what DeepSpeed remembers of it


def deepspeed_config(train: TrainSection, stage: int, dtype: str, num_ranks: int) -> dict[str, Any]:
    """The DeepSpeed config of a TrainSection. Batch sizes in it are nominal: the step counts for itself."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if stage:
        zero |= {"overlap_comm": False, "contiguous_gradients": True}
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if train.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": num_ranks,
        "managed_gradient_accumulation": False,
        "gradient_clipping": train.max_grad_norm if stage else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
