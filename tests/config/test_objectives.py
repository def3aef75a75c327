"""The table of objectives: its page is up to date, the verb shows it, its bounds hold, options are never ignored."""

import json
import re
from pathlib import Path

import pytest

import raydpo
from raydpo import cli
from raydpo.config.modifier_table import MODIFIERS
from raydpo.config.objective_check import check_objective, readable
from raydpo.config.objective_page import notes, page, table
from raydpo.config.objective_table import OBJECTIVES
from raydpo.metrics import METRICS, declared

PAGE = Path(raydpo.__file__).parents[1] / "docs/objectives.md"


def test_the_page_is_up_to_date(capsys):
    assert cli.main(["objectives", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed == page() + declared.page(), "the verb prints both"
    assert printed == PAGE.read_text(), "run: raydpo objectives --markdown > docs/objectives.md"
    assert set(re.findall(r"^\| `(\w+)`", page(), re.M)) == {*OBJECTIVES, *MODIFIERS}
    listed = set(re.findall(r"^\| `([\w/]+)`", declared.page(), re.M))
    assert listed | {f"loss/{name}" for name in OBJECTIVES} == set(METRICS)


def test_the_verb_shows_every_objective(capsys):
    assert cli.main(["objectives"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 100
    head, *lines = printed[: printed.index("")]
    assert printed[len(lines) + 1 :] == notes()
    assert "aot, aot_unpaired, kto, bco." in notes()[1]
    assert head.split() == ["objective", "data", "reference", "reads", "parameters"]
    shown = {line.split()[0]: line.split()[1:] for line in lines}
    assert list(shown) == list(OBJECTIVES)
    assert shown["simpo"] == ["pairs", "no", "lengths", "beta=2", "gamma_beta_ratio=0.5"]
    assert shown["hinge"] == ["pairs", "yes", "sums", "beta=0.1"]
    assert [head, *lines] == table()


def test_the_verb_as_json(capsys):
    assert cli.main(["objectives", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["objectives"]}
    assert set(rows) == set(OBJECTIVES)
    assert rows["orpo"]["needs_reference"] is False
    assert [rows[name]["num_answers"] for name in ("dpo", "orpo", "kto", "sft")] == [2, 2, 1, 1]
    assert rows["dpop"]["parameters"]["penalty"]["default"] == 50


@pytest.mark.parametrize("row", OBJECTIVES.values(), ids=lambda row: row.name)
def test_defaults_are_within_their_bounds_and_rows_are_complete(row):
    defaults = {key: option.default for key, option in readable(row).items()}
    assert check_objective(row.name) == {"name": row.name, **defaults, "plus": []}
    assert re.fullmatch(r"\d{4}\.\d{5}", row.paper) or row.name == "sft"
    assert row.reading
    assert all(parameter.help for parameter in row.parameters.values())


@pytest.mark.parametrize(
    "given",
    [
        {"name": "exo", "label_smoothing": 0.0},
        {"name": "cdpo", "label_smoothing": 0},
        {"name": "robust", "label_smoothing": 0.5},
        {"name": "fdpo_alpha", "alpha": 1.0},
        {"name": "discopop", "tau": 1.5},
        {"name": "simpo", "gamma_beta_ratio": -0.1},
        {"name": "hinge", "beta": 0},
    ],
    ids=lambda given: given["name"],
)
def test_values_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match="is out of range; allowed: "):
        check_objective(given)


def test_an_option_of_another_objective_names_its_readers():
    with pytest.raises(ValueError, match="objectives that read it: simpo, alphapo"):
        check_objective({"name": "dpo", "gamma_beta_ratio": 0.5})
    with pytest.raises(ValueError, match="objective orpo does not read beta"):
        check_objective({"name": "orpo", "beta": 0.1})
