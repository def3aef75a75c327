"""What DeepSpeed is told: settings that follow from `train`, from the model and the device, and those of the user on top.

Comes in: a TrainSection and the sizes of what trains. Goes out: a dict as DeepSpeed's JSON. Decision: gradients are summed over
ranks in float32 whatever the dtype, and in bfloat16 stages 0 and 1 run as 2, where a rank accumulates its own part in float32
and no other; the price is that gradients travel at every micro-batch and in twice the bytes. Buckets are as large as what
trains, up to a bound: DeepSpeed's default takes a gigabyte for an adapter, too. Sizes of batches are nominal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from raydpo.config.sections import TrainSection
from raydpo.errors import ConfigError

MOST_BUCKET_ELEMENTS = 200_000_000
"""Of the buffers in which gradients are reduced: 0.4 GB in bfloat16, and 0.8 GB on the way."""


def stage_of(train: TrainSection, dtype: str) -> int:
    """The ZeRO stage that runs."""
    return 2 if train.zero_stage < 2 and dtype == "bfloat16" else train.zero_stage


def deepspeed_config(
    train: TrainSection, dtype: str, num_ranks: int, *, use_gpu: bool, sizes: Sequence[int]
) -> dict[str, Any]:
    """The DeepSpeed config of a TrainSection. Raises ConfigError for settings of the user that DeepSpeed does not know.

    sizes: elements of each parameter that trains.
    """
    stage = stage_of(train, dtype)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": num_ranks,
        "managed_gradient_accumulation": False,
        "gradient_clipping": train.max_grad_norm if stage else 0.0,
        "zero_optimization": _zero(train, stage, use_gpu, sizes),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }
    if dtype == "bfloat16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
        config["communication_data_type"] = "fp32"
    merged = with_settings(config, train.deepspeed)
    if train.deepspeed:
        _look_at(merged["zero_optimization"])
    return merged


def _zero(train: TrainSection, stage: int, use_gpu: bool, sizes: Sequence[int]) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if stage:
        zero |= {"overlap_comm": use_gpu and stage > 1, "contiguous_gradients": True}
        zero["reduce_bucket_size"] = min(sum(sizes), max(MOST_BUCKET_ELEMENTS, *sizes))
    if train.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": use_gpu}
    if train.offload_parameters:
        zero["offload_param"] = {"device": "cpu", "pin_memory": use_gpu}
    return zero


def with_settings(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the settings of `given` in it, those of sections one by one."""
    merged = dict(config)
    for name, value in given.items():
        own = merged.get(name)
        is_section = isinstance(own, Mapping) and isinstance(value, Mapping)
        merged[name] = with_settings(own or {}, value) if is_section else value
    return merged


def _look_at(zero: Mapping[str, Any]) -> None:
    """Have DeepSpeed read the settings below `zero_optimization`."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise ConfigError(
            [f"train.deepspeed: zero_optimization.{text}. Nothing was trained; DeepSpeed refuses it." for text in wrong]
        ) from error
