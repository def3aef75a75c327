"""What DeepSpeed is told, for each device and dtype, and what a user's settings change in it."""

from __future__ import annotations

from typing import Any

import pytest

from raydpo.config.sections import TrainSection
from raydpo.errors import ConfigError
from raydpo.train.deepspeed_settings import MOST_BUCKET_ELEMENTS, deepspeed_config, stage_of


def told(dtype: str = "float32", *, use_gpu: bool = False, sizes: tuple[int, ...] = (100, 7), **train: Any) -> Any:
    section = TrainSection.model_validate(train)
    return deepspeed_config(section, dtype, 2, use_gpu=use_gpu, sizes=sizes)


@pytest.mark.parametrize(("asked", "fp32", "bf16"), [(0, 0, 2), (1, 1, 2), (2, 2, 2), (3, 3, 3)])
def test_stages_that_would_keep_a_whole_gradient_in_float32_run_as_2(asked, fp32, bf16):
    section = TrainSection(zero_stage=asked)
    assert (stage_of(section, "float32"), stage_of(section, "bfloat16")) == (fp32, bf16)
    assert told("bfloat16", zero_stage=asked)["zero_optimization"]["stage"] == bf16


def test_gradients_are_summed_in_float32_whatever_the_dtype():
    assert told("bfloat16")["communication_data_type"] == "fp32"
    assert "communication_data_type" not in told("float32")  # float32 is DeepSpeed's own there


@pytest.mark.parametrize(("stage", "overlaps"), [(1, False), (2, True), (3, True)])
def test_collectives_overlap_where_there_are_streams(stage, overlaps):
    assert told(use_gpu=True, zero_stage=stage)["zero_optimization"]["overlap_comm"] is overlaps
    assert told(zero_stage=stage)["zero_optimization"]["overlap_comm"] is False


@pytest.mark.parametrize(
    ("sizes", "elements"),
    [
        ((100, 7), 107),
        ((MOST_BUCKET_ELEMENTS, 7), MOST_BUCKET_ELEMENTS),
        ((5, MOST_BUCKET_ELEMENTS + 9), MOST_BUCKET_ELEMENTS + 9),
    ],
)
def test_buckets_fit_what_trains(sizes, elements):
    assert told(sizes=sizes)["zero_optimization"]["reduce_bucket_size"] == elements


def test_offloaded_memory_is_pinned_for_a_gpu_alone():
    for use_gpu in (False, True):
        zero = told(use_gpu=use_gpu, zero_stage=3, offload_optimizer=True, offload_parameters=True)["zero_optimization"]
        for name in ("offload_optimizer", "offload_param"):
            assert zero[name] == {"device": "cpu", "pin_memory": use_gpu}


def test_settings_of_the_user_are_laid_over_ours_one_by_one():
    settings = {
        "communication_data_type": "bf16",
        "zero_optimization": {"reduce_bucket_size": 5, "offload_optimizer": {"buffer_count": 9}},
    }
    found = told("bfloat16", deepspeed=settings, offload_optimizer=True)
    assert found["communication_data_type"] == "bf16"
    assert found["bf16"]["enabled"]
    zero = found["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"]) == (2, 5)
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False, "buffer_count": 9}


def test_what_deepspeed_does_not_know_is_refused_by_it_all_at_once():
    settings = {"zero_optimization": {"reduce_bucket": 5, "overlap_comm": "perhaps"}}
    with pytest.raises(ConfigError) as caught:
        told(deepspeed=settings)
    assert len(caught.value.problems) == 2
    assert "zero_optimization.reduce_bucket: Extra inputs are not permitted" in str(caught.value)
    assert "zero_optimization.overlap_comm" in str(caught.value)
