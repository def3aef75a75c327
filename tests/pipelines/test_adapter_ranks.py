"""Adapters whose forward reads weights of other modules, on two ranks that share every weight (ZeRO-3)."""

from __future__ import annotations

import math
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydpo.models.pretrained import load_model
from raydpo.pipelines import train
from tests.pipelines.toy import Toy, config_with_cache

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
config = partial(config_with_cache, "adapter ranks")
STEPS = {"train.max_steps": 2, "train.learning_rate": 1e-2}
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"dora": True},
    "modules_to_save": {"modules_to_save": ["input_layernorm"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_what_one_trains(toy: Toy, machine: None, kind: str, tmp_path: Path) -> None:
    lora = {"train.lora": {"rank": 2, "alpha": 4, "merge": True, **KINDS[kind]}}
    alone = train(config(toy, tmp_path / "one", {**STEPS, **lora, "train.zero_stage": 0}))
    wanted = config(toy, tmp_path / "two", {**STEPS, **lora, "train.zero_stage": 3, "train.num_workers": 2})
    summary = train(wanted)
    assert summary["eval"]["first"]["eval/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert summary["eval"]["last"]["eval/loss"] < math.log(2) - 1e-4
    assert summary["eval"]["last"] == pytest.approx(alone["eval"]["last"], abs=1e-4)
    exports = summary["train"]["exports"]
    assert max(exports[folder]["max_difference_nats"] for folder in ("model", "model_merged")) < 1e-4
    one, two = (load_file(tmp_path / run / "model/adapter_model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4, msg=name)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        merged, beside = (
            load_model(tmp_path / "two" / folder, "float32", "auto")(input_ids=ids).logits.log_softmax(-1)
            for folder in ("model_merged", "model")
        )
    torch.testing.assert_close(merged, beside, rtol=0, atol=1e-5)
    whole = (tmp_path / "two/model/adapter_model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "two/checkpoints/step-000002")
    assert train(wanted)["train"]["resumed_from_step"] == 1
    assert (tmp_path / "two/model/adapter_model.safetensors").read_bytes() == whole
