"""Rounds that start from an adapter: everybody holds it merged, and the first round is measured from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.pipelines import check, iterate
from tests.adapter_kinds import KINDS, make_adapter, make_base
from tests.pipelines.rounds.toy_rounds import rounds_config
from tests.pipelines.toy import Notes, Toy

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [None, {"rank": 2, "dora": True}], ids=["full", "dora"])
def test_rounds_start_from_an_adapter(toy: Toy, machine: None, tmp_path: Path, lora: object) -> None:
    base = make_base(tmp_path / "base", "llama", toy.model)
    made = make_adapter(tmp_path, KINDS["rslora"], base, str(base))
    changes = {"model.path": str(made.folder), "rounds.num_rounds": 1, "train.lora": lora}
    wanted, notes = rounds_config(toy, tmp_path / "run", changes), Notes()
    assert check(wanted)["prompts"]["prompts"] == 24
    (found,) = list(iterate(wanted, observer=notes))
    assert found.metrics["eval/kl_nats"] != 0
    assert [text for text in notes.info if "were merged into" in text]
    assert [text for text in notes.info if "1 generator holds policy 1" in text]
