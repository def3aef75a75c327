"""A plan against trainings that are counted. Larger models, of at least 50 MB, are in `make bench-plan`."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.counted_training import compared, config_of, write_model, write_pairs
from tests.capacity.test_traced import SHAPES

WITHIN = 0.1
LARGER = {"vocab_size": 2000, "hidden_size": 96, "num_hidden_layers": 3}
CASES = [
    ("llama", 0, "float32", {}),
    ("gemma2", 0, "float32", {"lora": {"rank": 8}}),
    ("gpt_neox", 2, "float32", {"gradient_checkpointing": True}),
    ("llama", 2, "bfloat16", {"lora": {"rank": 8}}),
    ("gemma2", 3, "float32", {}),
    ("gpt_neox", 3, "bfloat16", {"lora": {"rank": 8}}),
    ("llama", 1, "bfloat16", {}),
    ("llama", 2, "float32", {"offload_optimizer": True}),
    ("llama", 1, "float32", {"num_workers": 2, "sequence_parallel_size": 2}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "stage", "dtype", "train"),
    CASES,
    ids=[f"{c[0]}-{c[1]}-{c[2]}-{'-'.join(c[3]) or 'full'}" for c in CASES],
)
def test_a_plan_is_within_a_tenth_of_what_lives_in_a_training(
    family: str, stage: int, dtype: str, train: dict[str, Any], tmp_path: Path
) -> None:
    write_model(tmp_path / "model", family, {**SHAPES[family], **LARGER})
    budget = 3 * write_pairs(tmp_path / "pairs.jsonl", 12, 20)
    settings = {"global_batch_pairs": 6, "tokens_per_microbatch": budget, "zero_stage": stage, **train}
    config = config_of(tmp_path / "model", tmp_path / "pairs.jsonl", tmp_path / "run", dtype, settings)
    found = compared(config)
    assert abs(found["error"]) < WITHIN, found
    assert abs(found["error_without_bucket"]) < WITHIN, found
