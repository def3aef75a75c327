"""A judge works while generators do: it begins before they end, and what comes out is what came out of one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from raydpo.driver.judge_lots import JudgeLots
from raydpo.driver.judges import Judging
from raydpo.driver.roles import Roles
from raydpo.driver.turns import Turns
from raydpo.errors import JudgeError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.limits import Ids
from raydpo.generate.transformers_engine import TransformersEngine
from raydpo.judge.verdict import Row
from raydpo.pipelines import iterate
from raydpo.rundir.piece import Piece
from raydpo.schema.events import Advanced, Event, ignore
from raydpo.schema.samples import Sample, Sampling
from tests.pipelines.driver import PATIENCE_S
from tests.pipelines.rounds.toy_rounds import NUM_PROMPTS, no_digits, pairs, rounds_config
from tests.pipelines.toy import Toy

PARTS = NUM_PROMPTS // 4
ONE: dict[str, Any] = {"rounds.num_rounds": 1, "rounds.eval_prompts": []}


def mark_of(model: str) -> Path:
    return Path(model).parent / "the-others-are-judged"


class WaitsForTheJudge(TransformersEngine):
    """Its last request is slow: it ends once the judge has seen all others."""

    num_requests = 0

    def generate(self, prompts: Sequence[Ids], sampling: Sampling, seed: int) -> list[list[Sample]]:
        self.num_requests += 1
        deadline_s = time.monotonic() + PATIENCE_S
        while self.num_requests == PARTS and not mark_of(self._spec.model).exists():
            assert time.monotonic() < deadline_s, "nobody judges while this request is in work"
            time.sleep(0.01)
        return super().generate(prompts, sampling, seed)


def sampled_then_judged(config: Any, monkeypatch: pytest.MonkeyPatch, observer: Any = ignore) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Roles, "can_judge_meanwhile", False)
        list(iterate(config, observer=observer))


def scores(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "rounds/000/scores").glob("part-*")}


@pytest.mark.slow
def test_the_judge_does_not_wait_for_the_slowest_prompt(toy: Toy, processes: None) -> None:
    """A function of the caller, in the driver, beside a generator in a process of its own."""
    seen: list[str] = []

    def judge(prompt: str, responses: list[str]) -> list[float]:
        seen.append(prompt)
        if len(seen) == NUM_PROMPTS - 4:
            mark_of(str(toy.model)).touch()
        return no_digits(prompt, responses)

    engine = {"generate.engine": f"{__name__}:WaitsForTheJudge", "judge.function": None}
    config = rounds_config(toy, toy.root / "slow-prompt", {**ONE, **engine})
    list(iterate(config, judge))
    assert len(seen) == NUM_PROMPTS


def test_scores_are_those_of_a_judge_that_begins_when_all_is_sampled(
    toy: Toy, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = toy.root / "judged-meanwhile", toy.root / "judged-later"
    order: list[tuple[str, int]] = []

    def note(event: Event) -> None:
        if isinstance(event, Advanced) and event.stage in ("generate", "judge"):
            order.append((event.stage, event.done))

    list(iterate(rounds_config(toy, one, {**ONE, "judge.num_workers": 2}), observer=note))
    assert [done for stage, done in order if stage == "generate"] == [4 * (number + 1) for number in range(PARTS)]
    sampled_then_judged(rounds_config(toy, other, {**ONE, "judge.num_workers": 1}), monkeypatch)
    assert len(scores(one)) == PARTS
    assert scores(one) == scores(other)
    assert pairs(one, 0) == pairs(other, 0)


@pytest.mark.parametrize("begun", ["meanwhile", "later"])
def test_a_round_goes_on_whoever_judged_when_it_ended(
    toy: Toy, machine: None, monkeypatch: pytest.MonkeyPatch, begun: str
) -> None:
    """A judge that fails ends the round; what was judged before is kept, also for one who judges at another time."""
    folder, asked, is_broken = toy.root / f"judged-{begun}-first", list[str](), [True]

    def judge(prompt: str, responses: list[str]) -> list[float]:
        asked.append(prompt)
        if is_broken[0] and len(asked) > 9:
            raise ValueError("no more")
        return no_digits(prompt, responses)

    config = rounds_config(toy, folder, {**ONE, "judge.function": None})
    with monkeypatch.context() as patched:
        patched.setattr(Roles, "can_judge_meanwhile", begun == "meanwhile")
        with pytest.raises(JudgeError, match=r"failed on 3 of 24 prompts"):
            list(iterate(config, judge))
    work = folder / "rounds/000"
    num_sampled = len(list((work / ".generations-work").glob("part-*")) or list((work / "generations").glob("part-*")))
    assert num_sampled == (3 if begun == "meanwhile" else PARTS), "nothing is sampled for a round that cannot be made"
    is_broken[0] = False
    asked.clear()
    monkeypatch.setattr(Roles, "can_judge_meanwhile", begun == "later")
    list(iterate(config, judge))
    assert len(asked) == NUM_PROMPTS - 8


def test_a_batch_whose_samples_are_others_now_is_judged_anew(tmp_path: Path) -> None:
    before: list[list[Row]] = [[("p", ["a", "bb"])], [("q", ["a", "b"])]]
    now: list[list[Row]] = [[("p", ["a", "bb"])], [("q", ["a", "ccc"])]]
    asked: list[str] = []

    def judge(prompt: str, responses: list[str]) -> list[float]:
        asked.append(prompt)
        return [float(len(response)) for response in responses]

    judging = Judging(judge, None, EngineSpec("none"))
    first = judging.opened(Piece(tmp_path / "scores", ["while sampled"]), JudgeLots.of(before), ignore)
    for number in (0, 1):
        first.put(number)
    first.finish()
    asked.clear()
    piece = Piece(tmp_path / "scores", ["of committed samples"])
    piece.take_over(["while sampled"])
    judging.judge(piece, JudgeLots.of(now), ignore)
    assert asked == ["q"]
    assert [row["scores"] for row in piece.rows()] == [[1.0, 2.0], [1.0, 3.0]]


def test_parts_of_other_inputs_are_not_taken_over(tmp_path: Path) -> None:
    begun = Piece(tmp_path / "scores", ["other samples"])
    begun.begin()
    begun.write_part(0, [{"judged": "x"}])
    piece = Piece(tmp_path / "scores", ["of committed samples"])
    piece.take_over(["while sampled"])
    piece.begin()
    assert not piece.numbers()


def test_time_counts_for_one_phase_at_a_moment() -> None:
    told: list[str] = []

    class Block:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            told.append(self.name)

        def __exit__(self, *_: object) -> None:
            told.append(f"end of {self.name}")

    turns = Turns(Block)
    turns.to("sample")
    with turns.taken("judge"):
        pass
    turns.to("sample")
    turns.end()
    turns.end()
    assert told == ["sample", "end of sample", "judge", "end of judge", "sample", "end of sample"]
