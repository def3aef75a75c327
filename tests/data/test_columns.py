"""A column is read, or named as not read, or it stops the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydpo.artifacts.examples import ExampleTable
from raydpo.config import Config
from raydpo.data import DataReport, prepare
from raydpo.data.aliases import OTHERS
from raydpo.data.bad_rows import BadRow
from raydpo.data.column_names import KINDS, kind_of_column
from raydpo.data.row_reader import RowReader
from raydpo.errors import ConfigError, DataError
from raydpo.schema.events import Event, Note
from tests.data.conftest import Run, config_of, write_jsonl
from tests.data.test_formats import ROWS, SFT, said, user

PAIR = {"prompt": "the sky is", "chosen": " blue", "rejected": " green"}
SYSTEM = {"role": "system", "content": "You are terse."}


def reader_of(rows: list[dict[str, Any]], objective: str = "dpo", **data: Any) -> RowReader:
    config = config_of(objective, train="x", **data)
    row = config.objective.row
    return RowReader("f", config.data, rows, num_answers=row.num_answers, needs=row.data, is_unpaired=False)


def read(row: dict[str, Any], objective: str = "dpo", **data: Any) -> tuple[Any, Any]:
    """(prompt, answers) of a row, of which nothing may stop a run."""
    reader = reader_of([row], objective, **data)
    example, layout = reader.read("f:1", row)
    assert reader.use.problem(layout.name) is None
    return example.prompt, example.answers


def problem_of(row: dict[str, Any], objective: str = "dpo", **data: Any) -> str | None:
    reader = reader_of([row], objective, **data)
    _, layout = reader.read("f:1", row)
    return reader.use.problem(layout.name)


# --- a column that is not read ----------------------------------------------------------------------------------


def test_metadata_is_named_and_stops_nothing(run: Run, plain_tokenizer: Path, tmp_path: Path) -> None:
    rows = [{**PAIR, "id": 7, "source": "x", "model": None}, {**PAIR, "chosen": " red", "note": "n", "tags": []}]
    prepared = run(rows, plain_tokenizer)
    assert prepared.report.columns_not_read == {str(tmp_path / "rows.jsonl"): ["id", "note", "source"]}
    assert DataReport.from_json(json.loads(json.dumps(prepared.report.to_json()))) == prepared.report
    events: list[Event] = []
    config = config_of(train=str(tmp_path / "rows.jsonl"))
    prepare(config, str(plain_tokenizer), tmp_path / "other", write=False, observer=events.append)
    texts = [event.text for event in events if isinstance(event, Note)]
    assert f"{tmp_path / 'rows.jsonl'}: columns that are not read: id, note, source" in texts


@pytest.mark.parametrize(
    "name", ["context", "Documents", "rating", "label", "tools", "overall_preference", "INSTRUCTIONS"]
)
def test_a_name_that_means_something_stops_the_run_unless_it_is_ignored(
    name: str, run: Run, plain_tokenizer: Path
) -> None:
    rows = [PAIR, {**PAIR, "chosen": " red", name: "something else"}]
    with pytest.raises(DataError, match=rf"(?s){name} \(.*1 rows\); first at .*:2\b.*data\.ignore: \[{name}\]"):
        run(rows, plain_tokenizer)
    report = run(rows, plain_tokenizer, ignore=[name.lower()]).report
    assert report.pairs_used == 2
    assert list(report.columns_not_read.values()) == [[name]]


def test_all_columns_and_sources_are_said_at_once(tmp_path: Path, plain_tokenizer: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", [{**PAIR, "context": "c", "rating": 3}])
    second = write_jsonl(tmp_path / "b.jsonl", [{**PAIR, "label": 1}])
    config = config_of(train=[str(first), str(second)])
    with pytest.raises(DataError) as raised:
        prepare(config, str(plain_tokenizer), tmp_path / "run" / "data")
    assert len(raised.value.problems) == 2
    assert "data.ignore: [context, rating]" in raised.value.problems[0]
    assert "data.ignore: [label]" in raised.value.problems[1]


def test_the_line_to_write_makes_the_file_readable(run: Run, plain_tokenizer: Path, chat_tokenizer: Path) -> None:
    rows = [
        {"chosen": "It is blue.", "rejected": "It is green.", "dialogue_history": "the sky?", "persona": "Be kind."}
    ]
    with pytest.raises(DataError) as raised:
        run(rows, plain_tokenizer)
    assert "data.columns: {prompt: dialogue_history, system: persona} to read them" in str(raised.value)
    columns = {"prompt": "dialogue_history", "system": "persona"}
    ((prompt, _, _),) = run(rows, chat_tokenizer, columns=columns).examples()
    written = [
        {"prompt": [{"role": "system", "content": "Be kind."}, user("the sky?")], "chosen": [said("It is blue.")]}
    ]
    written[0]["rejected"] = [said("It is green.")]
    assert prompt == run(written, chat_tokenizer).examples()[0][0]


def test_what_repeats_the_conversation_is_not_lost() -> None:
    turns = [user("q"), said("a"), user("r"), said("b")]
    assert read({"prompt": "q", "messages": turns, "prompt_id": "1"}, "sft") == (turns[:-1], [[said("b")]])
    assert problem_of({"prompt": "other", "messages": turns}, "sft") is not None
    pair = {"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]}
    assert problem_of({**pair, "prompt": "q", "messages": pair["chosen"]}) is None
    assert "prompt" in str(problem_of({**pair, "prompt": "x"})), "next to whole conversations"
    assert read({**pair, "prompt": "x"}, ignore="prompt")[0] == [user("q")]


@pytest.mark.parametrize("case", ROWS)
def test_layouts_that_people_have_go_on_as_before(case: str) -> None:
    name, row, example = ROWS[case]
    reader = reader_of([row])
    assert reader.read("f:1", row)[0] == example
    assert reader.use.problem(name) is None
    assert not (set(reader.use.unread) - {"prompt_id", "messages", "score_chosen", "score_rejected"})


def test_a_prompt_of_an_unknown_name_is_not_taken_for_none(run: Run, chat_tokenizer: Path) -> None:
    rows = [{"ask_me": f"What is {i} plus one?", "chosen": f"{i + 1}", "rejected": f"{i + 12}"} for i in range(4, 8)]
    with pytest.raises(DataError, match=r"ask_me \(text, where.*data\.columns: {prompt: ask_me} to read them"):
        run(rows, chat_tokenizer)
    ((prompt, answers),) = [read(rows[0], columns={"prompt": "ask_me"})]
    assert (prompt, answers) == ("What is 4 plus one?", ["5", "16"])
    shared = {"chosen": "The sky by day is blue.", "rejected": "The sky by day is red.", "why": "I have seen it"}
    assert problem_of(shared) is None
    assert problem_of({**rows[0], "prompt": "q"}) is None


def test_ratings_beside_a_pair_are_named_and_a_contradiction_is_said(run: Run, plain_tokenizer: Path) -> None:
    lists = {"generations": [" green", " blue"], "rating": [9.0, 8.0]}
    rows = [
        {"input": "the sky is", "chosen": " blue", "rejected": " green", **lists},
        {**PAIR, "prompt": "2", "score_chosen": 1, "score_rejected": 2},
        {**PAIR, "prompt": "3", "chosen-rating": 5, "rejected-rating": 2},
        {**PAIR, "prompt": "4", "responses": [" blue", " green"], "scores": [9, 8]},
    ]
    prepared = run(rows, plain_tokenizer)
    expected = run([PAIR], plain_tokenizer).examples()[0]
    assert prepared.examples()[0][:2] == expected[:2]
    assert prepared.report.contradicted_pairs == 2
    (names,) = prepared.report.columns_not_read.values()
    assert {"generations", "rating", "score_chosen", "chosen-rating", "scores"} <= set(names)
    turns = {**rows[0], "chosen": [said(" blue")], "rejected": [said(" green")]}
    reader = reader_of([turns])
    assert reader.read("f:1", turns)[0].answers == [[said(" blue")], [said(" green")]]
    assert reader.use.contradicted == 1


EXTRA = st.sampled_from(
    sorted({name for kind in KINDS for name in kind.names} | {"id", "source", "x.y", "Tools", "weird"})
)
VALUES = st.sampled_from(["zz-extra", 3.5, True, ["zz", "yy"], {"a": "zz"}, [{"role": "user", "content": "zz"}]])
ALL = [row for _, row, _ in ROWS.values()] + [row for row, _ in SFT.values()]


@settings(max_examples=400)
@given(
    row=st.sampled_from(ALL),
    extra=st.dictionaries(EXTRA, VALUES, max_size=4),
    objective=st.sampled_from(["dpo", "sft"]),
)
def test_no_column_is_silent(row: dict[str, Any], extra: dict[str, Any], objective: str) -> None:
    named = json.loads(json.dumps(extra).replace("zz", "zz%"))
    for name in named:  # no column repeats another
        named[name] = json.loads(json.dumps(named[name]).replace("zz%", f"zz {name} zz"))
    whole = {**row, **{name: value for name, value in named.items() if name not in row}}
    reader = reader_of([whole], objective)
    try:
        example, layout = reader.read("f:1", whole)
    except (BadRow, DataError):
        return
    written = json.dumps([example.prompt, example.answers, example.tools, example.plain])
    problem = reader.use.problem(layout.name) or ""
    for name, value in whole.items():
        if name in row or name in reader.use.unread:
            continue
        # Read: then what it says is in the example, or it is a number that chose among answers.
        is_used = f"zz {name} zz" in written or name.lower() in {"label", *OTHERS["label"], "scores"}
        assert is_used or name in problem or not example.answers, (name, value, layout.name)
    for name in reader.use.unread:
        kind = kind_of_column(name)
        if name not in row and kind is not None and kind.stops and "zz" in json.dumps(whole[name]):
            assert name in problem or isinstance(whole[name], list), (name, layout.name)


# --- data.columns and data.ignore --------------------------------------------------------------------------------


def test_columns_reach_into_nested_fields() -> None:
    row = {"meta": {"ask": "q", "id": 1}, "a.b": "good", "bad": {"text": "worse"}}
    columns = {"prompt": "meta.ask", "chosen": "a.b", "rejected": "bad.text"}
    assert read(row, columns=columns) == ("q", ["good", "worse"])


def test_a_mapped_column_wins_and_the_other_is_not_silent() -> None:
    row = {**PAIR, "better_prompt": "q"}
    assert read(row, columns={"prompt": "better_prompt"}, ignore="prompt")[0] == "q"
    assert "data.ignore: [prompt]" in str(problem_of(row, columns={"prompt": "better_prompt"}))


def test_a_column_that_no_row_has_is_an_error(run: Run, plain_tokenizer: Path) -> None:
    rows = [{**PAIR, "q": 1}, {**PAIR, "chosen": " red"}]
    with pytest.raises(DataError, match=r"data\.columns: system: systems_text: no row has such a column"):
        run(rows, plain_tokenizer, columns={"system": "systems_text"})


@pytest.mark.parametrize(
    ("word", "said_of_it"),
    [
        ("data.columns={asked: question}", "a mapping of prompt, system, messages"),
        ("data.columns=question", "a mapping of prompt, system, messages"),
        ("data.columns={prompt: 5}", "data.columns"),
        ("data.columns={prompt: ''}", "no column is named for prompt"),
        ("data.ignore={a: b}", "a list of texts"),
    ],
)
def test_what_is_no_mapping_is_said(word: str, said_of_it: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: {dir: a}\nmodel: {path: b}\ndata: {train: c.jsonl}\n")
    with pytest.raises(ConfigError) as raised:
        Config.load(path, [word])
    assert said_of_it in str(raised.value)
    found = Config.load(path, ["data.columns={prompt: question}", "data.ignore=rating"]).data
    assert (found.columns, found.ignore) == ({"prompt": "question"}, ("rating",))
    assert Config.load(path, ["data.columns.prompt=meta.question"]).data.columns == {"prompt": "meta.question"}


# --- system texts ------------------------------------------------------------------------------------------------

TERSE = {"system": "You are terse."}
WITH_SYSTEM: dict[str, tuple[dict[str, Any], str]] = {
    "text": (PAIR, "dpo"),
    "text for sft": ({"prompt": "q", "completion": "a"}, "sft"),
    "labelled": ({"prompt": "q", "completion": "a", "label": True}, "kto"),
    "messages": ({"prompt": [user("q")], "chosen": [said("a")], "rejected": [said("b")]}, "dpo"),
    "whole conversations": ({"chosen": [user("q"), said("a")], "rejected": [user("q"), said("b")]}, "dpo"),
    "ultrafeedback": ({"prompt": "q", "chosen": [said("a")], "rejected": [said("b")]}, "dpo"),
    "sharegpt": ({"messages": [user("q")], "chosen": said("a"), "rejected": said("b")}, "dpo"),
    "conversation for sft": ({"messages": [user("q"), said("a")]}, "sft"),
    "alpaca": ({"instruction": "q", "chosen": "a", "rejected": "b"}, "dpo"),
    "alpaca for sft": ({"instruction": "q", "output": "a"}, "sft"),
    "scored": ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}, "dpo"),
    "a name of its own": ({"question": "q", "chosen": "a", "rejected": "b"}, "dpo"),
}


@pytest.mark.parametrize("case", WITH_SYSTEM)
@pytest.mark.parametrize("name", ["system", "system_prompt", "system_message"])
def test_a_system_text_is_the_first_turn_in_every_layout(case: str, name: str) -> None:
    row, objective = WITH_SYSTEM[case]
    without, answers = read(row, objective)
    turns = without if isinstance(without, list) else [user(without)]
    prompt, found = read({**row, name: "You are terse."}, objective)
    assert prompt == [SYSTEM, *turns]
    said_before = [answer if isinstance(answer, str) else answer[-1]["content"] for answer in answers]
    assert [answer[-1]["content"] for answer in found] == said_before
    assert read({**row, name: ""}, objective) == (without, answers)


def test_a_system_text_is_in_the_ids(run: Run, chat_tokenizer: Path) -> None:
    row = {**PAIR, "chosen": "blue", "rejected": "green"}
    turns = {"prompt": [SYSTEM, user("the sky is")], "chosen": [said("blue")], "rejected": [said("green")]}
    found = run([{**row, **TERSE}], chat_tokenizer).examples()
    assert found == run([turns], chat_tokenizer).examples()


def test_two_system_texts_are_refused_and_the_same_twice_is_one() -> None:
    row = {"prompt": [SYSTEM, user("q")], "chosen": [said("a")], "rejected": [said("b")]}
    assert read({**row, **TERSE})[0] == row["prompt"]
    sharegpt = {"conversations": [SYSTEM, user("q")], "chosen": said("a"), "rejected": said("b")}
    for one in (row, sharegpt, {"messages": [SYSTEM, user("q"), said("a")]}):
        with pytest.raises(BadRow) as raised:
            read({**one, "system": "Be kind."}, "sft" if "messages" in one else "dpo")
        assert raised.value.reason == "two_systems"


HH = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}


@pytest.mark.parametrize(
    ("row", "objective"),
    [(HH, "dpo"), ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "dpo"), ({"text": "all"}, "sft")],
)
def test_where_there_is_no_place_for_a_system_text_the_row_is_refused(row: dict[str, Any], objective: str) -> None:
    with pytest.raises(BadRow) as raised:
        read({**row, **TERSE}, objective)
    assert raised.value.reason == "no_place_for_system"
    assert read({**row, **TERSE}, objective, ignore="system") == read(row, objective)


def test_ids_have_no_place_for_a_system_text() -> None:
    row = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "tokenizer": "x", **PAIR}
    assert read(row)[0] == ""
    with pytest.raises(BadRow, match="next to token ids"):
        read({**row, **TERSE})


def test_without_a_template_a_system_text_cannot_be_written(run: Run, plain_tokenizer: Path) -> None:
    with pytest.raises(DataError, match="no chat template"):
        run([{**PAIR, **TERSE}], plain_tokenizer)


# --- labels, images, mixed files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "kto_tag"])
@pytest.mark.parametrize("shape", ["messages", "conversations", "instruction", "completion", "question"])
def test_labels_beside_any_single_answer(name: str, shape: str, run: Run, chat_tokenizer: Path) -> None:
    def row(index: int) -> dict[str, Any]:
        asked, answer = f"question {index}", f"answer {index}"
        spoken = [user(asked), said(answer)]
        return {
            "messages": {"messages": spoken},
            "conversations": {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]},
            "instruction": {"instruction": asked, "input": "", "output": answer},
            "completion": {"prompt": asked, "completion": answer},
            "question": {"question": asked, "response": answer},
        }[shape]

    rows = [{**row(index), name: index % 2 == 0} for index in range(6)]
    prepared = run(rows, chat_tokenizer, objective="kto")
    assert ExampleTable.open(prepared.folder, "train").labels.tolist() == [True, False] * 3
    report = run(rows, chat_tokenizer, objective="sft").report
    assert (report.pairs_used, report.quarantined) == (3, {"undesirable": 3})


IMAGES = {
    "conversations": [{"from": "human", "value": "<image>What is it?"}],
    "chosen": {"from": "gpt", "value": "A cat."},
    "rejected": {"from": "gpt", "value": "A dog."},
    "images": ["a.jpg"],
}


def test_images_are_refused_with_the_reason() -> None:
    plain = {**IMAGES, "conversations": [user("What?")]}
    for row in (IMAGES, {**PAIR, "Image": "a.png"}, {**PAIR, "audios": ["a.wav"]}, plain):
        with pytest.raises(BadRow) as raised:
            read(row)
        assert raised.value.reason == "unsupported_media"
    assert read(plain, ignore="images")[0] == [user("What?")]
    with pytest.raises(BadRow, match="the text holds <image>"):
        read(IMAGES, ignore="images")
    assert read({**PAIR, "prompt": "the tag <image> of HTML", "images": []})[0] == "the tag <image> of HTML"
    parts = {
        "chosen": [user("q"), {"role": "assistant", "content": [{"type": "image"}]}],
        "rejected": [user("q"), said("b")],
    }
    with pytest.raises(BadRow, match="part of type 'image'"):
        read(parts)


def test_a_mixed_file_is_read_row_by_row(run: Run, chat_tokenizer: Path) -> None:
    rows: list[dict[str, Any]] = [{**PAIR, "prompt": f"the sky {index} is"} for index in range(5)]
    others: list[dict[str, Any]] = [
        {"question": "q1", "chosen": "a", "rejected": "b"},
        {"prompt": [user("q2")], "chosen": [said("a")], "rejected": [said("b")]},
        {"messages": [user("q3")], "chosen": said("a"), "rejected": said("b")},
        {**HH},
        {"instruction": "q4", "output": ["a", "b"]},
    ]
    prepared = run([*rows, *others], chat_tokenizer)
    alone = [run([row], chat_tokenizer).examples()[0][:2] for row in (*rows, *others)]
    assert [one[:2] for one in run([*rows, *others], chat_tokenizer).examples()] == alone
    (described,) = prepared.report.formats.values()
    assert (
        described
        == "standard, explicit prompt; also conversational (1 rows), sharegpt (1 rows), hh (1 rows), alpaca (1 rows)"
    )


def test_a_pair_among_labelled_answers_is_no_desirable_one(run: Run, plain_tokenizer: Path) -> None:
    rows = [{"prompt": f"q{i}", "completion": f" a{i}", "label": i % 2 == 0} for i in range(4)]
    report = run([*rows, PAIR], plain_tokenizer, objective="bco").report
    assert (report.pairs_used, report.quarantined) == (4, {"missing_field": 1})
