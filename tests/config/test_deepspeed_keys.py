"""DeepSpeed's settings of a user: from a mapping or a file, and every one that another key decides is named with that key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.errors import ConfigError
from tests.config.test_load import MINIMAL, problems, write


def given(folder: Path, settings: dict[str, Any], **train: Any) -> list[str]:
    more = [f"train.{name}={json.dumps(value)}" for name, value in train.items()]
    return problems(write(folder, MINIMAL), f"train.deepspeed={json.dumps(settings)}", *more)


def test_settings_without_a_key_of_ours_are_taken(tmp_path: Path) -> None:
    settings = {"zero_optimization": {"zero_hpz_partition_size": 8, "overlap_comm": False}, "dump_state": True}
    config = Config.load(write(tmp_path, MINIMAL), [f"train.deepspeed={json.dumps(settings)}"])
    assert config.train.deepspeed == settings
    assert Config.load(write(tmp_path, MINIMAL)).train.deepspeed == {}


def test_a_file_is_read_where_it_is_named(tmp_path: Path) -> None:
    settings = {"communication_data_type": "bf16"}
    (tmp_path / "ds.json").write_text(json.dumps(settings))
    config = Config.load(write(tmp_path, MINIMAL), [f"train.deepspeed={tmp_path / 'ds.json'}"])
    assert config.train.deepspeed == settings


@pytest.mark.parametrize(("text", "why"), [(None, "cannot be read"), ("{", "cannot be read"), ("[1]", r"holds [1]")])
def test_a_file_that_is_none_is_named(text: str | None, why: str, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    if text is not None:
        path.write_text(text)
    (found,) = problems(write(tmp_path, MINIMAL), f"train.deepspeed={path}")
    assert f"{path} {why}" in found


def test_conflicts_come_all_at_once_with_the_key_that_decides(tmp_path: Path) -> None:
    settings = {
        "train_batch_size": 64,
        "bf16": {"enabled": True},
        "optimizer": {"type": "Adam"},
        "flops": 1,
        "sequence_parallel_size": 2,
        "zero_optimization": {"stage": 3},
    }
    found = given(tmp_path, settings)
    for name, key in {
        "deepspeed.train_batch_size: 64": "train.global_batch_pairs",
        "deepspeed.bf16": "model.dtype",
        "deepspeed.optimizer": "train.learning_rate",
        "deepspeed.flops is not handed on": "zero_optimization",
        "deepspeed.sequence_parallel_size: 2": "train.sequence_parallel_size",
        "deepspeed.zero_optimization.stage: 3": "train.zero_stage",
    }.items():
        (line,) = (line for line in found if name in line)
        assert key in line
    assert len(found) == len(settings)


@pytest.mark.parametrize(
    ("offload", "train", "why"),
    [
        ({"offload_optimizer": {"device": "cpu"}}, {}, "offload_optimizer is false"),
        ({"offload_optimizer": {"device": "none"}}, {"offload_optimizer": True}, "offload_optimizer is true"),
        ({"offload_optimizer": {"device": "nvme"}}, {"offload_optimizer": True, "save": "weights"}, "is true"),
        ({"offload_optimizer": {"device": "nvme"}}, {}, "needs save: weights"),
        ({"offload_param": {"buffer_count": 4}}, {"zero_stage": 3}, "set offload_parameters: true"),
    ],
)
def test_where_parameters_and_optimizer_lie_has_one_truth(offload, train, why, tmp_path: Path) -> None:
    (found,) = given(tmp_path, {"zero_optimization": offload}, **train)
    assert why in found


@pytest.mark.parametrize(
    ("offload", "train"),
    [
        ({"offload_optimizer": {"buffer_count": 4}}, {"offload_optimizer": True}),
        ({"offload_optimizer": {"device": "nvme", "nvme_path": "/disk"}}, {"save": "weights"}),
        ({"offload_param": {"device": "nvme", "nvme_path": "/disk"}}, {"zero_stage": 3}),
    ],
)
def test_nvme_and_details_of_an_offload_are_taken(offload, train, tmp_path: Path) -> None:
    more = [f"train.{name}={json.dumps(value)}" for name, value in train.items()]
    settings = json.dumps({"zero_optimization": offload})
    config = Config.load(write(tmp_path, MINIMAL), [f"train.deepspeed={settings}", *more])
    assert config.train.deepspeed["zero_optimization"] == offload


def test_an_error_ends_with_exit_code_2(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.load(write(tmp_path, MINIMAL), ['train.deepspeed={"zero_optimization": 3}'])
    assert caught.value.exit_code == 2
    assert "zero_optimization is an object" in str(caught.value)
