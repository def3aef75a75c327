"""`rounds.pairs_per_round`: a round ends where its pairs are there, in the order of prompts, whoever was faster."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.driver.round_cut import RoundCut
from raydpo.errors import ConfigError, JudgeError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.transformers_engine import TransformersEngine
from raydpo.judge.pairs import PairRule, make_pairs
from raydpo.pipelines import iterate
from raydpo.rounds.produce import requests_of, sampling_of
from raydpo.rounds.setup import Setup, set_up
from raydpo.rundir.prompt_line import PromptPlace, take
from raydpo.rundir.rounds_folder import prompts_of, seed_of
from raydpo.schema.events import Event, StageDone, ignore
from tests.pipelines.rounds.toy_rounds import generations, no_digits, pairs, rounds_config
from tests.pipelines.toy import Toy, weights

NUM_ROUNDS, WANTED = 3, 5
STREAM: dict[str, Any] = {
    "rounds.num_rounds": NUM_ROUNDS,
    "rounds.prompts_per_round": 14,
    "rounds.pairs_per_round": WANTED,
    "rounds.eval_prompts": [],
    "generate.prompts_per_item": 2,
    "generate.num_answers": 2,
    "train.global_batch_pairs": WANTED,
}
PLACEMENTS: dict[str, dict[str, Any]] = {
    "colocated": {},
    "split": {"rounds.placement": "split", "generate.num_workers": 2, "judge.num_workers": 2},
}


@dataclass(frozen=True)
class Simulated:
    """A round of somebody who takes one request after the other. num_prompts: that it used."""

    pairs: list[tuple[list[int], list[int], list[int]]]
    num_prompts: int


def one_by_one(setup: Setup, version: int, index: int, numbers: Sequence[int]) -> Simulated:
    """numbers: of the prompts that the round may take."""
    config = setup.config
    prompts = [setup.prompts[number] for number in numbers]
    spec = EngineSpec(str(setup.layout.policy(version)), threads=int(config.generate.cpus_per_worker))
    engine, rule = TransformersEngine(spec), PairRule("best_worst", truncated="keep")
    made: list[tuple[list[int], list[int], list[int]]] = []
    used = 0
    for request in requests_of(config, prompts, sampling_of(config), version, index):
        answered = engine.generate(request.prompts, request.sampling, request.seed)
        for samples in answered:
            prompt = prompts[used]
            used += 1
            scores = no_digits(prompt.text, [sample.text for sample in samples])
            chance = seed_of(config.run.seed, index, prompt.key)
            for chosen, rejected, _ in make_pairs(samples, scores, rule, chance).pairs:
                made.append((list(prompt.ids), list(samples[chosen].ids), list(samples[rejected].ids)))
        if len(made) >= WANTED:
            break
    return Simulated(made, used)


def assert_simulated(config: Config, folder: Path) -> None:
    setup, place = set_up(config, None, ignore), PromptPlace()
    assert config.rounds is not None
    for index in range(NUM_ROUNDS):
        version = max(0, index - 1) if config.rounds.placement == "split" else index
        line = (len(setup.prompts), config.rounds.prompts_per_round, config.run.seed)
        wanted = one_by_one(setup, version, index, take(place, 14, *line)[0])
        found = [(p["prompt_ids"], p["chosen_ids"], p["rejected_ids"]) for p in pairs(folder, index)]
        assert found == wanted.pairs
        assert len(generations(folder, index)) == wanted.num_prompts
        assert {pair["version"] for pair in pairs(folder, index)} == {version}
        _, place = take(place, wanted.num_prompts, *line)
        meta = json.loads((folder / f"rounds/{index:03d}/pairs/COMMIT.json").read_text())["meta"]
        assert PromptPlace.of(meta["ended"]) == place


@pytest.fixture(scope="module", params=PLACEMENTS)
def calm(request: pytest.FixtureRequest, toy: Toy, machine: None) -> tuple[str, Path]:
    """A placement and its rounds that nobody disturbed."""
    folder = toy.root / f"stream-{request.param}"
    found = list(iterate(rounds_config(toy, folder, {**STREAM, **PLACEMENTS[request.param]})))
    assert [each.index for each in found] == list(range(NUM_ROUNDS))
    return request.param, folder


@pytest.mark.slow
def test_rounds_are_those_of_one_who_takes_one_request_after_the_other(toy: Toy, calm: tuple[str, Path]) -> None:
    placement, folder = calm
    assert_simulated(rounds_config(toy, folder, {**STREAM, **PLACEMENTS[placement]}), folder)
    counts = [len(generations(folder, index)) for index in range(NUM_ROUNDS)]
    assert min(counts) < 14, "a round ended before it had all that it may take"
    summary = json.loads((folder / "summary.json").read_text())
    metrics = [found["metrics"] for found in summary["rounds"]]
    workers = 2 if placement == "split" else 1
    assert all(0 <= each["samples/not_used"] <= 2 * 2 * 2 * workers for each in metrics)
    ended_early = [each for each, count in zip(metrics, counts, strict=True) if count < 14]
    assert all(each["pairs/made"] >= WANTED for each in ended_early)


class Ends(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["judging", "judged", "pairs", "trained"])
def test_an_attempt_that_ends_anywhere_changes_nothing(toy: Toy, calm: tuple[str, Path], moment: str) -> None:
    placement, undisturbed = calm
    folder = toy.root / f"stream-{placement}-{moment}"
    config = rounds_config(toy, folder, {**STREAM, **PLACEMENTS[placement]})
    stage = {"judged": "judge", "pairs": "pairs", "trained": "train"}.get(moment)
    num_asked = [0]

    def observer(event: Event) -> None:
        if isinstance(event, StageDone) and event.stage == stage:
            raise Ends

    def fails(prompt: str, responses: list[str]) -> list[float]:
        num_asked[0] += 1
        if num_asked[0] == 4:
            raise ValueError("no more")
        return no_digits(prompt, responses)

    if moment == "judging":
        handed_in = config.model_copy(update={"judge": None})
        with pytest.raises(JudgeError):
            list(iterate(handed_in, fails))
        assert len(list(iterate(handed_in, fails))) == NUM_ROUNDS
    else:
        with pytest.raises(Ends):
            list(iterate(config, observer=observer))
        assert len(list(iterate(config))) == NUM_ROUNDS
    for index in range(NUM_ROUNDS):
        assert pairs(folder, index) == pairs(undisturbed, index)
        model = f"rounds/{index:03d}/train/model"
        assert weights(folder / model) == weights(undisturbed / model)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_arrival_does_not_matter(seed: int) -> None:
    """Requests are judged in any order that their window allows."""
    chance = random.Random(seed)
    num_pairs = [chance.randrange(3) for _ in range(30)]
    by_hand = next((end for end in range(1, 31) if sum(num_pairs[:end]) >= 12), 30)
    cut = RoundCut(30, 4, lambda made: sum(made) >= 12, lambda number: [num_pairs[number]])
    waiting: list[int] = []
    begun = 0
    while cut.end is None:
        while begun < 30 and cut.may_begin(begun):
            waiting.append(begun)
            begun += 1
        cut.judged(waiting.pop(chance.randrange(len(waiting))))
    assert cut.end == by_hand
    assert begun - cut.end < 4 + 4, "no more than a window beyond the end"
    assert cut.leaves_out(cut.end)
    assert not cut.leaves_out(cut.end - 1)
    assert not cut.may_begin(begun)


@pytest.mark.parametrize(("num_prompts", "per_round"), [(2, 1), (7, 3), (12, 11), (29, 20), (5, 5), (5, None)])
def test_rounds_that_take_all_are_those_without_the_key(num_prompts: int, per_round: int | None) -> None:
    place, number = PromptPlace(), per_round or num_prompts
    for index in range(30):
        chosen, place = take(place, number, num_prompts, per_round, seed=3)
        assert chosen == prompts_of(index, num_prompts, per_round, seed=3)
        assert PromptPlace.of(json.loads(json.dumps(place.record()))) == place


def test_rounds_of_any_length_share_an_epoch_and_repeat_nothing() -> None:
    chance, place, taken = random.Random(1), PromptPlace(), list[int]()
    for _ in range(200):
        number = chance.randrange(1, 20)
        chosen, place = take(place, number, 29, 20, seed=3)
        assert len(set(chosen)) == number
        taken += chosen
    counts = [taken.count(prompt) for prompt in range(29)]
    assert max(counts) - min(counts) <= 1 + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds.pairs": "spin"}, r"rounds\.pairs_per_round: 5 ends a round by the pairs of judged answers.*spin"),
        ({"rounds.prompts_per_round": 4}, r"best_worst makes at most one pair of a prompt.*Raise"),
        ({"judge.gpus_per_worker": 1, "generate.gpus_per_worker": 1}, r"colocated the judge .*placement: split"),
    ],
    ids=["spin", "too few prompts", "a judge that waits for a GPU"],
)
def test_what_makes_no_sense_is_refused(toy: Toy, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        set_up(rounds_config(toy, tmp_path / "run", {**STREAM, **changes}), None, ignore)
