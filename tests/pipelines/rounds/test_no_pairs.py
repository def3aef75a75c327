"""A round that makes no pair: committed like any other, with the policy that it started from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raydpo.errors import ConfigError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.pipelines import iterate
from raydpo.rounds.round_config import reference_folder
from raydpo.rundir.piece import Piece
from raydpo.rundir.rounds_folder import RoundsFolder
from tests.pipelines.rounds.toy_rounds import (
    generations,
    held_out_ids,
    no_digits,
    pairs,
    rounds_config,
    rows_of_parts,
)
from tests.pipelines.toy import Notes, Toy

pytestmark = pytest.mark.slow


class TiesOnRequest:
    """A judge that finds all answers equal while `is_blind`."""

    def __init__(self) -> None:
        self.is_blind, self.num_asked = False, 0

    def __call__(self, prompt: str, responses: list[str]) -> list[float]:
        self.num_asked += 1
        return [1.0] * len(responses) if self.is_blind else no_digits(prompt, responses)


def test_a_round_without_pairs_leaves_the_policy_as_it_is(toy: Toy, machine: None) -> None:
    """Round 1 of three, with a driver that ends after it; the rounds before and after train."""
    folder, notes, judge = toy.root / "ties", Notes(), TiesOnRequest()
    changes = {
        "rounds.num_rounds": 3,
        "rounds.prompts_per_round": 8,
        "rounds.reference": "ema",
        "rounds.ema_decay": 0.5,
        "train.learning_rate": 1e-2,
    }
    config = rounds_config(toy, folder, changes).model_copy(update={"judge": None})
    attempt = iterate(config, judge=judge, observer=notes)
    first = next(attempt)
    judge.is_blind = True
    empty = next(attempt)
    attempt.close()
    judge.is_blind = False
    assert judge.num_asked == 16 + (8 + 16) + 8, "the policy is not measured again"
    assert (empty.metrics["pairs/made"], empty.metrics["pairs/ties"], empty.metrics["train/steps"]) == (0, 8, 0)
    assert empty.model == first.model
    assert all(empty.metrics[name] == first.metrics[name] for name in first.metrics if name.startswith("eval/"))
    (said,) = [text for text in notes.warning if "made no pair" in text]
    assert said.startswith("round 1 made no pair (samples 32, ")
    assert "ties 8" in said
    assert "stays version 1" in said
    assert pairs(folder, 1) == []
    assert not (empty.folder / "train").exists()

    found = list(iterate(config, judge=judge, observer=notes))
    assert found[:2] == [first, empty]
    last = found[2]
    assert {row["version"] for row in generations(folder, 2)} == {1}
    assert last.staleness == 0
    assert last.metrics["train/steps"] > 0
    started_from = json.loads((last.folder / "train/summary.json").read_text())["train"]["model"]
    assert Path(started_from) == last.model != first.model
    assert f"path: {first.model}" in (last.folder / "train/config.yaml").read_text()
    assert (empty.folder / "reference").is_dir()
    assert not (last.folder / "reference").exists(), "two policies have one average"
    assert first.metrics["eval/kl_reference_nats"] == first.metrics["eval/kl_nats"], "the average of one is the initial"
    held_out = held_out_ids(config)
    for name, model in (("kl_reference_nats", empty.folder / "reference"), ("kl_nats", toy.model)):
        assert last.metrics[f"eval/{name}"] == pytest.approx(apart(last.folder, last.model, model, held_out), abs=1e-4)
    assert last.metrics["eval/kl_reference_nats"] != pytest.approx(last.metrics["eval/kl_nats"], abs=1e-3)


def test_pairs_of_one_prompt_are_none_for_an_objective_that_compares_prompts(toy: Toy, machine: None) -> None:
    """KTO's estimate of the divergence needs answers to other prompts: round 0 has none, round 1 trains."""
    asked: list[str] = []

    def judge(prompt: str, responses: list[str]) -> list[float]:
        asked.append(prompt)
        return no_digits(prompt, responses) if len(asked) == 1 or len(asked) > 8 else [1.0] * len(responses)

    changes = {
        "rounds.prompts_per_round": 8,
        "rounds.eval_prompts": [],
        "objective.name": "kto",
        "data.unpair": True,
    }
    folder = toy.root / "one-prompt"
    config = rounds_config(toy, folder, changes).model_copy(update={"judge": None})
    lone, trained = iterate(config, judge=judge)
    assert (lone.metrics["pairs/made"], lone.metrics["pairs/one_prompt"], lone.metrics["train/steps"]) == (0, 1, 0)
    assert pairs(folder, 0) == []
    assert "pairs/one_prompt" not in trained.metrics
    assert trained.metrics["pairs/made"] > 1
    assert trained.metrics["train/steps"] > 0


def test_one_prompt_a_round_is_refused_for_an_objective_that_compares_prompts(toy: Toy, tmp_path: Path) -> None:
    changes = {"rounds.prompts_per_round": 1, "objective.name": "kto", "data.unpair": True}
    with pytest.raises(ConfigError, match=r"rounds\.prompts_per_round: 1 gives objective kto nothing"):
        next(iterate(rounds_config(toy, tmp_path / "never", changes)))


def apart(folder: Path, policy: Path, other: Path, prompts: list[tuple[int, ...]]) -> float:
    """Mean log-ratio of two models on a round's sampled held-out answers, in nats."""
    answers = [tuple(row["samples"][0]["ids"]) for row in rows_of_parts(folder / "evaluation/sampled")]
    sequences = list(zip(prompts, answers, strict=True))
    ours, theirs = (make_engine(EngineSpec(str(model), max_length=64)).score(sequences)[0] for model in (policy, other))
    return float(np.mean([sum(a) - sum(b) for a, b in zip(ours, theirs, strict=True)]))


def layout_of(toy: Toy, folder: Path, made: list[int], **rounds: str) -> RoundsFolder:
    """A run whose rounds made so many pairs each."""
    from raydpo.models.resolve import resolve_model

    changes = {f"rounds.{key}": value for key, value in rounds.items()}
    layout = RoundsFolder(
        rounds_config(toy, folder, changes), folder, resolve_model("model.path", str(toy.model), None)
    )
    for index, number in enumerate(made):
        piece = Piece(layout.round(index) / "pairs", index)
        piece.begin()
        piece.commit({"metrics": {"pairs/made": float(number)}})
    return layout


def test_a_policy_is_the_newest_that_was_trained(toy: Toy, tmp_path: Path) -> None:
    layout = layout_of(toy, tmp_path, [0, 3, 0, 0, 5])
    assert [layout.trained(version) for version in range(6)] == [0, 0, 2, 2, 2, 5]
    assert layout.policy(1) == layout.initial.folder
    assert layout.policy(4) == layout.policy(2) == layout.round(1) / "train/model"
    assert layout.policy(6) == layout.round(5) / "train/model", "of its pairs nothing is known"


def test_the_reference_of_a_round_after_one_without_pairs(toy: Toy, tmp_path: Path) -> None:
    for number, reference in enumerate(("initial", "previous_round", "ema")):
        layout = layout_of(toy, tmp_path / str(number), [0], reference=reference)
        assert reference_folder(layout, 1) == layout.initial.folder
    layout = layout_of(toy, tmp_path / "previous", [2, 0], reference="previous_round")
    assert reference_folder(layout, 2) == layout.policy(1)
    layout = layout_of(toy, tmp_path / "other", [2, 0], reference=str(toy.other))
    assert reference_folder(layout, 2) == toy.other.resolve()
