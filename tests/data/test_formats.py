"""Every layout is detected and read as it is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.data.bad_rows import BadRow
from raydpo.data.formats import FORMATS, Example, detect
from tests.data.conftest import Run


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


ROWS: dict[str, tuple[str, dict[str, Any], Example]] = {
    "standard, explicit": (
        "standard",
        {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
        Example("The sky is", [" blue.", " green."]),
    ),
    "standard, implicit": (
        "standard",
        {"chosen": "The sky is blue.", "rejected": "The sky is black."},
        Example("The sky is", [" blue.", " black."]),
    ),
    "conversational, explicit": (
        "conversational",
        {"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]},
        Example([user("q")], [[said("a")], [said("b")]]),
    ),
    "conversational, implicit": (
        "conversational",
        {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]},
        Example([user("q")], [[said("a")], [said("b")]]),
    ),
    "ultrafeedback": (
        "ultrafeedback",
        {
            "prompt": "q",
            "prompt_id": "0f",
            "chosen": [user("q"), said("a")],
            "rejected": [user("q"), said("b")],
            "messages": [user("q"), said("a")],
            "score_chosen": 8.0,
            "score_rejected": 5.0,
        },
        Example([user("q")], [[said("a")], [said("b")]]),
    ),
    "ultrafeedback, answers alone": (
        "ultrafeedback",
        {"prompt": "q", "chosen": [said("a")], "rejected": [said("b")]},
        Example([user("q")], [[said("a")], [said("b")]]),
    ),
    "sharegpt": (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        Example([user("q")], [[said("a")], [said("b")]]),
    ),
    "sharegpt, several turns and a system text": (
        "sharegpt",
        {
            "system": "be kind",
            "conversations": [
                {"from": "human", "value": "1"},
                {"from": "gpt", "value": "2"},
                {"from": "human", "value": "3"},
            ],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        Example(
            [{"role": "system", "content": "be kind"}, user("1"), said("2"), user("3")], [[said("a")], [said("b")]]
        ),
    ),
    "alpaca, named answers": (
        "alpaca",
        {"instruction": "Add.", "input": "1 2", "chosen": "3", "rejected": "4"},
        Example([user("Add.\n1 2")], [[said("3")], [said("4")]], plain="Add.\n1 2\n\n"),
    ),
    "alpaca, output list": (
        "alpaca",
        {"instruction": "Add 1 and 2.", "input": "", "output": ["3", "4"]},
        Example([user("Add 1 and 2.")], [[said("3")], [said("4")]], plain="Add 1 and 2.\n\n"),
    ),
    "alpaca, history": (
        "alpaca",
        {"instruction": "now?", "history": [["a?", "b"]], "system": "s", "output": ["3", "4"]},
        Example([{"role": "system", "content": "s"}, user("a?"), said("b"), user("now?")], [[said("3")], [said("4")]]),
    ),
    "hh": (
        "hh",
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: s",
            "rejected": "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: t",
        },
        Example("\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", [" s", " t"]),
    ),
    "scored, parallel lists": (
        "scored",
        {"prompt": "q:", "responses": [" a", " b", " c"], "scores": [2, 9.5, "1"]},
        Example("q:", [" b", " c"]),
    ),
    "scored, records": (
        "scored",
        {
            "instruction": "q",
            "completions": [
                {"response": "a", "overall_score": 3.0},
                {"response": "b", "overall_score": 1.0},
                {"response": "c", "overall_score": 3.0},
            ],
        },
        Example("q", ["a", "b"]),
    ),
    "scored, messages": (
        "scored",
        {"prompt": [user("q")], "answers": ["a", "b"], "scores": [0, 1]},
        Example([user("q")], [[said("b")], [said("a")]]),
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_layout_is_detected_and_read(case: str) -> None:
    name, row, example = ROWS[case]
    assert detect([row]) == name
    assert FORMATS[name].convert(row, 2) == example


SFT = {
    "prompt + completion": ({"prompt": "q", "completion": " a"}, Example("q", [" a"])),
    "prompt + completion, messages": (
        {"prompt": [user("q")], "completion": [said("a")]},
        Example([user("q")], [[said("a")]]),
    ),
    "messages": ({"messages": [user("q"), said("a"), user("r"), said("b")]}, None),
    "text": ({"text": "all of it"}, Example("", ["all of it"])),
    "chosen alone": ({"prompt": "q", "chosen": " a"}, Example("q", [" a"])),
}


@pytest.mark.parametrize("case", SFT)
def test_single_answers_serve_sft_only(case: str) -> None:
    row, example = SFT[case]
    assert detect([row]) == "text"
    found = FORMATS["text"].convert(row, 1)
    assert found == (example or Example([user("q"), said("a"), user("r")], [[said("b")]]))
    with pytest.raises(BadRow, match="compares two answers"):
        FORMATS["text"].convert(row, 2)


@pytest.mark.parametrize("case", ROWS)
def test_a_pair_gives_its_chosen_answer_to_sft(case: str) -> None:
    name, row, example = ROWS[case]
    assert FORMATS[name].convert(row, 1) == Example(example.prompt, example.answers[:1], example.plain, example.tools)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("hh", {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: r\n\nAssistant: b"}, "differing_prompts"),
    ("hh", {"chosen": "\n\nHuman: q", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "no_assistant_turn"),
    (
        "hh",
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b\n\nHuman: c"},
        "bad_turn_order",
    ),
    (
        "conversational",
        {"chosen": [user("q"), said("a")], "rejected": [user("r"), said("b")]},
        "differing_prompts",
    ),
    (
        "conversational",
        {"prompt": [user("q")], "chosen": [user("x"), said("a")], "rejected": [user("x"), said("b")]},
        "differing_prompts",
    ),
    ("conversational", {"chosen": [user("q"), user("a")], "rejected": [user("q"), said("b")]}, "no_assistant_turn"),
    ("conversational", {"chosen": [said("a")], "rejected": [said("b")]}, "missing_field"),
    ("conversational", {"chosen": [], "rejected": [user("q"), said("b")]}, "missing_field"),
    ("conversational", {"chosen": "a", "rejected": [user("q"), said("b")]}, "not_a_string"),
    ("conversational", {"chosen": [user("q"), "a"], "rejected": [user("q"), said("b")]}, "not_a_string"),
    (
        "conversational",
        {"chosen": [user("q"), {"role": "alien", "content": "a"}], "rejected": [user("q"), said("b")]},
        "unknown_role",
    ),
    (
        "conversational",
        {"chosen": [user("q"), {"role": "assistant", "content": None}], "rejected": [user("q"), said("b")]},
        "missing_field",
    ),
    (
        "conversational",
        {"chosen": [user("q"), {"role": "assistant", "content": [{"type": "image"}]}], "rejected": [user("q")]},
        "not_a_string",
    ),
    (
        "sharegpt",
        {"conversations": [user("q")], "chosen": [user("r"), said("b")], "rejected": said("c")},
        "bad_turn_order",
    ),
    ("sharegpt", {"conversations": [user("q")], "chosen": user("b"), "rejected": said("c")}, "no_assistant_turn"),
    ("alpaca", {"instruction": "q", "output": ["one"]}, "too_few_answers"),
    ("alpaca", {"instruction": "q", "output": ["a", 5]}, "not_a_string"),
    ("alpaca", {"instruction": "q", "output": ["a", "b"], "history": 5}, "not_a_string"),
    ("alpaca", {"instruction": "q", "input": 5, "output": ["a", "b"]}, "not_a_string"),
    ("scored", {"prompt": "q", "answers": ["a", "b"], "scores": [1, 1]}, "tied_scores"),
    ("scored", {"prompt": "q", "answers": ["a", "b"], "scores": [1]}, "length_mismatch"),
    ("scored", {"prompt": "q", "answers": ["a"], "scores": [1]}, "too_few_answers"),
    ("scored", {"prompt": "q", "answers": [], "scores": []}, "too_few_answers"),
    ("scored", {"prompt": "q", "answers": ["a", "b"], "scores": [1, float("nan")]}, "not_a_number"),
    ("scored", {"prompt": "q", "answers": ["a", "b"], "scores": [1, True]}, "not_a_number"),
    ("scored", {"prompt": "q", "answers": ["a", "b"]}, "missing_field"),
    ("scored", {"prompt": "q", "answers": ["a", 7], "scores": [1, 2]}, "not_a_string"),
    ("scored", {"answers": ["a", "b"], "scores": [1, 2]}, "missing_field"),
    (
        "conversational",
        {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")], "tools": "{"},
        "malformed_json",
    ),
    (
        "conversational",
        {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")], "tools": 5},
        "not_a_string",
    ),
]


@pytest.mark.parametrize(("name", "row", "reason"), BAD)
def test_a_bad_row_says_why(name: str, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow) as raised:
        FORMATS[name].convert(row, 2)
    assert raised.value.reason == reason


def test_detection_follows_the_majority_not_the_first_row() -> None:
    hh = ROWS["hh"][1]
    assert detect([{"text": "header"}, hh, hh, {}]) == "hh"
    assert detect([{}, {"a": 1}]) is None
    assert detect([]) is None


def test_implicit_prompt_ends_before_a_word_and_its_blank() -> None:
    def split(chosen: str, rejected: str) -> tuple[Any, ...]:
        example = FORMATS["standard"].convert({"chosen": chosen, "rejected": rejected}, 2)
        return (example.prompt, *example.answers)

    assert split("Q: hi\nA: yes", "Q: hi\nA: you") == ("Q: hi\nA:", " yes", " you")
    assert split("Q: hi\nA: yes", "Q: hi\nA: no") == ("Q: hi\nA:", " yes", " no")
    assert split("Q\n\nyes", "Q\n\nno") == ("Q\n\n", "yes", "no")
    assert split("天空是蓝色", "天空是绿色") == ("天空是", "蓝色", "绿色")


def test_other_spellings_of_messages_are_understood() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = {
        "chosen": [{"from": "human", "value": "q"}, {"role": "assistant", "content": parts, "name": None}],
        "rejected": [{"role": "User", "content": "q"}, {"role": "model", "content": "c"}],
    }
    assert FORMATS["conversational"].convert(row, 2) == Example([user("q")], [[said("ab")], [said("c")]])


def test_layouts_are_named_in_report_and_log(run: Run, chat_tokenizer: Path) -> None:
    for case, expected in {
        "standard, explicit": "standard, explicit prompt",
        "standard, implicit": "standard, implicit prompt",
        "conversational, explicit": "conversational, explicit prompt",
        "conversational, implicit": "conversational, implicit prompt",
        "hh": "hh",
    }.items():
        assert list(run([ROWS[case][1]] * 3, chat_tokenizer).report.formats.values()) == [expected]


def test_format_can_be_forced(run: Run, plain_tokenizer: Path) -> None:
    prepared = run([ROWS["hh"][1]], plain_tokenizer, format="standard")
    assert prepared.report.formats.popitem()[1] == "standard, implicit prompt"
    assert prepared.report.pairs_used == 1
