"""Which Adam updates an optimizer that is offloaded: DeepSpeed's, made for main memory, or torch's.

Comes in: the section `train` and what DeepSpeed is told. Goes out: the optimizer, and an event that names it. Decision: all
ranks take the same one. DeepSpeed's own key decides (`zero_force_ds_cpu_optimizer`); without it, DeepSpeed's where there are
GPUs and it builds on every machine, else torch's, whose fused update is as fast on a CPU. The two differ in last digits.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

import torch

from raydpo.config.deepspeed_keys import FORCE
from raydpo.config.sections import TrainSection
from raydpo.errors import ConfigError
from raydpo.schema.rank_events import UpdatedBy
from raydpo.train.native_ops import NoOp, built_adam, load_adam, nvme_problem, on_nvme

DEEPSPEED, TORCH = "deepspeed.ops.adam.DeepSpeedCPUAdam", "torch.optim.AdamW"


def check_nvme(config: Mapping[str, Any]) -> None:
    """Raise ConfigError, on all ranks alike, where a machine cannot offload to NVMe as DeepSpeed is told. Collective."""
    asked = on_nvme(config)
    if asked and (told := sorted({text for text in _gathered(nvme_problem(asked)) if text})):
        raise ConfigError(told)


def offloaded_adam(train: TrainSection, config: Mapping[str, Any], *, use_gpu: bool) -> UpdatedBy | None:
    """Which Adam is to run; None where nothing is offloaded. Loads DeepSpeed's where that is it. Collective.

    config: what DeepSpeed is told. Raises ConfigError, on all ranks alike, where the user wants DeepSpeed's and a machine
    cannot build it."""
    offload = config["zero_optimization"].get("offload_optimizer") or {}
    if offload.get("device") not in ("cpu", "nvme"):
        return None
    wanted = train.deepspeed.get(FORCE)
    if wanted is False or (wanted is None and not use_gpu):
        why = f"train.deepspeed: {FORCE} is false" if wanted is False else "there is no GPU that it could be kept off"
        return UpdatedBy(TORCH, f"torch's AdamW updates the offloaded optimizer: {why}")
    if not (told := _problems()):
        return UpdatedBy(DEEPSPEED, "DeepSpeed's CPU Adam updates the offloaded optimizer")
    if wanted:
        raise ConfigError(
            [
                f"train.deepspeed: {FORCE}: true asks for DeepSpeed's CPU Adam, and {text}. Nothing was trained. Install a C++ "
                "compiler and ninja there, or leave the setting out: then torch's AdamW runs where DeepSpeed's does not build."
                for text in told
            ]
        )
    return UpdatedBy(
        TORCH,
        f"torch's AdamW updates the offloaded optimizer, because {'; '.join(told)}. It is the same but for last digits",
    )


def make_adam(parameters: list[torch.nn.Parameter], train: TrainSection) -> torch.optim.Optimizer:
    """DeepSpeed's, loaded before."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    betas = (train.adam_beta1, train.adam_beta2)
    made: torch.optim.Optimizer = DeepSpeedCPUAdam(
        parameters, lr=train.learning_rate, betas=betas, weight_decay=train.weight_decay, adamw_mode=True
    )
    return made


def start_step(adam: Any) -> None:
    """Before each step of DeepSpeed's: have its bias correction follow from the number of the step alone.

    It multiplies the powers of the betas up in float32, from step to step, and computes them anew where it did not see the
    step before: a run that goes on would have other last digits than one that nobody stopped. Step 0 makes it forget."""
    (beta1, beta2), nothing = adam.defaults["betas"], [torch.zeros(1) for _ in range(4)]
    adam.ds_opt_adam.adam_update(adam.opt_id, 0, 0.0, beta1, beta2, 1.0, 0.0, False, *nothing)


def _problems() -> list[str]:
    """Why not all ranks can have it: the first rank of a machine builds, then all load. Collective."""
    machines = _gathered(platform.node())
    is_first = machines.index(platform.node()) == torch.distributed.get_rank()
    if told := [text for text in _gathered(_built() if is_first else "") if text]:
        return sorted(set(told))
    return sorted({text for text in _gathered(_built(loads=True)) if text})


def _built(*, loads: bool = False) -> str:
    """Build it, and with `loads` have it in this process. A sentence where that fails."""
    try:
        file = built_adam()
        if loads:
            load_adam(file)
    except (NoOp, OSError) as error:
        return f"it does not build on {platform.node()}: {error}"
    return ""


def _gathered(mine: str) -> list[str]:
    """What every rank has. Collective."""
    if torch.distributed.get_backend() == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # as DeepSpeed does, but later
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found
