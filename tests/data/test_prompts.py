"""Prompts of rounds: the ids that training sees, each once, with what a judge reads and what a record repeats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raydpo.config.sections import DataSection
from raydpo.data import PromptReport, chosen_ids, read_prompts
from raydpo.data.encode import Encoded
from raydpo.data.messages import Tokens
from raydpo.data.prompts import own_answer
from raydpo.data.token_rows import tokenized
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError
from raydpo.judge.pairs import record_of
from raydpo.rounds.produce import own_sample
from raydpo.schema.samples import Prompt, Sample
from tests.data.conftest import CHATML, Run, save_tokenizer, write_jsonl

# Opens a reasoning block for generation that a finished answer does not have, and drops what is before its end.
REASONING = (
    "{% for m in messages %}{% set c = m['content'].split('</think>')[-1] %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + c + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(
    rows: list[Any], tokenizer: Path | TextTokenizer, folder: Path, **options: Any
) -> tuple[list[Prompt], PromptReport]:
    """read_prompts of rows written as JSON lines."""
    path = write_jsonl(folder / "prompts.jsonl", rows)
    given = {"max_length": 200, "control_tokens": "plain", "max_bad_fraction": 1.0, **options}
    tokenizer = tokenizer if isinstance(tokenizer, TextTokenizer) else TextTokenizer(str(tokenizer))
    return read_prompts("rounds.prompts", [str(path)], tokenizer, **given)


TEMPLATES = {"chatml": CHATML, "writes bos": "{{ bos_token }}" + CHATML, "reasoning": REASONING}
SYSTEM = {"role": "system", "content": "be kind"}
TRAINED: dict[str, dict[str, Any]] = {
    "text": {"prompt": "the sky is", "chosen": " blue", "rejected": " green"},
    "text whose end merges with the answer": {"prompt": "the sky is ", "chosen": "blue", "rejected": "green"},
    "text with control tokens": {"prompt": "<s><|im_start|>a", "chosen": " <s> blue", "rejected": " green"},
    "no text": {"prompt": "", "chosen": "blue", "rejected": "green"},
    "messages": {"prompt": [user("q?")], "chosen": [said("blue")], "rejected": [said("green")]},
    "messages, answers as text": {"prompt": [user("q?")], "chosen": "blue", "rejected": "green"},
    "turns and a system text": {
        "prompt": [SYSTEM, user("q?"), said("a"), user("r?")],
        "chosen": [said("blue")],
        "rejected": [said("green")],
    },
    "messages with control tokens": {
        "prompt": [user("<|im_end|>\n<|im_start|>assistant\nyes")],
        "chosen": [said("blue")],
        "rejected": [said("<s>")],
    },
    "messages, implicit prompt": {"chosen": [user("q?"), said("blue")], "rejected": [user("q?"), said("green")]},
    "ultrafeedback": {"prompt": "q?", "chosen": [user("q?"), said("blue")], "rejected": [user("q?"), said("green")]},
    "a system text next to text": {"system": "be kind", "prompt": "q?", "chosen": "blue", "rejected": "green"},
    "another name": {"question": "q?", "chosen": "blue", "rejected": "green"},
    "another name of a system text": {
        "system_prompt": "be kind",
        "input": [user("q?")],
        "chosen": [said("blue")],
        "rejected": [said("green")],
    },
    "hh": {
        "chosen": "\n\nHuman: q?\n\nAssistant: blue",
        "rejected": "\n\nHuman: q?\n\nAssistant: green",
    },
}


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("case", TRAINED)
def test_ids_are_those_that_training_sees(run: Run, tmp_path: Path, case: str, template: str) -> None:
    folder = save_tokenizer(
        tmp_path / "t", bos="<s>", eos="<|im_end|>", template=TEMPLATES[template], specials=["<|im_start|>"]
    )
    row = TRAINED[case]
    # `prepare` has no layout for messages with answers as text; as messages they are the same.
    trained = row if not isinstance(row.get("prompt"), list) else {**row}
    for side in ("chosen", "rejected"):
        if isinstance(row.get("prompt"), list) and isinstance(row[side], str):
            trained[side] = [said(row[side])]
    ((ids, answers, _),) = run([trained], folder).examples()
    tokenizer = TextTokenizer(str(folder))
    (prompt,), report = read([row], tokenizer, tmp_path)
    assert list(prompt.ids) == ids
    assert chosen_ids(tokenizer, prompt) == (tuple(answers[0]), "")
    assert (report.lines_read, report.num_prompts, report.quarantined) == (1, 1, {})
    # Without its answers a row gives the same prompt.
    if "prompt" in row and "system" not in row and case != "ultrafeedback":
        (alone,), _ = read([{"prompt": row["prompt"]}], tokenizer, tmp_path)
        assert (alone.ids, alone.key, alone.text) == (prompt.ids, prompt.key, prompt.text)
        assert alone.record == {"prompt": row["prompt"]}


def test_a_reasoning_block_for_generation_is_not_in_the_prompt(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", bos=None, eos="<|im_end|>", template=REASONING, specials=["<|im_start|>"])
    tokenizer = TextTokenizer(str(folder))
    (prompt,), _ = read([{"prompt": [user("q?")]}], tokenizer, tmp_path)
    assert tokenizer.decode(prompt.ids) == "<|im_start|>user\nq?<|im_end|>\n<|im_start|>assistant\n"


def test_what_a_judge_reads_and_what_a_record_repeats(tmp_path: Path) -> None:
    template = (
        "{{ tools | tojson if tools }}{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    )
    chat_tokenizer = save_tokenizer(tmp_path / "t", bos=None, eos="</s>", template=template, specials=[])
    several = [SYSTEM, user("q?"), said("a"), user("r?")]
    rows: list[dict[str, Any]] = [
        {"prompt": " plain\n", "completion": " c", "score": 3},
        {"prompt": [{"from": "human", "value": "q?"}], "chosen": [said("a")], "rejected": [said("b")], "id": 7},
        {"prompt": several, "completion": "the end"},
        {"prompt": [user("s?")], "tools": [{"name": "f"}]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    ]
    prompts, _ = read(rows, chat_tokenizer, tmp_path)
    assert [prompt.text for prompt in prompts] == [
        " plain\n",
        "q?",
        "system: be kind\n\nuser: q?\n\nassistant: a\n\nuser: r?",
        "s?",
        "\n\nHuman: q\n\nAssistant:",
    ]
    assert [prompt.record for prompt in prompts] == [
        {"prompt": " plain\n", "chosen": " c"},
        {"prompt": [user("q?")], "chosen": "a"},
        {"prompt": several, "chosen": "the end"},
        {"prompt": [user("s?")], "tools": [{"name": "f"}]},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a"},
    ]
    assert len({prompt.key for prompt in prompts}) == 5
    assert all(len(prompt.key) == 32 and int(prompt.key, 16) for prompt in prompts)


def test_an_answer_of_several_turns_keeps_them(chat_tokenizer: Path, tmp_path: Path) -> None:
    turns = [said("one"), {"role": "tool", "content": "1"}, said("two")]
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}
    rows = [{"prompt": [user(f"{one}?")], "chosen": answer} for one, answer in enumerate([turns, [call], [said("c")]])]
    prompts, _ = read(rows, chat_tokenizer, tmp_path)
    assert [prompt.record["chosen"] for prompt in prompts] == [turns, [call], "c"]
    tokenizer = TextTokenizer(str(chat_tokenizer))
    found, why = own_answer(tokenizer, prompts[0])
    assert found is not None, why
    assert tokenizer.decode(found.answer_ids[0]) == (
        "one<|im_end|>\n<|im_start|>tool\n1<|im_end|>\n<|im_start|>assistant\ntwo<|im_end|>"
    )
    (mask,) = found.masks
    assert mask is not None
    covered = [one for one, kept in zip(found.answer_ids[0], mask, strict=True) if kept]
    assert tokenizer.decode(covered) == "one<|im_end|>two<|im_end|>"


def test_the_record_of_an_own_answer_of_several_turns_has_its_mask(chat_tokenizer: Path) -> None:
    """As a round of spin writes it, and as training reads it."""
    turns = [said("one"), {"role": "tool", "content": "1"}, said("two")]
    prompt = Prompt("k", "q", (5,), {"prompt": [user("q")], "chosen": turns})
    answer = Encoded([5], [[6, 7, 8]], 0, answer_masks=[[True, False, True]])
    own, beside = own_sample(prompt, answer)
    assert (own.ids, own.text, own.ending) == ((6, 7, 8), "one\n\n1\n\ntwo", "eos")
    record = {**record_of(prompt, own, Sample((9,), "x", "eos"), tokenizer_digest="d", extra={}), **beside}
    assert (record["chosen"], record["rejected"]) == (turns, [said("x")])
    assert tokenized(record, 2).tokens == Tokens([5], [[6, 7, 8], [9]], "d", ([True, False, True], None))
    bare = own_sample(Prompt("k", "q", (5,), {"prompt": "q", "chosen": "c"}), Encoded([5], [[6]], 0))
    assert bare == (Sample((6,), "c", "eos"), {})


def test_prompts_alone_have_system_texts_and_no_images(chat_tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"system": "be kind", "prompt": "q?"}, {"prompt": "q", "images": ["a.png"]}]
    prompts, report = read(rows, chat_tokenizer, tmp_path)
    expected, _ = read([{"prompt": [SYSTEM, user("q?")]}], chat_tokenizer, tmp_path)
    assert [prompt.ids for prompt in prompts] == [prompt.ids for prompt in expected]
    assert report.quarantined == {"unsupported_media": 1}


def test_equal_prompts_are_kept_once_and_overlong_ones_left_out(plain_tokenizer: Path, tmp_path: Path) -> None:
    tokenizer = TextTokenizer(str(plain_tokenizer))
    length = len(tokenizer.encode(["the sky is wide"])[0])
    rows = [{"prompt": text} for text in ("the sky is", "the sky is wide", "a", "the sky is", "a")]
    prompts, report = read(rows, tokenizer, tmp_path, max_length=length + 1, max_bad_fraction=0.0)
    assert [prompt.text for prompt in prompts] == ["the sky is", "the sky is wide", "a"]
    assert (report.num_prompts, report.num_duplicates, report.quarantined) == (3, 2, {})
    prompts, report = read(rows, tokenizer, tmp_path, max_length=length, max_bad_fraction=0.0)
    assert [prompt.text for prompt in prompts] == ["the sky is", "a"]
    assert (report.num_prompts, report.num_duplicates, report.quarantined) == (2, 2, {"overlong": 1})
    assert f"prompt + one token takes {length + 1} tokens of {length}" in report.samples["overlong"][0]


BAD: list[tuple[Any, str]] = [
    (b"{", "malformed_json"),
    (b"7", "not_an_object"),
    ({"question": "q"}, "missing_field"),
    ({"prompt": []}, "missing_field"),
    ({"prompt": 5}, "not_a_string"),
    ({"prompt": "q", "chosen": 5}, "not_a_string"),
    ({"prompt": [user("q"), said("a")]}, "bad_turn_order"),
    ({"prompt": [SYSTEM]}, "bad_turn_order"),
    ({"prompt": [{"role": "alien", "content": "q"}]}, "unknown_role"),
    ({"prompt": [user("q"), "r"]}, "not_a_string"),
    ({"prompt": "\ud800"}, "lone_surrogate"),
    ({"prompt": ""}, "empty_prompt"),
    (b"", "blank_line"),
]


def test_bad_rows_are_left_out_with_their_reason(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", bos=None, eos="<|im_end|>", template=CHATML, specials=["<|im_start|>"])
    good = [{"prompt": f"question {i}"} for i in range(8)]
    prompts, report = read([*good, *(row for row, _ in BAD)], folder, tmp_path)
    assert [prompt.text for prompt in prompts] == [row["prompt"] for row in good]
    entries = [json.loads(entry) for entry in report.entries]
    assert {entry["line"]: entry["reason"] for entry in entries} == {
        number: reason for number, (_, reason) in enumerate(BAD, start=9)
    }
    assert report.lines_read == 8 + len(BAD) == report.num_prompts + sum(report.quarantined.values())
    assert report.to_json()["quarantined"] == report.quarantined
    with pytest.raises(DataError) as raised:
        read([*good, *(row for row, _ in BAD)], folder, tmp_path, max_bad_fraction=0.5)
    for part in (
        "rounds.prompts: 12 of 21 lines (57.1%)",
        "data.max_bad_fraction allows 50.0%",
        "bad_turn_order",
        ":11:",
    ):
        assert part in str(raised.value)


def test_control_tokens_follow_the_policy(chat_tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a <s> b"}, {"prompt": [user("<|im_start|> c")]}, {"prompt": "clean"}]
    tokenizer = TextTokenizer(str(chat_tokenizer))
    start = tokenizer.encode(["<|im_start|>"])[0][0]
    starts = {}
    for policy in ("plain", "allow"):
        prompts, report = read(rows, tokenizer, tmp_path, control_tokens=policy)
        starts[policy] = prompts[1].ids.count(start)
        assert report.control_tokens_found == 2
    assert starts == {"plain": 2, "allow": 3}
    prompts, report = read(rows, tokenizer, tmp_path, control_tokens="quarantine")
    assert [prompt.text for prompt in prompts] == ["clean"]
    assert report.quarantined == {"control_tokens": 2}


def test_why_there_is_no_answer_of_the_data(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", bos="<s>", eos="<|im_end|>", template=CHATML, specials=["<|im_start|>"])
    rows = [
        {"prompt": "a"},
        {"prompt": "b", "chosen": " "},
        {"prompt": [user("c")], "chosen": ""},
        {"prompt": "d", "chosen": " <s>"},
    ]
    tokenizer = TextTokenizer(str(folder))
    prompts, _ = read(rows, tokenizer, tmp_path)
    found = [chosen_ids(tokenizer, prompt, control_tokens="quarantine") for prompt in prompts]
    assert [ids for ids, _ in found] == [None] * 4
    assert [why.split(":")[0] for _, why in found] == [
        "missing_field",
        "empty_answer",
        "empty_answer",
        "control_tokens",
    ]
    ids, why = chosen_ids(tokenizer, prompts[3], control_tokens="allow")
    assert ids is not None
    assert [one == tokenizer.bos_id for one in ids] == [False, True, False]
    assert why == ""


def test_files_folders_and_globs_in_order(plain_tokenizer: Path, tmp_path: Path) -> None:
    for name, text in (("b", "one"), ("a", "two"), ("c", "three")):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "p.jsonl", [{"prompt": text}, {"prompt": f"{text} again"}])
    tokenizer = TextTokenizer(str(plain_tokenizer))
    options: dict[str, Any] = {"max_length": 50, "control_tokens": "plain", "max_bad_fraction": 0.0}
    names = [str(tmp_path / "b" / "p.jsonl"), str(tmp_path / "a"), str(tmp_path / "c*" / "*.jsonl")]
    prompts, _ = read_prompts("rounds.prompts", names, tokenizer, **options)
    assert [prompt.text for prompt in prompts] == ["one", "one again", "two", "two again", "three", "three again"]
    assert read_prompts("rounds.eval_prompts", (), tokenizer, **options)[0] == []
    with pytest.raises(DataError) as raised:
        read_prompts("rounds.prompts", ["/no/such", "/nor/this"], tokenizer, **options)
    assert [problem.split(":")[0] for problem in raised.value.problems] == ["rounds.prompts"] * 2


def test_prompts_that_cannot_be_used_at_all(plain_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts\.jsonl holds conversations.*no chat template"):
        read([{"prompt": [user("q")]}], plain_tokenizer, tmp_path)
    with pytest.raises(DataError, match=r"rounds\.prompts gives no prompt.*(?s:.)*overlong"):
        read([{"prompt": "the sky is wide"}], plain_tokenizer, tmp_path, max_length=2)


def test_columns_are_named_by_the_config_in_prompts_too(plain_tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"ask": "what?", "note": "x", "rating": 3}]
    settings = DataSection(columns={"prompt": "ask"})
    (prompt,), report = read(rows, plain_tokenizer, tmp_path, settings=settings)
    assert prompt.record["prompt"] == "what?"
    assert list(report.columns_not_read.values()) == [["note", "rating"]]
    assert report.quarantined == {}


@pytest.mark.parametrize("name", ["history", "document", "user_query"])
def test_an_unread_column_of_a_prompt_stops_the_run(name: str, plain_tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "what?", name: "said long before"}]
    with pytest.raises(DataError, match=rf"rounds.prompts: .*{name}"):
        read(rows, plain_tokenizer, tmp_path)
    prompts, report = read(rows, plain_tokenizer, tmp_path, settings=DataSection(ignore=(name,)))
    assert len(prompts) == 1
    assert list(report.columns_not_read.values()) == [[name]]


def test_tools_that_a_plain_prompt_cannot_show_stop_the_run(plain_tokenizer: Path, tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(DataError, match="tools"):
        read([{"prompt": "what?", "tools": tools}], plain_tokenizer, tmp_path)
