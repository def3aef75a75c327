"""A trainer that runs out of memory in the middle of a run: the run goes on with smaller micro-batches by itself.

The memory is really gone: the kernel is told to give the trainer's process no more of it.
"""

import json
import resource
import time
from dataclasses import replace

import psutil
import pytest

from raydpo.pipelines import train
from raydpo.quickstart.bpe import train_bpe
from raydpo.quickstart.fresh_model import create_model
from raydpo.schema.events import Advanced
from tests.pipelines import driver
from tests.pipelines.toy import Notes, Toy, config

pytestmark = pytest.mark.slow

ROOM = 12 * 2**20
"""Bytes that the trainer may still get: less than one matrix of a micro-batch of all examples, more than all the rest."""


@pytest.fixture(scope="module")
def wide(toy: Toy, tmp_path_factory) -> Toy:
    """A model whose activations are large and whose weights are not."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "intermediate_size": 16384, "max_positions": 64}
    create_model(folder, train_bpe(["sort 12 34 56 78 90 no"] * 2, 280), seed=0, **shape)
    return replace(toy, model=folder)


class Squeeze(Notes):
    """Takes the memory away after the third step, once."""

    def __init__(self):
        super().__init__()
        self.done = False

    def __call__(self, event):
        super().__call__(event)
        if isinstance(event, Advanced) and event.stage == "train" and event.done == 3 and not self.done:
            self.done = True
            trainer = psutil.Process(driver.by_age("RankActor")[-1])
            sizes = []
            for _ in range(100):  # between two micro-batches among others
                sizes.append(trainer.memory_info().vms)
                time.sleep(0.004)
            trainer.rlimit(psutil.RLIMIT_AS, (min(sizes) + ROOM, resource.RLIM_INFINITY))


def test_the_run_goes_on_with_smaller_micro_batches(wide, processes, tmp_path):
    settings = {"train.epochs": 8, "train.save_every": 10, "train.eval_every": 20, "run.runtime_in_process": False}
    settings |= {"reference.cache_dir": str(tmp_path / "cache")}
    expected = train(config(wide, tmp_path / "undisturbed", settings))
    notes = Squeeze()
    found = train(config(wide, tmp_path / "squeezed", settings), notes)
    assert [text for text in notes.warning if "did not fit into memory" in text], notes.warning
    assert found["train"]["steps"] == expected["train"]["steps"] == 32
    lines = [json.loads(line) for line in (tmp_path / "squeezed" / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))
    assert found["eval"]["last"] == pytest.approx(expected["eval"]["last"], rel=1e-2, abs=1e-3)
