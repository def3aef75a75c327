"""Rounds on the real engines: every arrow is committed, and what trains is what was sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.artifacts import ExampleTable, weights_digest
from raydpo.data.tokenizer import TextTokenizer
from raydpo.generate.greedy import greedy
from raydpo.pipelines import Round, iterate
from tests.pipelines.rounds.toy_rounds import (
    NUM_PROMPTS,
    generations,
    greedy_ids,
    held_out_ids,
    no_digits,
    pairs,
    rounds_config,
)
from tests.pipelines.toy import Notes, Toy, everything_in

TWO: dict[str, Any] = {"generate.num_workers": 2}


@pytest.fixture(scope="module")
def run(toy: Toy, machine: None) -> tuple[Path, list[Round], Notes]:
    notes = Notes()
    folder = toy.root / "rounds"
    return folder, list(iterate(rounds_config(toy, folder, TWO), observer=notes)), notes


@pytest.mark.slow
def test_every_prompt_is_answered_by_the_policy_of_its_round(run: Any, toy: Toy) -> None:
    folder, found, _ = run
    assert [each.index for each in found] == [0, 1]
    for index in range(2):
        answered = generations(folder, index)
        assert len({row["prompt"] for row in answered}) == NUM_PROMPTS
        assert {row["version"] for row in answered} == {index}
        assert {len(row["samples"]) for row in answered} == {4}
    assert generations(folder, 0) != generations(folder, 1)


def test_the_better_answer_is_chosen(run: Any) -> None:
    folder, _, _ = run
    for index in range(2):
        for pair in pairs(folder, index):
            (chosen,), (rejected,) = (no_digits("", [pair[side]]) for side in ("chosen", "rejected"))
            assert (chosen, rejected) == (pair["chosen_score"], pair["rejected_score"])
            assert chosen > rejected


def test_ids_go_from_the_sampler_to_the_trainer_untouched(run: Any, toy: Toy) -> None:
    folder, _, _ = run
    tokenizer = TextTokenizer(str(toy.model))
    for index in range(2):
        sampled = {tuple(sample["ids"]) for row in generations(folder, index) for sample in row["samples"]}
        table = ExampleTable.open(folder / f"rounds/{index:03d}/train/data", "train")
        made = pairs(folder, index)
        assert len(table) == len(made) > 0
        for example, pair in enumerate(made):
            answers = [answer.tolist() for answer in table.answer_ids(example)]
            assert answers == [pair["chosen_ids"], pair["rejected_ids"]]
            assert table.prompt_ids(example).tolist() == pair["prompt_ids"]
            assert all(tuple(answer) in sampled for answer in answers)
            assert tokenizer.decode(pair["prompt_ids"]).removeprefix("<s>") == pair["prompt"]


def test_training_moves_towards_what_the_judge_likes(run: Any) -> None:
    _, found, _ = run
    scores = [each.metrics["eval/mean_score"] for each in found]
    initial = json.loads((found[0].folder.parents[1] / "summary.json").read_text())["initial"]
    assert initial["eval/win_rate"] == 0.5
    assert initial["eval/kl_nats"] == 0
    assert scores[-1] > initial["eval/mean_score"]
    assert found[-1].metrics["eval/win_rate"] > 0.5
    assert found[-1].metrics["eval/win_rate_low"] < found[-1].metrics["eval/win_rate"]
    assert found[-1].metrics["eval/kl_nats"] > 0


def test_generators_were_compared_with_the_trainers_after_each_push(run: Any) -> None:
    _, _, notes = run
    assert [text.split(":")[0] for text in notes.info if "generators hold policy" in text] == [
        "2 generators hold policy 1",
        "2 generators hold policy 2",
    ]


def test_held_out_answers_are_those_of_the_model_that_was_published(run: Any, toy: Toy) -> None:
    """The pushed weights against the folder: greedy tokens of both are the same."""
    folder, found, _ = run
    ids = held_out_ids(rounds_config(toy, folder))
    said = [greedy_ids(each.folder) for each in found]
    assert said == [greedy(each.model, ids, 8) for each in found]
    assert said[0] != said[1]


def test_the_reference_stays_the_initial_model(run: Any, toy: Toy) -> None:
    folder, _, _ = run
    references = [json.loads((folder / f"rounds/{i:03d}/train/reference.json").read_text())["cache"] for i in range(2)]
    weights = {json.loads((Path(cache) / "identity.json").read_text())["weights"] for cache in references}
    assert weights == {weights_digest(toy.model)}


def test_a_finished_run_is_read_not_repeated(run: Any, toy: Toy, machine: None) -> None:
    folder, found, _ = run
    before = everything_in(folder / "rounds")
    again = list(iterate(rounds_config(toy, folder, TWO)))
    assert again == found
    assert everything_in(folder / "rounds") == before


@pytest.mark.slow
def test_more_rounds_go_on_from_the_last_one(run: Any, toy: Toy, machine: None) -> None:
    folder, found, _ = run
    before = everything_in(folder / "rounds")
    notes = Notes()
    more = list(iterate(rounds_config(toy, folder, {**TWO, "rounds.num_rounds": 3}), observer=notes))
    assert more[:2] == found
    assert more[2].index == 2
    assert {path: seen for path, seen in everything_in(folder / "rounds").items() if path in before} == before
    assert {row["version"] for row in generations(folder, 2)} == {2}
    assert "2 generators hold policy 2" in " ".join(notes.info), "loaded from the folder, and compared as well"


def test_other_settings_are_refused(run: Any, toy: Toy, machine: None) -> None:
    from raydpo.errors import ResumeError

    folder, _, _ = run
    with pytest.raises(ResumeError, match=r"generate\.temperature: 1\.0 then, 0\.5 now"):
        list(iterate(rounds_config(toy, folder, {"generate.temperature": 0.5})))


def test_another_dtype_is_refused_and_auto_that_is_the_same_goes_on(run: Any, toy: Toy, machine: None) -> None:
    from raydpo.errors import ResumeError

    folder, found, _ = run
    with pytest.raises(
        ResumeError, match=r"model\.dtype: 'float32' then, 'bfloat16' now.*model\.dtype: float32 goes on"
    ):
        list(iterate(rounds_config(toy, folder, {**TWO, "model.dtype": "bfloat16"})))
    assert list(iterate(rounds_config(toy, folder, {**TWO, "model.dtype": "auto"})))[:2] == found


def test_an_adapter_on_a_tied_head_is_refused_before_anything_is_sampled(
    toy: Toy, machine: None, tmp_path: Path
) -> None:
    from raydpo.errors import ConfigError

    lora = {"train.lora": {"target_modules": ["q_proj", "lm_head"]}}
    with pytest.raises(
        ConfigError, match=r"train\.lora\.target_modules: .*lm_head is one matrix with model\.embed_tokens"
    ):
        next(iterate(rounds_config(toy, tmp_path / "run", lora)))
    assert not (tmp_path / "run").exists()


def test_a_function_judges_in_this_process(toy: Toy, machine: None) -> None:
    asked = []

    def judge(prompt: str, responses: list[str]) -> list[float]:
        asked.append(prompt)
        return no_digits(prompt, responses)

    changes = {"judge.kind": "json", "rounds.num_rounds": 1, "rounds.prompts_per_round": 8}
    config = rounds_config(toy, toy.root / "by-hand", changes).model_copy(update={"judge": None})
    (found,) = iterate(config, judge=judge)
    assert len(asked) == 8 + 2 * 16
    assert found.metrics["pairs/made"] > 0
