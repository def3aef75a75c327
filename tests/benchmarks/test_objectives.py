"""The comparison of objectives: its page is that of its results, nobody is missing, and the quickstart is as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import objectives, results
from benchmarks.page import page
from benchmarks.settings import NOTES, OVERRIDES, compared, settings_of
from raydpo.config import OBJECTIVES
from raydpo.config.objective_check import check_objective
from raydpo.quickstart.offline_dpo import DPO_OBJECTIVE, Supervised, alignment_config, sft_config
from raydpo.quickstart.sorting_task import TaskFiles

PAGE = Path(__file__).parents[2] / "docs/quickstart_by_objective.md"
AGAIN = "make bench-objectives ONLY="
POINTS = 0.25
"""What the quickstart promises of dpo; an objective that raises less needs a note."""


def an_entry(name, seed=0, after=0.9, **made):
    settings = results.wanted(name, seed)
    metrics = {"rewards/accuracies": 0.875, "log_ratios/margins": 3.5}
    return {
        "settings": settings,
        "made": {"date": "2026-01-31", "commit": "abc", "hardware": "2 CPU cores (x), torch 1", **made},
        "exact_match": {"before": 0.4, "after": after},
        "steps": 32,
        "reference": {"rows": 10, "rows_scored": 10 * (name == "dpo"), "forwards": 2 * (name == "dpo")},
        "eval": {"first": {}, "last": metrics},
    }


@pytest.fixture
def start(tmp_path):
    files = [tmp_path / name for name in ("sft.jsonl", "pairs.jsonl", "held_out.jsonl")]
    task = TaskFiles(*files, prompts=(), expected=(), texts=())
    return Supervised(tmp_path, task, seed=3, workers=2, model=tmp_path / "sft/model", answers=(), exact_match=0.0)


def test_every_objective_that_can_be_compared_is_in_the_results():
    there = [entry["settings"] for entry in results.read(results.FILE)]
    missing = [name for name in compared() if results.wanted(name, 0) not in there]
    assert not missing, f'not in {results.FILE.name} with its present settings: run {AGAIN}"{" ".join(missing)}"'


def test_no_result_is_of_an_objective_that_is_not_compared():
    assert {results.name_of(entry) for entry in results.read(results.FILE)} <= set(compared())


def test_the_page_is_that_of_the_results():
    assert PAGE.read_text() == page(results.read(results.FILE)), "run python -m benchmarks.objectives --page-only"


def test_an_objective_that_hardly_improves_has_a_note():
    for entry in results.read(results.FILE):
        exact, name = entry["exact_match"], results.name_of(entry)
        if exact["after"] - exact["before"] < POINTS:
            assert name in NOTES, f"{name}: {exact}; find out why and say so in benchmarks/settings.py"


def test_overrides_and_notes_are_of_compared_objectives_and_have_reasons():
    assert {*OVERRIDES, *NOTES} <= set(compared())
    assert all(override.reason and override.settings for override in OVERRIDES.values())
    assert set(compared()) >= {name for name, row in OBJECTIVES.items() if row.num_answers == 2}


def test_the_page_says_what_was_measured_and_what_was_not():
    text = page([an_entry("dpo"), an_entry("ipo", after=0.5, date="2026-02-01")])
    assert "- 2026-01-31, commit abc, 2 CPU cores (x), torch 1: `dpo`\n" in text
    assert "- 2026-02-01, commit abc, 2 CPU cores (x), torch 1: `ipo`\n" in text
    row = "| `dpo` | `beta` 0.1<br>`label_smoothing` 0 | 7e-05 | 40.0% | 90.0% | 3.50 | 87.5% |"
    assert row in text
    assert (
        "2 of these runs read a reference, 20 rows in all; 10 of them were scored in these runs, in 2 forwards" in text
    )
    assert "Not measured yet: `cdpo`, " in text
    assert "commit not known" in page([an_entry("dpo", commit="")])


def test_several_seeds_share_a_row():
    text = page([an_entry("dpo", 0, 0.9), an_entry("dpo", 1, 0.8)])
    assert "| 40.0%, 40.0% | 90.0%, 80.0% |" in text
    assert "seeds: 0, 1" in text


def test_a_new_result_replaces_its_own_and_those_of_other_settings():
    dpo, again, other_seed = an_entry("dpo"), an_entry("dpo", after=0.7), an_entry("dpo", 1)
    stale = json.loads(json.dumps(an_entry("dpo", 2)))
    stale["settings"]["objective"]["beta"] = 0.2
    kept = results.replaced([dpo, other_seed, stale, an_entry("ipo")], again)
    assert kept == [other_seed, an_entry("ipo"), again]


def test_results_are_in_the_order_of_the_table_and_nothing_is_run_twice(tmp_path):
    file, out, work = tmp_path / "results.json", tmp_path / "page.md", tmp_path / "work"
    results.write(file, [an_entry("ipo"), an_entry("dpo", 1), an_entry("dpo", 0)])
    made = [(results.name_of(entry), entry["settings"]["seed"]) for entry in results.read(file)]
    assert made == [("dpo", 0), ("dpo", 1), ("ipo", 0)]
    arguments = ["--only", "dpo", "ipo", "--results", str(file), "--out", str(out), "--work", str(work)]
    assert objectives.main(arguments) == 0
    assert out.read_text() == page(results.read(file))
    assert not work.exists()


def test_an_unknown_objective_is_refused_with_those_allowed(capsys):
    with pytest.raises(SystemExit):
        objectives.main(["--only", "dpoo"])
    assert "alphapo" in capsys.readouterr().err


def test_the_alignment_of_the_quickstart_has_the_settings_it_always_had(start):
    config, root = alignment_config(start, DPO_OBJECTIVE), start.root
    assert config.model_dump(exclude_unset=True) == {
        "run": {"dir": f"{root}/dpo", "seed": 3},
        "model": {"path": f"{root}/sft/model", "dtype": "float32"},
        "data": {"train": (f"{root}/pairs.jsonl",), "eval": (f"{root}/held_out.jsonl",), "max_length": 64},
        "objective": check_objective({"name": "dpo", "beta": 0.1}),
        "reference": {"cache_dir": f"{root}/cache", "num_workers": 2},
        "train": {"learning_rate": 7e-5, "epochs": 1, "global_batch_pairs": 64, "zero_stage": 2, "num_workers": 2},
    }
    assert sft_config(root, start.task, seed=3, workers=2).model_dump(exclude_unset=True) == {
        "run": {"dir": f"{root}/sft", "seed": 3},
        "model": {"path": f"{root}/fresh", "dtype": "float32"},
        "data": {"train": (f"{root}/sft.jsonl",), "max_length": 64},
        "objective": check_objective("sft"),
        "train": {"learning_rate": 1.5e-3, "epochs": 3, "global_batch_pairs": 64, "zero_stage": 2, "num_workers": 2},
    }


def test_an_alignment_takes_another_objective_and_other_settings(start):
    changes = {"train": {"learning_rate": 1e-5, "max_steps": 2}, "data": {"overlong": "error"}}
    config = alignment_config(start, {"name": "simpo", "beta": 2.5}, folder="other", settings=changes)
    assert config.objective.parameters == {"beta": 2.5, "gamma_beta_ratio": 0.5}
    assert (config.train.learning_rate, config.train.max_steps, config.train.epochs) == (1e-5, 2, 1)
    assert config.data.overlong == "error"
    assert config.data.max_length == 64
    assert config.run.dir == f"{start.root}/other"


@pytest.mark.parametrize("name", compared())
def test_the_settings_of_a_result_are_those_of_its_run(start, name):
    wanted, config = results.wanted(name, 3), alignment_config(start, {"name": name}, settings=settings_of(name))
    assert wanted["objective"] == {"name": name, **config.objective.parameters}
    for section in set(wanted) - {"seed", "objective", "start"}:
        assert wanted[section].items() <= config.model_dump(mode="json")[section].items()
