"""Data sets with parts of the names train, validation and test: what is trained on, what is held out, what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydpo.data import prepare
from raydpo.data.sources import find_parts
from raydpo.data.splits import split_of
from raydpo.errors import DataError
from raydpo.schema.events import Note
from tests.data.conftest import Prepared, config_of, write_jsonl


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train.jsonl", "train"),
        ("train-00000-of-00001.parquet", "train"),
        ("train1.jsonl.gz", "train"),
        ("my_test.jsonl", "test"),
        ("human_eval_train.jsonl", "train"),
        ("my-test-set.jsonl", "test"),
        ("Validation.csv", "validation"),
        ("dev.tsv", "validation"),
        ("eval-2.jsonl", "validation"),
        ("latest.jsonl", None),
        ("contest.jsonl", None),
        ("trainer.jsonl", None),
        ("medieval.jsonl", None),
        ("pairs.test-run.jsonl", None),
    ],
)
def test_a_name_says_a_split_by_whole_words(name: str, expected: str | None) -> None:
    assert split_of(name) == expected


def rows(word: str, number: int) -> list[dict[str, str]]:
    return [{"prompt": f"{word} {i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(number)]


def write(folder: Path, **counts: int) -> str:
    """Files by name, `__` for a folder's slash, each with so many rows."""
    for name, number in counts.items():
        path = folder / f"{name.replace('__', '/')}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, list(rows(name, number)))
    return str(folder)


@pytest.mark.parametrize(
    ("files", "train", "held_out"),
    [
        (("train", "test"), ["train"], ["test"]),
        (("train", "validation", "test"), ["train"], ["validation"]),
        (("train", "train2", "extra", "dev"), ["extra", "train", "train2"], ["dev"]),
        (("latest", "contest"), ["contest", "latest"], []),
        (("a", "test"), ["a"], ["test"]),
        (
            ("data__train-00000-of-00001", "data__test-00000-of-00001"),
            ["train-00000-of-00001"],
            ["test-00000-of-00001"],
        ),
        (("train__x", "test__y"), ["x"], ["y"]),
    ],
)
def test_a_folder_is_split_by_the_names_in_it(
    files: tuple[str, ...], train: list[str], held_out: list[str], tmp_path: Path
) -> None:
    name = write(tmp_path / "set", **dict.fromkeys(files, 1))
    found = find_parts("data.train", [name])
    assert not found.problems
    assert sorted(Path(one.name).stem for one in found.sources) == train
    assert [Path(one.name).stem for one in found.held_out] == held_out
    assert bool(found.notes) == bool(held_out)
    if held_out:
        read = find_parts("data.eval", [name])
        says_train = any("train" in file for file in files)
        assert [Path(one.name).stem for one in read.sources] == (held_out if says_train else [*train, *held_out])


def test_what_is_left_unread_is_said(tmp_path: Path) -> None:
    name = write(tmp_path / "set", train=1, validation=1, test=1)
    (note,) = find_parts("data.train", [name]).notes
    assert "not read: test (test.jsonl)" in note
    (note,) = find_parts("data.eval", [name]).notes
    assert "held out validation" in note
    assert "not read: train (train.jsonl), test (test.jsonl)" in note


def test_a_test_split_is_trained_on_only_by_its_own_name(tmp_path: Path) -> None:
    name = write(tmp_path / "set", test=1, dev=1)
    (problem,) = find_parts("data.train", [name]).problems
    assert "test.jsonl" in problem
    assert "data.eval" in problem
    for explicit in (f"{name}/test.jsonl", f"{name}/*est.jsonl"):
        (source,) = find_parts("data.train", [explicit]).sources
        assert Path(source.name).name == "test.jsonl"


def test_a_glob_is_split_like_a_folder(tmp_path: Path) -> None:
    name = write(tmp_path / "set", train=1, test=1)
    found = find_parts("data.train", [f"{name}/*.jsonl"])
    assert [Path(one.name).name for one in (*found.sources, *found.held_out)] == ["train.jsonl", "test.jsonl"]


def test_what_the_datasets_library_writes_next_to_data_is_no_data(tmp_path: Path) -> None:
    name = write(tmp_path / "set", train=1)
    (tmp_path / "set" / "dataset_infos.json").write_text("{}")
    assert [Path(one.name).name for one in find_parts("data.train", [name]).sources] == ["train.jsonl"]


def test_a_data_set_of_the_hub_is_split_by_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a local folder of the same form for a data set of the hub."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "org" / "two", train=3, test=2)
    write(tmp_path / "org" / "one", test=2)
    found = find_parts("data.train", ["hub:org/two"], asks_hub=True)
    assert not found.problems
    assert [sum(1 for _ in one.rows()) for one in (*found.sources, *found.held_out)] == [3, 2]
    assert [one.name for one in found.held_out] == ["hub:org/two:test"]
    assert [one.name for one in find_parts("data.eval", ["hub:org/two"], asks_hub=True).sources] == ["hub:org/two:test"]
    assert [one.name for one in find_parts("data.train", ["hub:org/two:test"], asks_hub=True).sources] == [
        "hub:org/two:test"
    ]
    (problem,) = find_parts("data.train", ["hub:org/one"], asks_hub=True).problems
    assert "hub:org/one:test" in problem


@pytest.mark.parametrize(
    ("settings", "counts", "said"),
    [
        ({}, (8, 3), "train (train.jsonl), test (test.jsonl)"),
        ({"eval_fraction": 0.5}, (None, None), "since data.eval_fraction is set"),
        ({"eval": "other"}, (8, 2), "since data.eval is set"),
    ],
)
def test_held_out_parts_of_a_run(
    settings: dict[str, object],
    counts: tuple[int | None, int | None],
    said: str,
    tmp_path: Path,
    plain_tokenizer: Path,
) -> None:
    name = write(tmp_path / "set", train=8, test=3)
    if "eval" in settings:
        settings = {"eval": [str(write_jsonl(tmp_path / "other.jsonl", list(rows("other", 2))))]}
    notes: list[str] = []
    folder = tmp_path / "run" / "data"
    report = prepare(
        config_of(train=[name], **settings),
        str(plain_tokenizer),
        folder,
        observer=lambda event: notes.append(event.text) if isinstance(event, Note) else None,
    )
    assert any(said in note for note in notes)
    assert any(said in note for note in report.splits_by_name)
    assert report.lines_read == report.pairs_used
    if counts[0] is not None:
        assert (report.train_pairs, report.eval_pairs) == counts
    else:
        assert report.pairs_used == 8
    trained = [source for *_, source in Prepared(report, folder).examples("train")]
    assert not any("test.jsonl" in source for source in trained)


def test_held_out_parts_alone_are_an_error_of_their_own(tmp_path: Path, plain_tokenizer: Path) -> None:
    name = write(tmp_path / "set", test=2)
    with pytest.raises(DataError, match="holds only test data"):
        prepare(config_of(train=[name]), str(plain_tokenizer), tmp_path / "data", write=False)
