"""Settings of DeepSpeed that a user gives (`train.deepspeed`): read, and held against the keys that have the say here.

Comes in: a mapping, or the path of a JSON file. Goes out: the mapping, and a sentence for each setting that cannot be kept.
Decision: what raydpo has a key for is set by that key alone, so that no run has two truths; of the rest only what reaches its
engine is taken, and DeepSpeed itself refuses unknown names below `zero_optimization` when ranks start.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

TAKEN = (
    "aio",
    "comms_logger",
    "communication_data_type",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "wall_clock_breakdown",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
)
"""Names at the top that are handed on."""
OWN = {
    "train_batch_size": "train.global_batch_pairs",
    "train_micro_batch_size_per_gpu": "train.tokens_per_microbatch",
    "gradient_accumulation_steps": "train.global_batch_pairs and train.tokens_per_microbatch",
    "managed_gradient_accumulation": "train.global_batch_pairs and train.tokens_per_microbatch",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.learning_rate, train.weight_decay, train.adam_beta1 and train.adam_beta2",
    "scheduler": "train.schedule and train.warmup_fraction",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
    "activation_checkpointing": "train.gradient_checkpointing and train.activation_memory_gb",
    "steps_per_print": "train.log_every",
    "tensorboard": "train.sinks",
    "wandb": "train.sinks",
    "csv_monitor": "train.sinks",
    "comet": "train.sinks",
    "elasticity": "train.num_workers",
    "sequence_parallel_size": "train.sequence_parallel_size",
    "zero_optimization.stage": "train.zero_stage",
}
"""Dotted name of DeepSpeed -> the keys that decide it here."""
FORCE = "zero_force_ds_cpu_optimizer"
"""DeepSpeed's key for its own CPU Adam."""
_UNREAD = ""
_OFFLOADS = {"offload_optimizer": "offload_optimizer", "offload_param": "offload_parameters"}


def settings_of(value: Any) -> Any:
    """The mapping in the JSON file that `value` names, or why there is none under `_UNREAD`; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(Path(value).expanduser().read_text())
    except (OSError, ValueError) as error:
        return {_UNREAD: f"{value} cannot be read as JSON: {error}"}
    return found if isinstance(found, dict) else {_UNREAD: f"{value} holds {found!r:.50}, no object of settings"}


Settings = Annotated[
    dict[str, Any], BeforeValidator(settings_of), WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string"}]})
]
"""Settings of DeepSpeed, or the file that they stand in."""


def problems(given: Mapping[str, Any], train: Any) -> Iterator[str]:
    """What of `given` cannot be kept. train: the section that it stands in."""
    if _UNREAD in given:
        yield f"deepspeed: {given[_UNREAD]}. Give settings, or the path of a file that holds them"
        return
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        yield f"deepspeed.zero_optimization is an object of settings, not {zero!r}"
        zero = {}
    named = {name: value for name, value in given.items() if name != "zero_optimization"}
    for name, value in {**named, **{f"zero_optimization.{name}": value for name, value in zero.items()}}.items():
        if name in OWN:
            yield f"deepspeed.{name}: {value!r}, which {OWN[name]} has the say in; set that and leave this out"
        elif "." not in name and name not in TAKEN:
            yield f"deepspeed.{name} is not handed on to DeepSpeed; handed on are {', '.join(TAKEN)}"
    yield from _forced(given, zero, train)
    for name, key in _OFFLOADS.items():
        if name in zero:
            yield from _offload(name, zero[name], key, train)


def _forced(given: Mapping[str, Any], zero: Mapping[str, Any], train: Any) -> Iterator[str]:
    value = given.get(FORCE, False)
    if not isinstance(value, bool):
        yield f"deepspeed.{FORCE} is true (DeepSpeed's CPU Adam, or an error) or false (torch's AdamW), not {value!r}"
    elif value and not train.offload_optimizer and not zero.get("offload_optimizer"):
        yield f"deepspeed.{FORCE}: true is for an offloaded optimizer; set offload_optimizer: true, or leave it out"


def _offload(name: str, given: Any, key: str, train: Any) -> Iterator[str]:
    device = given.get("device") if isinstance(given, Mapping) else given
    is_on, where = getattr(train, key), f"deepspeed.zero_optimization.{name}"
    if device is None and not is_on:
        yield f"{where} has settings and no device, and {key} is false; set {key}: true, or give the device nvme"
    elif device is not None and (device == "cpu") != is_on and (is_on or device != "nvme"):
        yield f"{where} has the device {device!r}, and {key} is {str(is_on).lower()}, which has the say in it; leave it out"
    if device == "nvme" and name == "offload_optimizer" and train.save == "all":
        yield f"{where} on nvme needs save: weights: a checkpoint holds the optimizer's state as it lies in memory"
