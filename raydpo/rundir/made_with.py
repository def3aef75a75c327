"""What a run may go on with that moves the last digits of its numbers: other libraries, other ranks, another ZeRO stage.

Comes in: what a checkpoint was made with, and what there is now. Goes out: a sentence for each that differs, for the log and
for the summary. Decision: they are said and not refused, because the state is the same; who wants the same bits keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from raydpo.config import Config

LIBRARIES = ("torch", "deepspeed", "transformers")
KEYS = ("num_workers", "zero_stage", "offload_optimizer", "offload_parameters", "sequence_parallel_size")
"""Of the section `train`."""


def made_with(config: Config) -> dict[str, Any]:
    """Versions and layout of a training now, by the name that a person knows."""
    train = config.train.model_dump(mode="json")
    is_packed = config.train.lora is not None and config.train.lora.quantize_base != "none"
    libraries = (*LIBRARIES, *(("bitsandbytes",) if is_packed else ()))
    return {name: version(name) for name in libraries} | {f"train.{key}": train[key] for key in KEYS}


def moved(then: Mapping[str, Any], now: Mapping[str, Any], step: int) -> list[str]:
    """A sentence for everything that is another from step `step` on; nothing for what an older version did not note."""
    return [
        f"{name}: {then[name]} up to step {step}, {now[name]} after it"
        for name in now
        if name in then and then[name] != now[name]
    ]
