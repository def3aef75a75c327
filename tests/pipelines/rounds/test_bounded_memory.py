"""What the driver holds while it makes a round: the samples of a part or two, however many parts there are."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from raydpo.data.tokenizer import TextTokenizer
from raydpo.driver.beside import JudgedBeside
from raydpo.driver.busy import Busy
from raydpo.driver.generators import Generators, Policy
from raydpo.driver.judges import Judging
from raydpo.driver.roles import Roles
from raydpo.generate.engine import EngineSpec
from raydpo.judge.pairs import best_worst
from raydpo.models.resolve import resolve_model
from raydpo.rounds.evaluate import Evaluator
from raydpo.rounds.produce import Producer
from raydpo.rounds.standing_roles import StandingRoles
from raydpo.rundir.rounds_folder import RoundsFolder
from raydpo.schema.events import ignore
from raydpo.schema.samples import Generate, Generated, Prompt, Sample
from tests.pipelines.rounds.toy_rounds import rounds_config
from tests.pipelines.toy import Toy

NUM_PROMPTS, NUM_ANSWERS, PER_ITEM = 60, 2, 3
MOST = 3 * PER_ITEM * NUM_ANSWERS
"""Samples of three parts; the round has twenty."""

_seen: list[int] = []


def look() -> None:
    """Count the samples that are alive: as `Sample`, or as the row of a part that they are read from."""
    rows = samples = 0
    for found in gc.get_objects():
        samples += type(found) is Sample
        rows += type(found) is dict and "samples" in found and "version" in found
    _seen.append(max(samples, rows * NUM_ANSWERS))


class Source:
    """Stands for generators: answers of different lengths, in the order of the requests."""

    shares_gpus = False

    def hold(self, policy: Policy) -> None:
        pass

    def generate(
        self, requests: Sequence[Generate], beside: JudgedBeside | None = None
    ) -> Iterator[tuple[int, Generated]]:
        for index, request in enumerate(requests):
            look()
            number = request.sampling.num_answers
            answers = tuple(
                tuple(Sample((*prompt, 7 + answer), "x" * (answer + 1), "eos") for answer in range(number))
                for prompt in request.prompts
            )
            yield index, Generated(answers, request.version, 0.0)
            if beside is not None:
                beside.judging.advance()


def looking(prompt: str, responses: list[str]) -> list[float]:
    """A judge that likes length."""
    look()
    return [float(len(response)) for response in responses]


def choose(samples: Any, scores: Any, kept: Any, top_k: int, seed: int) -> list[tuple[int, int]]:
    """A choice of pairs."""
    look()
    return best_worst(samples, scores, kept, top_k, seed)


@pytest.fixture
def parts(toy: Toy, tmp_path: Path) -> tuple[RoundsFolder, list[Prompt], Roles]:
    changes = {
        "generate.prompts_per_item": PER_ITEM,
        "generate.num_answers": NUM_ANSWERS,
        "rounds.pairs": f"{__name__}:choose",
    }
    layout = RoundsFolder(
        rounds_config(toy, tmp_path, changes), tmp_path, resolve_model("model.path", str(toy.model), None)
    )
    prompts = [Prompt(f"{number:032x}", f"prompt {number}", (number, number + 1)) for number in range(NUM_PROMPTS)]
    judging = Judging(looking, None, EngineSpec(str(toy.model)))
    _seen.clear()
    return layout, prompts, Roles(cast(Generators, Source()), judging, Busy(), ignore, PER_ITEM)


def test_a_round_holds_a_few_parts(toy: Toy, parts: tuple[RoundsFolder, list[Prompt], Roles]) -> None:
    layout, prompts, roles = parts
    made = Producer(layout, prompts, TextTokenizer(str(toy.model)), roles).produce(0, Policy(0, toy.model))
    assert made.num_pairs == NUM_PROMPTS
    assert len(_seen) == NUM_PROMPTS // PER_ITEM + 2 * NUM_PROMPTS, "sampling, judging and choosing were looked at"
    assert 0 < max(_seen) <= MOST


def test_an_evaluation_holds_a_few_parts(toy: Toy, parts: tuple[RoundsFolder, list[Prompt], Roles]) -> None:
    layout, prompts, roles = parts
    metrics = Evaluator(layout, prompts, cast(StandingRoles, None), roles).evaluate(Policy(0, toy.model))
    assert (metrics["eval/mean_length_tokens"], metrics["eval/mean_score"]) == (3.0, 1.0)
    assert len(_seen) == NUM_PROMPTS // PER_ITEM + NUM_PROMPTS
    assert 0 < max(_seen) <= MOST
