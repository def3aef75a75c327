"""Which roles of a run of rounds stand, by what they hold and by the memory that is free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.driver import room_to_stand as module
from raydpo.driver.room_to_stand import RoomToStand, room_to_stand
from raydpo.models.resolve import ResolvedModel
from raydpo.reference.way import whole_bytes
from tests.pipelines.rounds.toy_rounds import rounds_config
from tests.pipelines.toy import Toy


def room(toy: Toy, changes: dict[str, Any], *, is_judged_by_a_model: bool = False) -> RoomToStand:
    initial = ResolvedModel("initial", None, toy.model)
    judged_by = [initial] if is_judged_by_a_model else []
    return room_to_stand(rounds_config(toy, Path("unused"), changes), initial, "float32", judged_by)


def test_on_cpus_all_stand(toy: Toy, machine: None) -> None:
    assert room(toy, {}, is_judged_by_a_model=True) == RoomToStand("", "", "", "")


@pytest.mark.parametrize(
    ("changes", "reference", "judge", "scorer"),
    [
        pytest.param({"reference.gpus_per_worker": 0.5}, "GPUs of reference", "", "", id="GPU of the reference"),
        pytest.param({"generate.gpus_per_worker": 1}, "", "", "GPUs of generate", id="GPU of generators"),
        pytest.param(
            {"reference.scheduling": {"resources": {"nvme": 1}}}, "scheduling.resources", "", "", id="a custom resource"
        ),
        pytest.param({"reference.num_workers": {"min": 1, "max": 2}}, "is a range", "", "", id="a range"),
    ],
)
def test_what_others_wait_for_is_given_back(
    toy: Toy, machine: None, changes: dict[str, Any], reference: str, judge: str, scorer: str
) -> None:
    found = room(toy, changes)
    for clause, expected in ((found.reference, reference), (found.judge, judge), (found.scorer, scorer)):
        assert expected in clause
        assert bool(clause) is bool(expected)


def test_memory_counts_every_model_that_is_held_at_once(
    toy: Toy, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer of 20 bytes a weight; a reference worker, a generator, two models of held-out answers, one of the judge."""
    whole = whole_bytes(ResolvedModel("initial", None, toy.model), "float32")
    assert whole is not None
    needed = 5 * whole + (1 + 1 + 2) * whole
    for free, stands in ((needed / 0.8 + 8, True), (needed / 0.8 - 8, False)):
        monkeypatch.setattr(module, "free_bytes", lambda device, free=free: free)
        found = room(toy, {"rounds.reference": "ema"})
        assert (found.reference == found.scorer == "") is stands
        assert found.judge == "", "it has no model"
        beside = room(toy, {"rounds.reference": "ema"}, is_judged_by_a_model=True)
        assert beside.judge != "", "one more"
