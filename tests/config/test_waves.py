"""All that is wrong with a config comes at once, and nothing that only follows from it; in Python as on the command line."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from raydpo import cli
from raydpo.config import Config
from raydpo.config.load import load
from raydpo.config.section_base import as_pydantic_says
from raydpo.config.sections import DataSection, LoraSection, ObjectiveSection, RunSection, TrainSection
from raydpo.errors import ConfigError

GOOD = "run: {dir: a}\nmodel: {path: no/model}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def said(path: Path, *overrides: str, verb: str | None = None) -> list[str]:
    """Sentences without their place."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, verb)
    return [text.partition(": ")[2] for text in caught.value.problems]


def refused(build: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        build()
    return list(caught.value.problems)


ROUNDS = """\
run: {dir: RUN, sed: 3}
model: {path: RUN/gone}
train: {epochs: 0, export: best, offload_parameters: true}
judge: {kind: regex, pattern: "("}
rounds: {prompts: [p.jsonl], reference: initial, top_k: 3}
"""


@pytest.mark.parametrize("verb", ["iterate", "check"])
def test_every_kind_of_problem_in_one_go(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, ROUNDS.replace("RUN", str(tmp_path)))
    assert cli.main([verb, str(path)]) == 2
    lines = capsys.readouterr().err.replace(f"{path}", "run.yaml").splitlines()
    assert lines[0] == f"raydpo {verb}: 9 problems"
    begin = [
        "run.yaml:1: run.sed: no such key",
        "run.yaml:2: model.path: ",
        "run.yaml:3: train.epochs: given 0",
        "run.yaml:3: train: offload_parameters needs zero_stage: 3",
        "run.yaml:3: train.export: best would train on from another policy",
        "run.yaml:3: train.export: best looks at held-out data",
        "run.yaml:3: train.export: best looks at evaluations during training",
        "run.yaml:4: judge.pattern: '(' is not a regular expression",
        "run.yaml:5: rounds.top_k: 3 is read with rounds.pairs: top_k alone",
    ]
    for line, expected in zip(lines[1:], begin, strict=True):
        assert line.startswith(f"  - {expected}"), line


@pytest.mark.parametrize("verb", ["train", "evaluate", "precompute", "check"])
def test_a_misspelt_key_hides_nothing_of_other_verbs(verb: str, tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, f"run: {{dir: a}}\nmodel: {{path: {tmp_path}/gone}}\nevaluate: {{modle: x}}\n")
    assert cli.main([verb, str(path)]) == 2
    shown = capsys.readouterr().err
    assert "3 problems" in shown
    for words in ("evaluate.modle: no such key", "gone does not exist", "data.train and data.eval are both empty"):
        assert words in shown


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ("data: {trian: [a.jsonl]}", "data.trian: no such key"),
        ("data: {train: 5}", "data.train: given 5"),
        ("data: 5", "data: given 5"),
        ("dta: {train: [a.jsonl]}", "dta: no such key"),
        ("data: {train: [a]}\ntrain: {export: best, eval_evry: 5}\n", "train.eval_evry"),
        ("data: {train: [a]}\nreference: {sync_evry: 5, sync_alpha: 1}", "reference.sync_evry"),
        ("data: {train: [a]}\nreference: {modl: x, revision: main}", "reference.modl"),
        ("data: {train: [a], unpair: true}\nobjective: {name: ktoo}", "objective.name: 'ktoo'"),
        ("data: {train: [a]}\nobjective: {name: simpo, plus: [{name: dpoo}]}\nreference: {model: x}", "objective.plus"),
    ],
)
def test_what_only_follows_is_not_said(text: str, only: str, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + text)
    problems = [problem for problem in said(path, verb="train") if "looks at held-out data" not in problem]
    assert len(problems) == 1, problems
    assert only in problems[0]


@pytest.mark.parametrize("text", ["run: {dr: a}", "rn: {dir: a}", "run: 8"])
def test_a_key_that_was_misspelt_is_not_missing_as_well(text: str, tmp_path: Path) -> None:
    (problem,) = said(write(tmp_path, f"{text}\nmodel: {{path: b}}\n"))
    assert "missing" not in problem


@pytest.mark.parametrize(
    ("rounds", "only"),
    [
        ("judge: {knid: json}\nrounds: {prompts: [p], reference: initial}", "judge.knid"),
        ("judge: {kind: jsn}\nrounds: {prompts: [p], reference: initial}", "judge.kind: given"),
        ("jugde: {kind: json}\nrounds: {prompts: [p], reference: initial}", "jugde"),
        ("judge: {kind: json}\nronds: {prompts: [p], reference: initial}", "ronds"),
        ("judge: {kind: json}\nrounds: {prompts: [p], referenc: ema, ema_decay: 0.5}", "rounds.referenc"),
        ("judge: {kind: json}\nrounds: {prompts: [p], reference: initial, pars: top_k, top_k: 5}", "rounds.pars"),
        ("judge: {kind: json}\nrounds: {prompts: 5, reference: initial}", "rounds.prompts: given 5"),
        ("rounds: {prompts: [p], reference: initial, pairs: spn}", "rounds.pairs: given"),
    ],
)
@pytest.mark.parametrize("verb", ["iterate", "check"])
def test_of_rounds_too(rounds: str, only: str, verb: str, tmp_path: Path) -> None:
    problems = said(write(tmp_path, GOOD + rounds), verb=verb)
    assert len(problems) == 1, problems
    assert only in problems[0]


def test_problems_between_sections_know_where_they_are_from(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "reference: {revision: main}\n")
    for overrides, place in (((), f"{path}:3"), (("reference.revision=v1",), "command line")):
        (problem,) = refused(lambda given=overrides: load(path, given))
        assert problem.startswith(f"{place}: reference.revision is set without reference.model")
    (problem,) = refused(lambda: load(write(tmp_path, GOOD), verb="train"))
    assert problem.startswith(f"{path}: data.train and data.eval are both empty")


def test_what_no_verb_is_needed_for_is_said_by_load_alone(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "rounds: {prompts: [p], reference: initial, top_k: 5}\n")
    assert load(path).config.rounds.top_k == 5
    assert len(said(path, verb="iterate")) == 2, "no judge either"
    assert len(said(path, verb="check")) == 1, "a judge may be handed in later"
    assert len(said(path, "reference.revision=x")) == 1
    assert refused(lambda: Config.load(path, ["reference.revision=x"]))[0].startswith(
        "command line: reference.revision"
    )


def minimal(**more: Any) -> dict[str, Any]:
    return {"run": {"dir": "a"}, "model": {"path": "b"}, **more}


MISTAKES: list[dict[str, Any]] = [
    minimal(train={"epochs": 0, "learning_rat": 1, "offload_parameters": True}, trian={}),
    minimal(run={"dir": "", "seed": True}),
    minimal(run={"seed": 1}, model={"pth": "x"}),
    minimal(data={"train": list(range(200)), "confidence_column": "x"}),
    minimal(objective={"name": "dpo", "beta": -1, "gamma_beta_ratio": 3, "learning_rate": 4}),
    minimal(objective="dpoo", profile="maybe"),
    minimal(train=5, data={"eval_fraction": float("inf")}),
    minimal(judge={"kind": "json", "pattern": "a"}, rounds={"reference": "initial"}),
    minimal(judge={"kind": "ensemble", "members": [{"kind": "length"}, {"kind": "poetry"}]}),
    minimal(train={"lora": {"rnk": 4, "alpha": 0}}),
    {"data": {}},
]


@pytest.mark.parametrize("values", MISTAKES, ids=range(len(MISTAKES)))
def test_python_says_what_the_command_line_says(values: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path, yaml.safe_dump(values))
    in_python = refused(lambda: Config(**values))
    assert in_python == refused(lambda: Config.model_validate(values))
    of_file = [problem.partition(": ")[2].replace(f" ({path}:", " (:") for problem in refused(lambda: load(path))]
    assert sorted(in_python) == sorted(_without_places(problem) for problem in of_file)


def _without_places(problem: str) -> str:
    return re.sub(r" \(:\d+\)", "", problem)


def test_a_wrong_type_is_one_sentence() -> None:
    (problem,) = refused(lambda: Config(**minimal(data={"train": list(range(200))})))
    assert problem.startswith("data.train: given [0, 1, 2")
    assert "a list of texts" in problem


def test_sections_alone_and_sections_in_a_config() -> None:
    first, second = refused(lambda: TrainSection(learning_rate=-1, offload_parameters=True))
    assert first.startswith("learning_rate: given -1; allowed: a number > 0.")
    assert second.startswith("offload_parameters needs zero_stage: 3; given offload_parameters: true")
    assert refused(lambda: LoraSection(rnk=3))[0].startswith("rnk: no such key, 3 would")
    assert refused(lambda: RunSection())[0].startswith("dir is missing; allowed: text that is not empty.")
    assert refused(lambda: ObjectiveSection(name="dpo", beta=0))[0].startswith("beta: 0 is out of range")
    assert refused(lambda: Config.model_validate(5))[0].startswith("given 5; allowed: a section with the keys run,")
    (wrong_class,) = refused(lambda: Config(run=RunSection(dir="a"), model={"path": "b"}, train=DataSection()))
    assert wrong_class.startswith("train: given ")
    config = Config(run=RunSection(dir="a"), model={"path": "b"}, train=TrainSection(epochs=2), objective="sft")
    assert (config.train.epochs, config.objective.name) == (2, "sft")
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_broken_config_leaves_the_defaults_alone() -> None:
    """What is left of a broken config is a copy: the next one has every key."""
    refused(lambda: Config(**minimal(data={"train": 5}, reference={"modle": "x"})))
    whole = Config(**minimal())
    assert (whole.data.train, whole.reference.model) == ((), None)


def test_pydantic_itself_can_be_asked() -> None:
    with as_pydantic_says(), pytest.raises(ValidationError, match="greater than 0"):
        TrainSection(learning_rate=-1)
