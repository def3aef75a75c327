"""Which Adam ranks take, and what they say of NVMe, with compilers that fail. Sent by name to a Gang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import pytest

from raydpo.config.sections import TrainSection
from raydpo.errors import ConfigError
from raydpo.train.deepspeed_settings import deepspeed_config
from raydpo.train.host_adam import check_nvme, offloaded_adam
from raydpo.train.rendezvous import init_method
from tests.train.gang import Place


def choose(place: Place, train: dict[str, Any], use_gpu: bool, compilers: dict[str, str], copies: Path) -> str:
    """The name of the optimizer with its text, or what was refused. compilers: variables; copies: where a cache would be."""
    section = TrainSection.model_validate(train)
    config = deepspeed_config(section, "float32", place.num_ranks, use_gpu=use_gpu, sizes=[100])
    if not deepspeed.comm.is_initialized():
        deepspeed.init_distributed("gloo", verbose=False, init_method=init_method())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYDPO_STORE_DIR", str(copies))
        for name, value in compilers.items():
            patch.setenv(name, value)
        try:
            check_nvme(config)
            found = offloaded_adam(section, config, use_gpu=use_gpu)
        except ConfigError as error:
            return f"refused: {error}"
    return "" if found is None else f"{found.optimizer}: {found.text}"
