"""The preparation as a whole: splits, reuse, duplicates, the report, and what is shown meanwhile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.data import DataReport, prepare
from raydpo.errors import DataError
from raydpo.schema.events import Advanced, Event, Note, StageDone, StageStarted
from raydpo.schema.rows import row_key
from tests.data.conftest import Prepared, Run, config_of, write_jsonl


def pairs(num_prompts: int, per_prompt: int = 1, start: int = 0) -> list[dict[str, str]]:
    return [
        {"prompt": f"question {prompt}:", "chosen": f" yes {index}", "rejected": f" no {index}"}
        for prompt in range(start, start + num_prompts)
        for index in range(per_prompt)
    ]


def prompts_of(prepared: Prepared, split: str) -> set[tuple[int, ...]]:
    return {tuple(prompt) for prompt, _, _ in prepared.examples(split)}


def test_a_split_keeps_the_rows_of_one_prompt_together(run: Run, plain_tokenizer: Path) -> None:
    prepared = run(pairs(200, 3), plain_tokenizer, eval_fraction=0.2)
    assert prepared.report.train_pairs + prepared.report.eval_pairs == 600
    assert prompts_of(prepared, "train").isdisjoint(prompts_of(prepared, "eval"))
    assert prepared.report.eval_pairs % 3 == 0
    assert 20 <= prepared.report.eval_pairs // 3 <= 60
    assert prepared.report.eval_prompts_in_train == 0


def test_adding_rows_moves_no_other_row_between_the_splits(run: Run, plain_tokenizer: Path) -> None:
    before = prompts_of(run(pairs(100), plain_tokenizer, eval_fraction=0.2), "eval")
    after = prompts_of(run(pairs(50, start=100) + pairs(100), plain_tokenizer, eval_fraction=0.2), "eval")
    assert before <= after


def test_a_split_never_comes_out_empty(run: Run, plain_tokenizer: Path) -> None:
    prepared = run(pairs(5), plain_tokenizer, eval_fraction=1e-9)
    assert (prepared.report.train_pairs, prepared.report.eval_pairs) == (4, 1)
    assert prepared.report.lines_read == 5
    with pytest.raises(DataError, match="eval_fraction"):
        run(pairs(1, 4), plain_tokenizer, eval_fraction=0.999999)


def test_named_eval_data_are_kept_apart_and_leaks_are_counted(plain_tokenizer: Path, tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", pairs(10))
    held_out = write_jsonl(tmp_path / "eval.jsonl", pairs(10, start=8))
    events: list[Event] = []
    config = config_of(train=[str(train)], eval=[str(held_out)])
    report = prepare(config, str(plain_tokenizer), tmp_path / "run" / "data", observer=events.append)
    assert (report.train_pairs, report.eval_pairs, report.eval_prompts_in_train) == (10, 10, 2)
    assert report.duplicates == 2
    assert any(isinstance(event, Note) and event.level == "warning" and "2 eval" in event.text for event in events)


def test_an_eval_set_alone_is_enough(plain_tokenizer: Path, tmp_path: Path) -> None:
    held_out = write_jsonl(tmp_path / "eval.jsonl", pairs(3))
    config = config_of(eval=[str(held_out)])
    assert prepare(config, str(plain_tokenizer), tmp_path / "run" / "data").eval_pairs == 3
    with pytest.raises(DataError, match="names no data"):
        prepare(config_of(), str(plain_tokenizer), tmp_path / "run" / "data")


def test_order_is_that_of_files_and_lines(plain_tokenizer: Path, tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", pairs(700, start=start)) for name, start in (("b", 0), ("a", 700))]
    folder = tmp_path / "run" / "data"
    prepared = Prepared(prepare(config_of(train=[str(path) for path in paths]), str(plain_tokenizer), folder), folder)
    expected = [f"{path}:{number}" for path in paths for number in range(1, 701)]
    assert [source for _, _, source in prepared.examples()] == expected


def test_row_keys_are_those_of_the_schema(run: Run, plain_tokenizer: Path) -> None:
    from raydpo.artifacts.examples import ExampleTable

    prepared = run(pairs(2), plain_tokenizer)
    table = ExampleTable.open(prepared.folder, "train")
    for index, (prompt, answers, _) in enumerate(prepared.examples()):
        assert list(table.row_keys(index)) == [row_key(prompt, ids) for ids in answers]


def test_a_finished_preparation_is_reused_and_any_change_undoes_that(
    run: Run, plain_tokenizer: Path, chat_tokenizer: Path
) -> None:
    rows = pairs(20)
    first = run(rows, plain_tokenizer)
    assert not first.report.reused
    again = run(rows, plain_tokenizer)
    assert again.report.reused
    assert again.report == replace(first.report, reused=True)
    changes: list[tuple[list[Any], Path, dict[str, Any]]] = [
        (pairs(21), plain_tokenizer, {}),
        (rows, chat_tokenizer, {}),
        (rows, plain_tokenizer, {"max_length": 100}),
        (rows, plain_tokenizer, {"eval_fraction": 0.2}),
        (rows, plain_tokenizer, {"objective": "sft"}),
    ]
    for changed, tokenizer, settings in changes:
        run(rows, plain_tokenizer)
        assert run(rows, plain_tokenizer).report.reused
        assert not run(changed, tokenizer, **settings).report.reused
        assert not run(rows, plain_tokenizer).report.reused


def test_a_changed_template_file_undoes_reuse(run: Run, chat_tokenizer: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jinja"
    row = {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    row["rejected"] = [row["chosen"][0], {"role": "assistant", "content": "b"}]
    for template, reused in (("A", False), ("A", True), ("B", False)):
        path.write_text(template + "{% for m in messages %}{{ m['content'] }}{% endfor %}")
        assert run([row], chat_tokenizer, chat_template=str(path)).report.reused is reused


def test_damaged_shards_are_not_reused(run: Run, plain_tokenizer: Path) -> None:
    prepared = run(pairs(20), plain_tokenizer)
    before = prepared.examples()
    shard = next(
        path for path in prepared.folder.iterdir() if path.name.startswith("train") and path.suffix == ".arrow"
    )
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 2] ^= 0x01
    shard.write_bytes(raw)
    again = run(pairs(20), plain_tokenizer)
    assert not again.report.reused
    assert again.examples() == before


def _no_arrow(folder: Path) -> None:
    """Committed as it is, and nothing that Arrow can read: its error is a ValueError, like that of a record from before."""
    shard, manifest = folder / "train-00000.arrow", json.loads((folder / "train.json").read_text())
    shard.write_bytes(b"no Arrow file")
    manifest["shards"][0] |= {"bytes": 13, "sha256": hashlib.sha256(b"no Arrow file").hexdigest()}
    (folder / "train.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_no_arrow, "cannot be read as Arrow"),
        (lambda folder: (folder / "train-00000.arrow").unlink(), "train-00000.arrow cannot be read"),
        (lambda folder: (folder / "prepared.json").write_text("{"), "prepared.json cannot be read"),
        (lambda folder: (folder / "prepared.json").write_text('{"a": 1}'), "prepared.json is damaged"),
        (lambda folder: (folder / "eval.json").unlink(), "eval.json is missing"),
    ],
    ids=["no arrow", "no shard", "no json", "no digest", "no manifest"],
)
def test_a_preparation_that_cannot_be_used_is_said(
    damage: Callable[[Path], object], said: str, plain_tokenizer: Path, tmp_path: Path
) -> None:
    config = config_of(train=[str(write_jsonl(tmp_path / "rows.jsonl", pairs(3)))])
    warnings: list[list[str]] = []
    for _ in range(3):
        events: list[Event] = []
        prepare(config, str(plain_tokenizer), tmp_path / "run" / "data", observer=events.append)
        warnings.append([event.text for event in events if isinstance(event, Note) and event.level == "warning"])
        if len(warnings) == 1:
            damage(tmp_path / "run" / "data")
    assert (warnings[0], warnings[2]) == ([], []), "one that is not there is no damage, and the third is used"
    (text,) = warnings[1]
    assert said in text
    assert text.endswith("It is prepared again")


def test_check_writes_nothing(plain_tokenizer: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [*pairs(5), b"{"])
    config = config_of(train=[str(path)], max_bad_fraction=1.0)
    report = prepare(config, str(plain_tokenizer), tmp_path / "run" / "data", write=False)
    assert (report.pairs_used, report.quarantined) == (5, {"malformed_json": 1})
    assert not (tmp_path / "run").exists()


def test_all_missing_files_are_named_at_once(plain_tokenizer: Path, tmp_path: Path) -> None:
    config = config_of(train=["absent-1.jsonl"], eval=["absent-2.jsonl"], chat_template="absent.jinja")
    with pytest.raises(DataError) as raised:
        prepare(config, str(plain_tokenizer), tmp_path / "run" / "data")
    assert len(raised.value.problems) == 3


def test_files_without_template_are_named_at_once(plain_tokenizer: Path, tmp_path: Path) -> None:
    row = {"chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    row["rejected"] = [row["chosen"][0], {"role": "assistant", "content": "b"}]
    paths = [str(write_jsonl(tmp_path / f"{name}.jsonl", [row])) for name in "ab"]
    with pytest.raises(DataError) as raised:
        prepare(config_of(train=paths), str(plain_tokenizer), tmp_path / "run" / "data")
    assert [path in problem for path, problem in zip(paths, raised.value.problems, strict=True)] == [True, True]


def test_confidence_reaches_into_nested_fields(run: Run, plain_tokenizer: Path) -> None:
    rows: list[Any] = [
        {**row, "meta": {"agreement": value}}
        for row, value in zip(pairs(6), [1, 0.5, "0.75", 0.49, None, "high"], strict=True)
    ]
    report = run(rows, plain_tokenizer, confidence_column="meta.agreement", min_confidence=0.5).report
    assert report.quarantined == {"missing_field": 1, "not_a_number": 1, "low_confidence": 1}
    assert report.pairs_used == 3


def test_the_report_survives_json_and_counts_lengths(run: Run, plain_tokenizer: Path) -> None:
    prepared = run([*pairs(9), b"{"], plain_tokenizer)
    report = DataReport.from_json(json.loads(json.dumps(prepared.report.to_json())))
    assert report == prepared.report
    prompts = [len(prompt) for prompt, _, _ in prepared.examples()]
    answers = [max(map(len, sides)) for _, sides, _ in prepared.examples()]
    assert report.lengths["prompt_tokens"]["max"] == max(prompts)
    assert report.lengths["answer_tokens"]["mean"] == round(sum(answers) / 9, 1)
    assert report.lengths["total_tokens"]["p50"] == sorted(p + a for p, a in zip(prompts, answers, strict=True))[4]


def test_events_tell_the_formats_and_how_far_it_is(plain_tokenizer: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(1200))
    events: list[Event] = []
    prepare(config_of(train=[str(path)]), str(plain_tokenizer), tmp_path / "run" / "data", observer=events.append)
    assert isinstance(events[0], StageStarted)
    assert any(isinstance(event, Note) and "standard, explicit prompt" in event.text for event in events)
    assert [event.done for event in events if isinstance(event, Advanced)][-1] == 1200
    assert isinstance(events[-1], StageDone)


def test_torch_is_not_needed() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import raydpo.data, raydpo.data.prepare\n"
        "assert 'transformers' not in sys.modules and 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=300)
