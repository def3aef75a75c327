"""A preparation in parts: the same bytes as in one go, for any source, setting and number of workers; a kill costs a part."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo import runtime
from raydpo.config import Config
from raydpo.data import prepare, row_ranges
from raydpo.data.parts import PREFIX, MakeParts, PartDone, PartMaker, PartSpec, PartWork, here
from raydpo.data.sources import FileSource, HubSource
from raydpo.data.template import open_tokenizer
from raydpo.errors import DataError
from raydpo.schema.events import Advanced, Event, Note, StageStarted
from tests.data.conftest import config_of, write_jsonl

ROWS = 7
"""Of a part, in these tests."""
Rows = list[Any]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source is worth cutting."""
    monkeypatch.setattr(row_ranges, "PART_ROWS", ROWS)
    cuttable_from(1, monkeypatch)


def cuttable_from(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SMALL_BYTES", "SMALL_PACKED_BYTES"):
        monkeypatch.setattr(row_ranges, name, num_bytes)


def pairs(number: int = 40) -> Rows:
    """Pairs, some of them twice, a few with prompts of others, and lines that are none."""
    rows: Rows = [
        {"prompt": f"question {n % 23}:", "chosen": f" yes {n % 31}", "rejected": f" no {n % 31}"}
        for n in range(number)
    ]
    rows[5:5] = [b"{", b"", {"prompt": "x", "chosen": "a", "rejected": "a"}, {"prompt": 5, "chosen": "a"}]
    rows[30:30] = [b"[1]", {"prompt": "long" * 300, "chosen": " b" * 900, "rejected": " c"}, {"other": 1}]
    return rows


def conversations() -> Rows:
    def said(text: str) -> Rows:
        return [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": text}]

    return [
        {
            "chosen": said(f"it is {n}"),
            "rejected": said(f"not {n}" + "<|im_end|>" * (n % 3 == 0)),
            "rating": n,
            "note": "x",
        }
        for n in range(20)
    ]


def labelled() -> Rows:
    return [{"prompt": f"q {n % 9}", "completion": f" a {n}", "label": n % 3 == 0} for n in range(30)]


CASES: dict[str, tuple[Rows, dict[str, Any]]] = {
    "plain": (pairs(), {}),
    "deduplicated": (pairs(), {"deduplicate": "pair"}),
    "one a prompt": (pairs(), {"deduplicate": "prompt"}),
    "held out": (pairs(), {"eval_fraction": 0.3}),
    "held out by hand": (pairs(), {"eval_fraction": 0.001}),
    "truncated": (pairs(), {"overlong": "truncate_prompt", "max_length": 40}),
    "conversations": (conversations(), {"ignore": ["rating"]}),
    "quarantined tokens": (conversations(), {"ignore": ["rating"], "control_tokens": "quarantine"}),
    "labels": (labelled(), {"objective": "bco"}),
    "mismatched": (labelled(), {"objective": "kto"}),
    "unpaired": (pairs(), {"objective": "bco", "unpair": True}),
    "weights": (
        [{**row, "w": n / 3} for n, row in enumerate(pairs(9)) if isinstance(row, dict)],
        {"weight_column": "w"},
    ),
    "mixed layouts": ([*pairs(10), *conversations()], {"ignore": ["rating"]}),
    "answers": (pairs(), {"objective": "sft"}),
}


def config_for(paths: Sequence[Path], settings: dict[str, Any]) -> Config:
    rest = {name: value for name, value in settings.items() if name != "objective"}
    train = rest.pop("train", [str(path) for path in paths])
    return config_of(settings.get("objective", "dpo"), train=train, max_bad_fraction=1.0, **rest)


def written(folder: Path) -> dict[str, bytes]:
    """Every file of a preparation, and its quarantine."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return files | {"quarantine": (folder.parent / "quarantine.jsonl").read_bytes()}


def both_ways(config: Config, tokenizer: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """What is written in parts and in one go."""
    found = []
    for name, is_small in (("parts", False), ("whole", True)):
        with monkeypatch.context() as patched:
            cuttable_from(1 << 40 if is_small else 1, patched)
            events: list[Event] = []
            prepare(config, str(tokenizer), root / name / "data", observer=events.append)
            totals = [event.total for event in events if isinstance(event, StageStarted)]
            assert (len(totals) == 2) is not is_small, "it was in parts, and said how many lines there are"
        found.append(written(root / name / "data"))
    return found


@pytest.mark.parametrize("case", CASES)
def test_parts_change_nothing(
    case: str, chat_tokenizer: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = CASES[case]
    paths = [write_jsonl(tmp_path / "a.jsonl", rows), write_jsonl(tmp_path / "b.jsonl", rows[3:11])]
    in_parts, whole = both_ways(config_for(paths, settings), chat_tokenizer, tmp_path, monkeypatch)
    assert in_parts == whole
    assert "train-00000.arrow" in whole


def test_parts_of_a_mixture(
    chat_tokenizer: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(write_jsonl(tmp_path / f"{name}.jsonl", pairs(n))) for name, n in (("a", 40), ("b", 25), ("c", 20))]
    train = [{"path": paths[0], "count": 17}, {"path": paths[1], "passes": 2.5}, {"path": paths[0], "name": "again"}]
    settings = {"train": train, "eval": [paths[2], paths[0]], "deduplicate": "pair"}
    in_parts, whole = both_ways(config_for([], settings), chat_tokenizer, tmp_path, monkeypatch)
    assert in_parts == whole


def _write(path: Path, kind: str) -> Path:
    rows = [row for row in pairs() if isinstance(row, dict) and isinstance(row.get("prompt"), str)]
    path = path.with_suffix(f".{kind}")
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(write_jsonl(path.with_suffix(".plain"), pairs()).read_bytes()))
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
            writer.writeheader()
            writer.writerows({**row, "rejected": row["rejected"] + "\n2"} for row in rows)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=9)
    else:
        write_jsonl(path, [*pairs(), json.dumps(rows[0]).encode() + b"\n\n" + json.dumps(rows[1]).encode()])
        path.write_bytes(path.read_bytes().rstrip(b"\n"))  # its last line has no end
    return path


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_parts_of_every_kind_of_file(
    kind: str, plain_tokenizer: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "rows", kind)
    in_parts, whole = both_ways(config_for([path], {}), plain_tokenizer, tmp_path, monkeypatch)
    assert in_parts == whole


@pytest.mark.parametrize("num_bytes", [1 << 30, 100, 1], ids=["rows", "bytes", "one"])
def test_ranges_hold_every_line_once(num_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ranges, "PART_ROWS", 3)
    monkeypatch.setattr(row_ranges, "PART_BYTES", num_bytes)
    for text in (
        b"",
        b"\n",
        b"a",
        b"a\n",
        b"a\nb\nc",
        b"a\nb\nc\n",
        b"\n\n\n\n",
        b"a\nbb\nccc\n\ne\nf\n" * 9,
        b"x" * 99,
    ):
        for chunk_bytes in (1, 5, 1 << 20):
            monkeypatch.setattr(row_ranges, "_CHUNK_BYTES", chunk_bytes)
            path = tmp_path / "lines.jsonl"
            path.write_bytes(text)
            source, reader = FileSource(path), row_ranges.RangeReader()
            whole = [(line.number, line.raw) for line in source.rows()]
            ranges = row_ranges.cut(source)
            assert [(line.number, line.raw) for each in ranges for line in reader.lines(each)] == whole
            assert all(1 <= each.num_lines <= 3 for each in ranges)
            assert sum(each.num_lines for each in ranges) == len(whole)
            assert [each.first for each in ranges[1:]] == [each.first + each.num_lines for each in ranges[:-1]]


def test_ranges_in_any_order_are_the_same_lines(tmp_path: Path, small_parts: None) -> None:
    source = FileSource(_write(tmp_path / "rows", "csv"))
    ranges, reader = row_ranges.cut(source), row_ranges.RangeReader()
    numbers = [[line.number for line in reader.lines(each)] for each in (*ranges[::-1], *ranges[1::2])]
    expected = [list(range(each.first + 1, each.first + 1 + each.num_lines)) for each in ranges]
    assert numbers == [*expected[::-1], *expected[1::2]]


class _Killed(BaseException):
    pass


def counting(tokenizer: Path, config: Config, made: list[str], most: int | None = None) -> MakeParts:
    """Makes parts here, notes their names, and dies after `most` of them."""

    def make(spec: PartSpec, works: Sequence[PartWork]) -> Iterator[tuple[int, PartDone]]:
        opened = open_tokenizer(str(tokenizer), config.data.chat_template)
        opened.ends = spec.ends
        for index, result in here(spec, works, opened):
            made.append(works[index].name)
            yield index, result
            if len(made) == most:
                raise _Killed

    return make


def test_a_kill_costs_no_part_that_was_committed(plain_tokenizer: Path, tmp_path: Path, small_parts: None) -> None:
    config = config_for([write_jsonl(tmp_path / "rows.jsonl", pairs())], {})
    prepare(config, str(plain_tokenizer), tmp_path / "calm" / "data")
    folder, everything = tmp_path / "run" / "data", list[str]()
    for most in (2, 3, 1):
        made: list[str] = []
        with pytest.raises(_Killed):
            prepare(config, str(plain_tokenizer), folder, make_parts=counting(plain_tokenizer, config, made, most))
        everything += made
        assert not (folder / "prepared.json").exists()
    events, made = list[Event](), list[str]()
    make = counting(plain_tokenizer, config, made)
    prepare(config, str(plain_tokenizer), folder, make_parts=make, observer=events.append)
    everything += made
    assert everything == [f"0-{number}" for number in range(len(everything))], "each of them once, in order"
    assert len(everything) == -(-len(pairs()) // ROWS)
    assert any(
        isinstance(event, Note) and "42 lines were encoded by an earlier attempt" in event.text for event in events
    )
    done = [event.done for event in events if isinstance(event, Advanced)]
    assert (done[-1], done == sorted(done)) == (len(pairs()), True)
    assert written(folder) == written(tmp_path / "calm" / "data")
    assert not list(folder.glob(f"{PREFIX}*")), "parts go when they are of no use"


@pytest.mark.parametrize("name", ["0-1.arrow", "0-1.json"])
def test_a_part_that_is_damaged_is_made_again(
    name: str, plain_tokenizer: Path, tmp_path: Path, small_parts: None
) -> None:
    config, folder = config_for([write_jsonl(tmp_path / "rows.jsonl", pairs())], {}), tmp_path / "run" / "data"
    with pytest.raises(_Killed):
        prepare(config, str(plain_tokenizer), folder, make_parts=counting(plain_tokenizer, config, [], 3))
    (part,) = folder.glob(f"{PREFIX}*/{name}")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    made: list[str] = []
    prepare(config, str(plain_tokenizer), folder, make_parts=counting(plain_tokenizer, config, made))
    assert made == ["0-1", *(f"0-{number}" for number in range(3, 7))]


def test_parts_of_another_input_are_not_taken(plain_tokenizer: Path, tmp_path: Path, small_parts: None) -> None:
    path, folder = write_jsonl(tmp_path / "rows.jsonl", pairs()), tmp_path / "run" / "data"
    config, made = config_for([path], {}), list[str]()
    with pytest.raises(_Killed):
        prepare(config, str(plain_tokenizer), folder, make_parts=counting(plain_tokenizer, config, made, 3))
    write_jsonl(path, pairs()[1:])
    del made[:]
    prepare(config, str(plain_tokenizer), folder, make_parts=counting(plain_tokenizer, config, made))
    assert made == [f"0-{number}" for number in range(-(-len(pairs()[1:]) // ROWS))]


def late_ids(tokenizer: Path) -> Rows:
    ids = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "tokenizer": "other"}
    return [*pairs(30), ids, *pairs(20), {**ids, "tokenizer": "third"}]


@pytest.mark.parametrize(
    ("rows", "settings"),
    [
        (late_ids, {}),
        (lambda tokenizer: conversations(), {}),
        (lambda tokenizer: pairs(), {"objective": "bco"}),
        (lambda tokenizer: pairs(), {"columns": {"system": "nowhere"}}),
        (lambda tokenizer: pairs(), {"overlong": "error"}),
        (
            lambda tokenizer: [{**row, "system_prompt": "you are"} for row in pairs() if isinstance(row, dict)],
            {"max_length": 9},
        ),
    ],
    ids=["late ids", "no template", "labels", "columns", "overlong", "nothing left"],
)
def test_what_stops_a_run_is_said_alike(
    rows: Callable[[Path], Rows],
    settings: dict[str, Any],
    plain_tokenizer: Path,
    tmp_path: Path,
    small_parts: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", rows(plain_tokenizer)) for name in "ab"]
    said = []
    for is_small in (False, True):
        cuttable_from(1 << 40 if is_small else 1, monkeypatch)
        folder = tmp_path / "run" / "data"
        with pytest.raises(DataError) as raised:
            prepare(config_for(paths, settings), str(plain_tokenizer), folder)
        said.append(raised.value.problems)
        assert [path.name for path in folder.iterdir()] == [], "nothing stays"
    assert said[0] == said[1]


def on_workers(spec: PartSpec, works: Sequence[PartWork]) -> Iterator[tuple[int, PartDone]]:
    yield from runtime.run_pool("data", partial(PartMaker, spec), works, num_workers=2, cpus=1)


def test_two_workers_write_what_one_does(
    chat_tokenizer: Path, tmp_path: Path, small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*pairs(90), *conversations()])
    packed = _write(tmp_path / "packed", "jsonl.gz")
    monkeypatch.chdir(tmp_path)  # workers find files that were named from here
    config = config_for([Path(path.name), Path(packed.name)], {"ignore": ["rating"], "deduplicate": "pair"})
    prepare(config, str(chat_tokenizer), tmp_path / "one" / "data")
    with runtime.session([runtime.Demand("data", 2, 1)], kind="local", local_cpus=2):
        prepare(config, str(chat_tokenizer), tmp_path / "two" / "data", make_parts=on_workers)
    assert written(tmp_path / "two" / "data") == written(tmp_path / "one" / "data")


def test_a_source_of_the_hub_goes_to_another_process_without_its_rows() -> None:
    source = HubSource("hub:o/n@main:train", "o", None, "main", "train")
    vars(source)["_dataset"] = range(row_ranges.PART_ROWS)
    assert row_ranges.is_small(source)
    vars(source)["_dataset"] = range(row_ranges.PART_ROWS + 1)
    assert not row_ranges.is_small(source)
    there = pickle.loads(pickle.dumps(source))
    assert there == source
    assert "_dataset" not in vars(there)
