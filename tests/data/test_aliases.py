"""Data sets of other names are read as what they mean, from lines, columns and cells."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydpo.data.aliases import PAIRS
from raydpo.data.bad_rows import BadRow
from raydpo.data.read import file_rows
from tests.data.conftest import Run
from tests.data.test_columns import SYSTEM, problem_of, read, reader_of
from tests.data.test_formats import said, user

CONVERSATIONS = {name: [user("q"), said(answer)] for name, answer in (("a", "good"), ("b", "bad"))}
SAID = ([user("q")], [[said("good")], [said("bad")]])
PLAIN = ("q", ["good", "bad"])

# A row, and the prompt and answers that it means.
KNOWN: dict[str, tuple[dict[str, Any], Any]] = {
    "orca_dpo_pairs": (
        {"system": "You are terse.", "question": "q", "chosen": "good", "rejected": "bad"},
        ([SYSTEM, user("q")], SAID[1]),
    ),
    "orca_dpo_pairs, no system text": ({"system": "", "question": "q", "chosen": "good", "rejected": "bad"}, PLAIN),
    "OpenRLHF": ({"input": "q", "chosen": "good", "rejected": "bad"}, PLAIN),
    "OpenRLHF, messages": (
        {"input": [user("q")], "chosen": [said("good")], "rejected": [said("bad")]},
        SAID,
    ),
    "instruction": ({"instruction": "q", "chosen": "good", "rejected": "bad"}, ([user("q")], SAID[1])),
    "instruction, messages": ({"instruction": "q", "chosen": [said("good")], "rejected": [said("bad")]}, SAID),
    "query": ({"query": "q", "chosen": "good", "rejected": "bad"}, PLAIN),
    "problem": ({"problem": "q", "chosen": "good", "rejected": "bad"}, PLAIN),
    "argilla": ({"instruction": "q", "chosen_response": "good", "rejected_response": "bad"}, ([user("q")], SAID[1])),
    "argilla, prompt": ({"prompt": "q", "chosen_response": "good", "rejected_response": "bad"}, PLAIN),
    "distilabel": ({"input": "q", "generations": ["bad", "good"], "ratings": [1.0, 2.0]}, PLAIN),
    "distilabel, rating": ({"instruction": "q", "generations": ["bad", "good"], "rating": [1.0, 2.0]}, PLAIN),
    "distilabel, explicit pair": (
        {"input": "q", "chosen": "good", "rejected": "bad", "generations": ["bad", "good"], "rating": [9.0, 8.0]},
        PLAIN,
    ),
    "HelpSteer3": (
        {"context": [user("q")], "response1": "bad", "response2": "good", "overall_preference": 2, "domain": "code"},
        SAID,
    ),
    "HelpSteer3, the first": (
        {"context": [user("q")], "response1": "good", "response2": "bad", "overall_preference": -1},
        SAID,
    ),
    "Nectar": (
        {
            "prompt": "q",
            "answers": [
                {"answer": "middling", "rank": 2.0, "model": "m"},
                {"answer": "bad", "rank": 3.0, "model": "n"},
                {"answer": "good", "rank": 1.0, "model": "o"},
            ],
            "turns": 1,
        },
        PLAIN,
    ),
    "UltraFeedback, raw": (
        {
            "source": "s",
            "instruction": "q",
            "models": ["m", "n"],
            "completions": [{"response": "bad", "overall_score": 3.0}, {"response": "good", "overall_score": 8.0}],
        },
        PLAIN,
    ),
    "arena": (
        {"conversation_a": CONVERSATIONS["a"], "conversation_b": CONVERSATIONS["b"], "winner": "model_a", "turn": 1},
        SAID,
    ),
    "arena, the second": (
        {"conversation_a": CONVERSATIONS["b"], "conversation_b": CONVERSATIONS["a"], "winner": "model_b"},
        SAID,
    ),
    "arena, in columns": (
        {
            "prompt": '["q"]',
            "response_a": '["bad"]',
            "response_b": '["good"]',
            "winner_model_a": 0,
            "winner_model_b": 1,
            "winner_tie": 0,
        },
        SAID,
    ),
    "two responses": ({"prompt": "q", "response_a": "good", "response_b": "bad", "winner": "A"}, PLAIN),
    "PKU-SafeRLHF": ({"prompt": "q", "response_0": "bad", "response_1": "good", "better_response_id": 1}, PLAIN),
    "SHP": ({"history": "q", "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, PLAIN),
    "OpenAI": (
        {
            "input": {"messages": [user("q")], "tools": []},
            "preferred_output": [said("good")],
            "non_preferred_output": [said("bad")],
        },
        SAID,
    ),
    "LLaMA-Factory": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        SAID,
    ),
    "axolotl, chat template": ({"messages": [user("q")], "chosen": said("good"), "rejected": said("bad")}, SAID),
    "axolotl, prompt pairs": (
        {"system": "You are terse.", "prompt": "q", "chosen": "good", "rejected": "bad"},
        ([SYSTEM, user("q")], SAID[1]),
    ),
    "axolotl, icr": (
        {"system": "You are terse.", "input": "q", "chosen": "good", "rejected": "bad"},
        ([SYSTEM, user("q")], SAID[1]),
    ),
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_data_set_of_other_names_is_read_as_it_means(case: str) -> None:
    row, expected = KNOWN[case]
    assert read(row) == expected


@pytest.mark.parametrize("case", KNOWN)
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_lines_columns_and_cells_mean_the_same(case: str, kind: str, tmp_path: Path) -> None:
    row, expected = KNOWN[case]
    path = tmp_path / f"rows.{kind}"
    if kind == "csv" and not all(isinstance(value, str | int | float | list) for value in row.values()):
        return  # cells hold texts, numbers and lists
    if kind == "csv" and any(
        isinstance(item, dict) and "role" not in item for v in row.values() if isinstance(v, list) for item in v
    ):
        return
    if kind == "jsonl":
        path.write_text(json.dumps(row) + "\n")
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(row)
            writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row.values()])
    (line,) = file_rows(path)
    assert line.row is not None
    assert read(line.row) == expected


TIES = [
    {"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": 0},
    {"conversation_a": CONVERSATIONS["a"], "conversation_b": CONVERSATIONS["b"], "winner": "tie"},
    {"conversation_a": CONVERSATIONS["a"], "conversation_b": CONVERSATIONS["b"], "winner": "tie (bothbad)"},
    {"prompt": "q", "response_a": "a", "response_b": "b", "winner_model_a": 0, "winner_model_b": 0, "winner_tie": 1},
    {"prompt": "q", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 1}]},
]


def test_ties_are_left_out_and_counted(run: Run, chat_tokenizer: Path) -> None:
    good = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    report = run([*good, *TIES], chat_tokenizer, max_bad_fraction=0.0).report
    assert (report.pairs_used, report.quarantined) == (3, {"tied_scores": len(TIES)})
    report = run([KNOWN["arena"][0], *TIES[1:3]], chat_tokenizer, max_bad_fraction=0.0).report
    assert (report.pairs_used, report.quarantined) == (1, {"tied_scores": 2})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"conversation_a": CONVERSATIONS["a"], "conversation_b": CONVERSATIONS["b"], "winner": "gpt-4"},
            "not_a_label",
        ),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 2}, "not_a_label"),
        ({"context": [user("q")], "response1": "a", "response2": "b", "overall_preference": "much"}, "not_a_number"),
    ],
)
def test_a_vote_that_names_neither_is_a_bad_row(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as raised:
        read(row)
    assert raised.value.reason == reason


def test_an_implicit_prompt_is_not_asked_twice() -> None:
    row = {"question": "Q: two?", "chosen": "Q: two? Yes.", "rejected": "Q: two? No."}
    assert read(row) == ("Q: two?", [" Yes.", " No."])
    hh = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    assert read({**hh, "question": "q"}) == read(hh)
    assert "question" in str(problem_of({**hh, "question": "another"}))


def test_two_names_of_a_prompt_are_not_one() -> None:
    row = {"question": "q", "input": "more", "chosen": "a", "rejected": "b"}
    assert "data.ignore: [input]" in str(problem_of(row))
    assert problem_of({**row, "input": ""}) is None


def test_an_answer_that_looks_like_messages_is_text() -> None:
    row = {"prompt": "q", "chosen": json.dumps([user("x")]), "rejected": "b"}
    assert read(row) == ("q", [row["chosen"], "b"])
    both = {**row, "chosen": json.dumps([said("a")]), "rejected": json.dumps([said("b")])}
    assert read(both) == ([user("q")], [[said("a")], [said("b")]])


def test_one_answer_of_another_name_serves_sft() -> None:
    for row in (
        {"question": "q", "answer": "a"},
        {"prompt": "q", "response": "a"},
        {"input": "q", "output": "a"},
        {"query": "q", "completion": "a"},
    ):
        assert read(row, "sft") == ("q", ["a"])


def test_columns_of_an_alias_are_read_and_no_others() -> None:
    row = {**KNOWN["arena"][0], "model_a": "m", "tstamp": 1.0}
    reader = reader_of([row])
    reader.read("f:1", row)
    assert set(reader.use.unread) == {"turn", "model_a", "tstamp"}


def test_every_alias_has_a_title_and_columns() -> None:
    assert all(alias.title and alias.needs and (alias.means or alias.convert) for alias in PAIRS)
