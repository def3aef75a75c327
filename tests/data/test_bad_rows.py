"""A corpus of bad lines: each lands in the expected bin and none raises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raydpo.data import DataReport
from raydpo.errors import DataError
from tests.data.conftest import Prepared, Run

GOOD = {"prompt": "what is the sky?", "chosen": " blue", "rejected": " green"}


def row(**changes: object) -> dict[str, object]:
    return {key: value for key, value in {**GOOD, **changes}.items() if value != "absent"}


# Every line with the bin that it belongs to.
CORPUS: list[tuple[bytes | dict[str, object], str]] = [
    (b"", "blank_line"),
    (b"   \t ", "blank_line"),
    (b"\r", "blank_line"),
    (b"{", "malformed_json"),
    (b'{"prompt": "a", "chosen": " b", "rejected": " c"', "malformed_json"),
    (b'{"prompt": "a", "chosen": " b", "rejected": " c"}}', "malformed_json"),
    (b"{'prompt': 'a', 'chosen': ' b', 'rejected': ' c'}", "malformed_json"),
    (b'{"prompt": "a", "chosen": " b", "rejected": " c",}', "malformed_json"),
    (b'{"prompt": "a\tb", "chosen": " b", "rejected": " c"}', "malformed_json"),
    (b'{"prompt": "a", "chosen": "\\x41", "rejected": " c"}', "malformed_json"),
    (b'{"prompt": "a", "chosen": "\\ud83", "rejected": " c"}', "malformed_json"),
    (b"prompt,chosen,rejected", "malformed_json"),
    (b"<html><body>502</body></html>", "malformed_json"),
    (b"[" * 100_000, "malformed_json"),
    (b'{"prompt": ' + b"1" * 10_000 + b"}", "malformed_json"),
    (b'{"a": 1} {"b": 2}', "malformed_json"),
    (b'{"prompt": "a", "chosen": " b", "chosen": " x", "rejected": " c"}', "duplicate_key"),
    (b"null", "not_an_object"),
    (b"true", "not_an_object"),
    (b"12", "not_an_object"),
    (b"NaN", "not_an_object"),
    (b'"text"', "not_an_object"),
    (b'["a", " b", " c"]', "not_an_object"),
    (b'{"prompt": "\xff", "chosen": " b", "rejected": " c"}', "invalid_utf8"),
    (b'{"prompt": "\xc3", "chosen": " b", "rejected": " c"}', "invalid_utf8"),
    (b'{"prompt": "\xed\xa0\x80", "chosen": " b", "rejected": " c"}', "invalid_utf8"),
    (b'{"prompt": "\xc0\xaf", "chosen": " b", "rejected": " c"}', "invalid_utf8"),
    ('{"prompt": "ä", "chosen": " b", "rejected": " c"}'.encode("latin-1"), "invalid_utf8"),
    (b'{"prompt": "\\ud83d", "chosen": " b", "rejected": " c"}', "lone_surrogate"),
    (b'{"prompt": "a", "chosen": " \\ude00", "rejected": " c"}', "lone_surrogate"),
    (b'{"prompt": "a", "chosen": " b", "rejected": " \\ude00\\ud83d"}', "lone_surrogate"),
    (b'{"prompt": "a\\u0000", "chosen": " b", "rejected": " c"}', "nul"),
    (b'{"prompt": "a", "chosen": " b\\u0000", "rejected": " c"}', "nul"),
    (b'{"prompt": "a\0", "chosen": " b", "rejected": " c"}', "nul"),
    ('{"prompt": "a", "chosen": " b", "rejected": " c"}'.encode("utf-16-le"), "nul"),
    (b"{}", "missing_field"),
    (row(chosen="absent"), "missing_field"),
    (row(rejected="absent"), "missing_field"),
    (row(chosen=None), "missing_field"),
    (row(rejected=None), "missing_field"),
    ({"Prompt": "a", "Chosen": " b", "Rejected": " c"}, "missing_field"),
    (row(prompt=7), "not_a_string"),
    (row(prompt=["a"]), "not_a_string"),
    (row(chosen=3.5), "not_a_string"),
    (row(chosen=True), "not_a_string"),
    (row(rejected={"text": " c"}), "not_a_string"),
    (row(rejected=[" c"]), "not_a_string"),
    (b'{"prompt": "a", "chosen": NaN, "rejected": " c"}', "not_a_string"),
    (row(chosen=""), "empty_answer"),
    (row(rejected=""), "empty_answer"),
    (row(chosen=" \n\t "), "empty_answer"),
    (row(rejected="\u3000"), "empty_answer"),
    (row(chosen=" same", rejected=" same"), "identical_answers"),
    (row(prompt="absent", chosen="all the same", rejected="all the same"), "identical_answers"),
    (row(prompt="", chosen="b", rejected="c"), "empty_prompt"),
    (row(prompt="absent", chosen="yes", rejected="no"), "empty_prompt"),
    (row(prompt="long " * 3000), "overlong"),
    (row(chosen=" long" * 3000), "overlong"),
]


@pytest.fixture
def prepared(run: Run, plain_tokenizer: Path) -> Prepared:
    good = [{**GOOD, "chosen": f" answer {index}"} for index in range(20)]
    return run([*good, *(line for line, _ in CORPUS)], plain_tokenizer)


def test_each_bad_line_lands_in_its_bin(prepared: Prepared) -> None:
    assert len(CORPUS) >= 40
    found = {entry["line"]: entry["reason"] for entry in prepared.quarantine()}
    expected = {number: reason for number, (_, reason) in enumerate(CORPUS, start=21)}
    assert found == expected


def test_good_lines_between_bad_ones_are_used(prepared: Prepared) -> None:
    assert prepared.report.pairs_used == 20
    assert [place.rsplit(":", 1)[1] for _, _, place in prepared.examples()] == [str(number) for number in range(1, 21)]


def test_every_line_is_accounted_for(prepared: Prepared) -> None:
    report = prepared.report
    assert report.lines_read == 20 + len(CORPUS)
    assert report.lines_read == report.pairs_used + sum(report.quarantined.values())
    counted: dict[str, int] = {}
    for entry in prepared.quarantine():
        counted[entry["reason"]] = counted.get(entry["reason"], 0) + 1
    assert counted == report.quarantined


def test_quarantine_names_file_line_reason_and_shows_the_line(prepared: Prepared) -> None:
    entries = prepared.quarantine()
    assert all(entry["file"].endswith("rows.jsonl") and entry["detail"] for entry in entries)
    sample = next(entry["sample"] for entry in entries if entry["reason"] == "malformed_json")
    assert sample == "{"
    assert all(len(entry["sample"]) <= 200 for entry in entries)


def test_a_report_that_loses_a_line_cannot_be_made() -> None:
    with pytest.raises(AssertionError, match="accounted"):
        DataReport(10, 8, 8, 0, {"nul": 1}, {})


def test_too_many_bad_lines_stop_the_run_with_the_table(run: Run, plain_tokenizer: Path, tmp_path: Path) -> None:
    rows = [{**GOOD, "chosen": f" answer {index}"} for index in range(97)] + [b"{", b"{", row(chosen="")]
    with pytest.raises(DataError) as raised:
        run(rows, plain_tokenizer, max_bad_fraction=0.02)
    text = str(raised.value)
    assert "3 of 100 lines (3.0%)" in text
    assert "malformed_json" in text
    assert "empty_answer" in text
    assert "rows.jsonl:98" in text
    entries = (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(entry)["line"] for entry in entries] == [98, 99, 100]


def test_exactly_the_allowed_share_passes(run: Run, plain_tokenizer: Path) -> None:
    rows = [{**GOOD, "chosen": f" answer {index}"} for index in range(98)] + [b"{", b"{"]
    assert run(rows, plain_tokenizer, max_bad_fraction=0.02).report.quarantined == {"malformed_json": 2}


def test_reasons_that_are_no_damage_do_not_stop_the_run(run: Run, plain_tokenizer: Path) -> None:
    rows = [GOOD, b"", row(chosen=" long" * 3000), {**row(chosen=" x"), "agreement": 0.1}]
    rows = [{"agreement": 0.9, **one} if isinstance(one, dict) else one for one in rows]
    report = run(rows, plain_tokenizer, max_bad_fraction=0.0, confidence_column="agreement", min_confidence=0.5).report
    assert report.quarantined == {"blank_line": 1, "overlong": 1, "low_confidence": 1}


def test_a_file_of_unknown_layout_is_counted_and_named(run: Run, plain_tokenizer: Path) -> None:
    with pytest.raises(DataError) as raised:
        run([{"left": "a", "right": "b"}] * 3, plain_tokenizer, max_bad_fraction=0.02)
    assert "unknown_format" in str(raised.value)
    assert "left, right" in str(raised.value)
    assert "ultrafeedback" in str(raised.value)


def test_no_line_left_is_an_error_even_when_everything_is_allowed(run: Run, plain_tokenizer: Path) -> None:
    with pytest.raises(DataError, match=r"data\.train gives no example"):
        run([row(chosen="")], plain_tokenizer, max_bad_fraction=1.0)
