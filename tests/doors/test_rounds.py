"""A round whose engine, judge and choice of pairs are of another package; and what each of them does alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from socket import gethostname

import pytest

from raydpo.config.round_sections import GenerateSection, JudgeSection
from raydpo.errors import ConfigError
from raydpo.generate import EngineSpec, Generator, Health
from raydpo.generate.make_engine import engine_problems
from raydpo.judge import PairRule, build_judge, judge_row, make_pairs, problems_of
from raydpo.judge.judge_inputs import inputs_of, is_comparative, may_use_gpu
from raydpo.pipelines import check, iterate
from raydpo.runtime import run_pool, session
from raydpo.schema.samples import Generate, Sample, Sampling
from tests.pipelines.rounds.toy_rounds import generations, pairs, rounds_config, rows, rows_of_parts
from tests.pipelines.toy import Notes, Toy

OUTSIDE = {
    "judge.kind": "my_pkg.judges:Wording",
    "judge.settings": {"word": "no", "most_words": 0},
    "rounds.pairs": "my_pkg.pairs:choose",
    "rounds.top_k": 2,
    "rounds.num_rounds": 1,
    "rounds.eval_prompts": [],
    "rounds.prompts_per_round": 8,
    "generate.engine": "my_pkg.engine:GreedyFirst",
}
WORDING = {"kind": "my_pkg.judges:Wording", "settings": {"word": "please", "most_words": 3}}


@pytest.fixture(scope="module")
def prompted(toy: Toy) -> Toy:
    """With prompts of rounds, which are not rankings."""
    for name, source in (("prompts", toy.train), ("held_out", toy.eval)):
        found = [{"prompt": row["question"]} for row in rows(source)]
        (toy.root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return toy


@pytest.mark.slow
def test_a_round(prompted: Toy, machine: None) -> None:
    folder, notes = prompted.root / "round", Notes()
    (found,) = iterate(rounds_config(prompted, folder, OUTSIDE), observer=notes)
    assert any("greedy first on cpu" in text for text in notes.info)
    samples = {tuple(s["text"] for s in row["samples"]) for row in generations(folder, 0)}
    assert len(samples) == 8
    scores = [row["scores"] for row in rows_of_parts(folder / "rounds/000/scores")]
    texts = [[s["text"] for s in row["samples"]] for row in generations(folder, 0)]
    judge = build_judge(
        JudgeSection.model_validate({"kind": OUTSIDE["judge.kind"], "settings": OUTSIDE["judge.settings"]})
    )
    assert sorted(scores) == sorted(list(judge("", each)) for each in texts)
    made = pairs(folder, 0)
    assert len(made) == found.metrics["pairs/made"] > 0
    assert all(pair["chosen_score"] > pair["rejected_score"] for pair in made)


def test_the_engine(toy: Toy, examples: dict[str, str]) -> None:
    ask = Generate(((40, 41, 42), (50, 51)), Sampling(3, 6), seed=3, version=0)
    ours, theirs = (
        Generator(EngineSpec(str(toy.model), engine=name)) for name in ("transformers", OUTSIDE["generate.engine"])
    )
    sampled, first = ours(ask).answers, theirs(ask).answers
    likeliest = ours(Generate(ask.prompts, Sampling(1, 6, greedy=True), 0, 0)).answers
    assert [answers[1:] for answers in first] == [answers[1:] for answers in sampled]
    assert [answers[0] for answers in first] == [answers[0] for answers in likeliest]
    assert theirs(Health())["engine"] == "greedy first"
    section = GenerateSection(engine="my_pkg.engine:GreedyFirst", num_answers=1)
    assert engine_problems(section) == [
        "generate.num_answers: 1 leaves nothing to sample except the likeliest answer; set at least 2."
    ]


def test_the_judge(examples: dict[str, str]) -> None:
    section = JudgeSection.model_validate(WORDING)
    assert problems_of(section) == []
    verdict = judge_row(build_judge(section), "p", ["please", "no", "please do come in", "a b c d e"])
    assert verdict.scores == pytest.approx((1.0, 0.0, 0.9, -0.2))
    assert may_use_gpu(section)
    assert not is_comparative(section)
    inputs = inputs_of(section, {})
    assert inputs["settings"] == WORDING["settings"]
    assert len(inputs["source_sha256"]) == 64
    assert "settings" not in inputs_of(JudgeSection(kind="json"), {})
    alone = JudgeSection(kind="function", function="my_pkg.judges:shortest")
    assert judge_row(build_judge(alone), "p", ["abc", ""]).scores == (-3.0, 0.0)
    both = JudgeSection.model_validate({"kind": "ensemble", "members": [WORDING, {"kind": "json", "weight": 2}]})
    assert judge_row(build_judge(both), "p", ["please", "1"]).scores == (1.0, 2.0)


@pytest.mark.ray
def test_a_worker_that_lacks_the_module_says_which_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver finds it on a path that the workers of its Ray, which started earlier, do not know."""
    (tmp_path / "on_one_node.py").write_text("class Judge:\n    def __call__(self, prompt, responses): ...\n")
    section = JudgeSection(kind="on_one_node:Judge")
    with session(local_cpus=2):
        monkeypatch.syspath_prepend(str(tmp_path))
        assert problems_of(section) == []
        with pytest.raises(ConfigError) as caught:
            list(run_pool("judge", partial(_worker, section), ["row"], num_workers=1, cpus=0))
    (problem,) = caught.value.problems
    assert problem.startswith("judge.kind: on_one_node could not be imported: ModuleNotFoundError")
    assert f"on every node that judges, or lie on its PYTHONPATH; this one is {gethostname()}" in problem


def _worker(section: JudgeSection) -> Callable[[str], str]:
    build_judge(section)
    return str


def test_settings_that_the_judge_does_not_take(examples: dict[str, str]) -> None:
    def said(**settings: object) -> list[str]:
        return problems_of(JudgeSection.model_validate({"kind": WORDING["kind"], "settings": settings}))

    assert "needs word, and has no default" in said()[0]
    assert (
        "judge.settings.most_wrds: my_pkg.judges:Wording does not take it. Did you mean most_words?"
        in said(word="a", most_wrds=1)[0]
    )
    assert said(word="a", most_words="many")[0].startswith("judge.settings.most_words: given 'many'; ")
    with pytest.raises(ConfigError, match="kind: json does not read settings"):
        JudgeSection(kind="json", settings={"word": "a"})


def test_the_choice_of_pairs(examples: dict[str, str]) -> None:
    samples = [Sample((n,), str(n), "eos") for n in range(4)]
    found = make_pairs(samples, [1.0, 4.0, 2.0, 3.0], PairRule("my_pkg.pairs:choose", top_k=2), 0)
    assert [pair[:2] for pair in found.pairs] == list(pairwise([1, 3, 2]))
    assert found.counts["used"] == 2


def test_a_choice_that_is_none(examples: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"same": "[(0, 0)]", "far": "[(0, 7)]", "twice": "[(0, 1), (1, 0)]", "raises": "1 / 0"}
    text = "".join(f"def {name}(samples, scores, kept, top_k, seed):\n    return {v}\n" for name, v in body.items())
    (tmp_path / "bad_choices.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    samples = [Sample((n,), str(n), "eos") for n in range(2)]
    for name, said in (
        ("same", r"chose \(0, 0\)"),
        ("far", r"\(0, 7\)"),
        ("twice", "a pair twice"),
        ("raises", "Zero"),
    ):
        with pytest.raises(ConfigError, match=rf"rounds.pairs: bad_choices:{name} .*{said}"):
            make_pairs(samples, [1.0, 2.0], PairRule(f"bad_choices:{name}"), 0)


def test_everything_wrong_is_said_at_once(prompted: Toy, tmp_path: Path, examples: dict[str, str]) -> None:
    changes = {
        "judge.settings": {},
        "rounds.pairs": "my_pkg.schedules:wsd",
        "generate.engine": "my_pkg.judges:Wording",
    }
    with pytest.raises(ConfigError) as caught:
        check(rounds_config(prompted, tmp_path / "run", {**OUTSIDE, **changes}))
    said = " ".join(caught.value.problems)
    assert "judge.settings: my_pkg.judges:Wording needs word" in said
    assert "rounds.pairs: wsd in my_pkg.schedules takes (step: int, num_steps: int) -> float" in said
    assert "generate.engine: Wording in my_pkg.judges has no generate, load_folder" in said
