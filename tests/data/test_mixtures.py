"""Mixtures: how often and how many examples of an entry are used, what is left out, and that every line is accounted for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.config.mixture_entry import MixtureEntry
from raydpo.data import prepare
from raydpo.data.mixture import find_mixture
from raydpo.errors import ConfigError
from tests.data.conftest import Prepared, config_of, write_jsonl


def rows(word: str, number: int) -> list[Any]:
    return [{"prompt": f"{word} {i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(number)]


def go(tokenizer: Path, folder: Path, train: list[Any], seed: int = 0, objective: str = "dpo", **data: Any) -> Prepared:
    config = Config.model_validate(
        {
            "run": {"dir": "run", "seed": seed},
            "model": {"path": "model"},
            "data": {"train": train, **data},
            "objective": {"name": objective},
        }
    )
    return Prepared(prepare(config, str(tokenizer), folder / "data"), folder / "data")


def places(prepared: Prepared, split: str = "train") -> Counter[str]:
    return Counter(Path(source).name for *_, source in prepared.examples(split))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    bad = {"prompt": "x", "chosen": "same", "rejected": "same"}
    return {
        "a": str(write_jsonl(tmp_path / "a.jsonl", rows("a", 20))),
        "b": str(write_jsonl(tmp_path / "b.jsonl", [*rows("b", 40), bad])),
        "c": str(write_jsonl(tmp_path / "c.jsonl", rows("c", 5))),
    }


def test_passes_and_counts_and_plain_paths_together(
    files: dict[str, str], plain_tokenizer: Path, tmp_path: Path
) -> None:
    train = [{"path": files["a"], "passes": 2}, {"path": files["b"], "count": 12}, files["c"]]
    prepared = go(plain_tokenizer, tmp_path, train, max_bad_fraction=0.1)
    found, report = places(prepared), prepared.report
    by_file = {name: [n for place, n in found.items() if place.startswith(name)] for name in "abc"}
    assert by_file == {"a": [2] * 20, "b": [1] * 12, "c": [1] * 5}
    assert (report.lines_read, report.train_pairs) == (66, 57)
    assert (report.repeated, report.not_drawn, report.deduplicated) == (20, 28, 0)
    assert report.duplicates == 0, "a repeat is wanted"
    assert report.entries["train"] == {
        "a": {"train": 40, "repeated": 20, "lines": 20},
        "b": {"train": 12, "lines": 41, "quarantined": 1, "not_drawn": 28},
        "c": {"train": 5, "lines": 5},
    }
    assert report.entries["train"]["b"]["train"] == 12


def test_rows_of_a_repeat_have_the_keys_of_the_first(
    files: dict[str, str], plain_tokenizer: Path, tmp_path: Path
) -> None:
    from raydpo.artifacts.examples import ExampleTable

    prepared = go(plain_tokenizer, tmp_path, [{"path": files["c"], "passes": 3}])
    table = ExampleTable.open(prepared.folder, "train")
    keys = Counter(tuple(table.row_keys(example)) for example in range(len(table)))
    assert sorted(keys.values()) == [3] * 5


def test_what_is_drawn_follows_the_seed(files: dict[str, str], plain_tokenizer: Path, tmp_path: Path) -> None:
    def drawn(run_seed: int, **entry: Any) -> set[str]:
        return set(
            places(go(plain_tokenizer, tmp_path, [{"path": files["b"], **entry}], run_seed, max_bad_fraction=0.1))
        )

    once = drawn(1, count=12)
    assert len(once) == 12
    assert once == drawn(1, count=12)
    assert once != drawn(2, count=12)
    assert drawn(1, count=12, seed=7) == drawn(2, count=12, seed=7) != once
    assert len(drawn(1, count=1000)) == 40, "a cap: no more than there is"
    assert 5 < len(drawn(1, passes=0.5)) < 35


def test_a_part_of_a_pass_is_added_to_whole_ones(files: dict[str, str], plain_tokenizer: Path, tmp_path: Path) -> None:
    prepared = go(plain_tokenizer, tmp_path, [{"path": files["b"], "passes": 2.5}], max_bad_fraction=0.1)
    found = Counter(places(prepared).values())
    assert set(found) == {2, 3}
    assert sum(found.values()) == 40


def test_held_out_prompts_are_never_repeated(files: dict[str, str], plain_tokenizer: Path, tmp_path: Path) -> None:
    train = [{"path": files["b"], "passes": 3}]
    prepared = go(plain_tokenizer, tmp_path, train, eval_fraction=0.3, max_bad_fraction=0.1)
    assert set(places(prepared, "eval").values()) == {1}
    assert set(places(prepared).values()) == {3}
    assert len(places(prepared)) + len(places(prepared, "eval")) == 40


def test_another_seed_or_entry_is_another_preparation(
    files: dict[str, str], plain_tokenizer: Path, tmp_path: Path
) -> None:
    plain = [files["a"]]
    drawn = [{"path": files["a"], "count": 5}]
    assert not go(plain_tokenizer, tmp_path, plain, 1).report.reused
    assert go(plain_tokenizer, tmp_path, plain, 2).report.reused, "nothing is drawn"
    assert not go(plain_tokenizer, tmp_path, drawn, 1).report.reused
    assert go(plain_tokenizer, tmp_path, drawn, 1).report.reused
    assert not go(plain_tokenizer, tmp_path, drawn, 2).report.reused


@pytest.mark.parametrize(("how", "kept"), [("none", 6), ("pair", 4), ("prompt", 2)])
def test_deduplication(how: str, kept: int, plain_tokenizer: Path, tmp_path: Path) -> None:
    def pair(prompt: str, chosen: str) -> dict[str, str]:
        return {"prompt": prompt, "chosen": chosen, "rejected": "no"}

    first = write_jsonl(tmp_path / "first.jsonl", [pair("p", "a"), pair("p", "b"), pair("p", "a")])
    second = write_jsonl(tmp_path / "second.jsonl", [pair("q", "a"), pair("p", "b"), pair("q", "b")])
    train = [str(first), {"path": str(second), "passes": 2}]
    prepared = go(plain_tokenizer, tmp_path, train, deduplicate=how)
    report = prepared.report
    assert len(places(prepared)) == kept
    assert report.deduplicated == 6 - kept
    assert report.lines_read == 6
    assert places(prepared)["first.jsonl:1"] == 1
    assert places(prepared)["second.jsonl:1"] == 2


def test_labels_of_one_answer_are_no_duplicates(plain_tokenizer: Path, tmp_path: Path) -> None:
    labelled = [{"prompt": "p", "completion": "a", "label": label} for label in (True, False, True)]
    path = str(write_jsonl(tmp_path / "labels.jsonl", list(labelled)))
    prepared = go(plain_tokenizer, tmp_path, [path], objective="apo_zero_unpaired", deduplicate="pair")
    assert (prepared.report.train_pairs, prepared.report.deduplicated) == (2, 1)


def test_an_example_that_was_not_drawn_hides_no_copy(plain_tokenizer: Path, tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "one.jsonl", rows("x", 10)))
    other = str(write_jsonl(tmp_path / "two.jsonl", rows("x", 10)))
    prepared = go(plain_tokenizer, tmp_path, [{"path": path, "count": 4}, other], deduplicate="prompt")
    found = Counter(place.partition(".")[0] for place in places(prepared))
    assert found == {"one": 4, "two": 6}


def test_names_of_entries(tmp_path: Path) -> None:
    for name in ("a/x.jsonl", "b/x.jsonl.gz", "rewards.csv"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    paths = [*(str(tmp_path / name) for name in ("a/x.jsonl", "b/x.jsonl.gz", "rewards.csv", "a/*.jsonl", "b"))]
    entries = [*(MixtureEntry(path=path) for path in paths), MixtureEntry(path=paths[0], name="own")]
    mixture = find_mixture(entries, [], seed=0, unless="data.eval")
    assert not mixture.problems
    assert [portion.name for portion in mixture.train] == ["x", "x-2", "rewards-data", "a", "b", "own"]


def test_all_that_is_wrong_with_entries_comes_at_once() -> None:
    train = [
        {"path": "a", "passes": 0},
        {"pth": "b", "count": 5},
        {"path": "c", "count": 0, "seed": -1},
        {"path": "d", "seed": 3},
        {"path": "e", "name": "same"},
        {"path": "f", "name": "same"},
        {"count": 5},
    ]
    with pytest.raises(ConfigError) as raised:
        config_of(train=train, eval=[{"path": "g", "passes": 2}])
    text = str(raised.value)
    for part in (
        "train, entry 0: passes: given 0",
        "train, entry 1: pth: no such key",
        "train, entry 6: path is missing",
        "train, entry 2: count: given 0",
        "train, entry 2: seed: given -1",
        "train, entry 3: seed: 3 without count or passes",
        "same is the name of several entries",
        "eval, entry 0: passes: 2",
    ):
        assert part in text, text
