"""Rows that carry token ids: what is in the file is in the shards, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.artifacts.examples import ExampleTable
from raydpo.data.bad_rows import BadRow
from raydpo.data.formats import FORMATS, detect
from raydpo.data.messages import Tokens
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError
from raydpo.schema.rows import row_key
from tests.data.conftest import CHATML, Run, save_tokenizer

SIDES = ("chosen", "rejected")


def spelled(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a text, a character at a time: the same text, and not what the tokenizer would give."""
    return [one for char in text for one in tokenizer.encode([char])[0]]


def token_row(tokenizer: TextTokenizer, index: int = 0, /, **changes: Any) -> dict[str, Any]:
    """A pair whose rejected answer was cut off; a change to None leaves the field out."""
    prompt, chosen, rejected = f"question {index}: the sky is", " blue", " green and green"
    assert tokenizer.eos_id is not None
    row = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "prompt_ids": spelled(tokenizer, prompt),
        "chosen_ids": [*spelled(tokenizer, chosen), tokenizer.eos_id],
        "rejected_ids": spelled(tokenizer, rejected),
        "tokenizer": tokenizer.ids_digest,
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not None}


@pytest.fixture(scope="module")
def plain(plain_tokenizer: Path) -> TextTokenizer:
    return TextTokenizer(str(plain_tokenizer))


@pytest.fixture(scope="module")
def chat(chat_tokenizer: Path) -> TextTokenizer:
    return TextTokenizer(str(chat_tokenizer))


def test_ids_of_the_file_are_the_ids_of_the_shards(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    rows = [token_row(plain, index) for index in range(3)]
    for row in rows:
        text = row["prompt"] + row["chosen"]
        assert plain.decode(row["prompt_ids"] + row["chosen_ids"][:-1]) == text
        assert plain.encode([row["prompt"]])[0] != row["prompt_ids"], "tokenising again must give other ids here"
        assert plain.encode([row["chosen"]])[0] != row["chosen_ids"][:-1]
    prepared = run(rows, plain_tokenizer)
    found = [(prompt, answers) for prompt, answers, _ in prepared.examples()]
    assert found == [(row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]]) for row in rows]
    assert list(prepared.report.formats.values()) == ["tokenized"]
    assert all(answers[1][-1] != plain.eos_id for _, answers, _ in prepared.examples())


def test_no_bos_is_added_and_none_is_taken_away(run: Run, chat_tokenizer: Path, chat: TextTokenizer) -> None:
    ids = spelled(chat, "the sky")
    rows = [token_row(chat, prompt_ids=prompt) for prompt in (ids, [chat.bos_id, *ids], [chat.bos_id] * 2, [7])]
    assert [prompt for prompt, _, _ in run(rows, chat_tokenizer).examples()] == [row["prompt_ids"] for row in rows]


def test_an_answer_of_eos_alone_is_what_the_policy_gave(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    ((_, answers, _),) = run([token_row(plain, rejected_ids=[plain.eos_id])], plain_tokenizer).examples()
    assert answers[1] == [plain.eos_id]


def test_messages_with_ids_need_no_template(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    turns = {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
    }
    row = token_row(plain, **turns)
    ((prompt, answers, _),) = run([row], plain_tokenizer).examples()
    assert (prompt, answers) == (row["prompt_ids"], [row["chosen_ids"], row["rejected_ids"]])


def test_ids_come_before_every_other_layout() -> None:
    ids = {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3], "tokenizer": "x"}
    said = [{"role": "assistant", "content": "a"}]
    hh = "\n\nHuman: q\n\nAssistant: a"
    others: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": said, "rejected": said},
        {"prompt": said, "chosen": said, "rejected": said},
        {"chosen": hh, "rejected": hh},
        {},
    ]
    for other in others:
        assert detect([{**other, **ids}]) == "tokenized"
        assert detect([other, other, {**other, **ids}]) == "tokenized"
        # Ids of somebody who does not say of which tokenizer: the text is read, as ever.
        assert detect([{**other, **ids, "tokenizer": None}]) == detect([other])


def test_the_text_is_read_when_the_config_says_so(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    row = token_row(plain, tokenizer="another")
    ((prompt, answers, _),) = run([row], plain_tokenizer, format="standard").examples()
    assert prompt == plain.encode([row["prompt"]])[0]
    assert answers[0] == [*plain.encode([row["chosen"]])[0], plain.eos_id]


def test_a_single_answer_and_split_pairs(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    rows = [token_row(plain, index, rejected_ids=None, rejected=None) for index in range(2)]
    found = [answers for _, answers, _ in run(rows, plain_tokenizer, objective="sft").examples()]
    assert found == [[row["chosen_ids"]] for row in rows]
    rows = [token_row(plain, index) for index in range(2)]
    prepared = run(rows, plain_tokenizer, objective="bco", unpair=True)
    expected = [[row[f"{side}_ids"]] for row in rows for side in ("chosen", "rejected")]
    assert [answers for _, answers, _ in prepared.examples()] == expected
    assert ExampleTable.open(prepared.folder, "train").labels.tolist() == [True, False] * 2
    with pytest.raises(DataError, match=r"Set data\.unpair: true"):
        run(rows, plain_tokenizer, objective="bco")


def test_weights_and_confidence_are_read(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    rows = [
        token_row(plain, index, w=weight, sure=sure) for index, (weight, sure) in enumerate([(2, 1), (0.5, 1), (1, 0)])
    ]
    prepared = run(rows, plain_tokenizer, weight_column="w", confidence_column="sure", min_confidence=0.5)
    assert ExampleTable.open(prepared.folder, "train").weights.tolist() == [2.0, 0.5]
    assert prepared.report.quarantined == {"low_confidence": 1}


def test_the_same_prompts_are_held_out_as_of_text(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    rows = []
    for index in range(60):
        prompt = f"question {index}:"
        rows.append(token_row(plain, index, prompt=prompt, prompt_ids=plain.encode([prompt])[0]))
    held_out = {}
    for layout in ("tokenized", "standard"):
        prepared = run(rows, plain_tokenizer, format=layout, eval_fraction=0.3)
        held_out[layout] = [prompt for prompt, _, _ in prepared.examples("eval")]
    assert held_out["tokenized"] == held_out["standard"]
    assert 5 <= len(held_out["tokenized"]) <= 35


@pytest.mark.parametrize("with_bos", [True, False])
def test_cut_prompts_keep_a_bos_that_was_there(
    run: Run, chat_tokenizer: Path, chat: TextTokenizer, with_bos: bool
) -> None:
    head = [chat.bos_id] if with_bos else []
    ids = spelled(chat, "a long prompt about the sky")
    row = token_row(chat, prompt_ids=head + ids, chosen_ids=[50, 51, 52], rejected_ids=[53, 54])
    options = {"max_length": 10, "overlong": "truncate_prompt"}
    prepared = run([row], chat_tokenizer, **options)
    ((prompt, answers, _),) = prepared.examples()
    assert prompt == head + ids[-(7 - len(head)) :]
    assert answers == [[50, 51, 52], [53, 54]]
    assert prepared.report.truncated_prompts == 1
    rows = [row, token_row(chat, prompt_ids=[60] * 7, chosen_ids=[50, 51, 52], rejected_ids=[53])]
    assert run(rows, chat_tokenizer, max_length=10).report.quarantined == {"overlong": 1}


BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt_ids": None}, "missing_field"),
    ({"chosen_ids": None}, "missing_field"),
    ({"rejected_ids": None}, "missing_field"),
    ({"tokenizer": None}, "missing_field"),
    ({"tokenizer": 5}, "not_a_string"),
    ({"prompt_ids": "1 2"}, "bad_ids"),
    ({"chosen_ids": {"ids": [1]}}, "bad_ids"),
    ({"chosen_ids": [1, True]}, "bad_ids"),
    ({"chosen_ids": [1, 2.0]}, "bad_ids"),
    ({"rejected_ids": ["1"]}, "bad_ids"),
    ({"rejected_ids": [[1]]}, "bad_ids"),
    ({"prompt_ids": [1, -1]}, "bad_ids"),
    ({"chosen_ids": [10**6]}, "bad_ids"),
    ({"rejected_ids": [10**30]}, "bad_ids"),
    ({"prompt_ids": []}, "empty_prompt"),
    ({"chosen_ids": []}, "empty_answer"),
    ({"rejected_ids": []}, "empty_answer"),
    ({"chosen_ids": [5, 6], "rejected_ids": [5, 6]}, "identical_answers"),
    ({"chosen_ids": [5, 6], "chosen_mask": [1]}, "bad_mask"),
    ({"chosen_ids": [5, 6], "chosen_mask": []}, "bad_mask"),
    ({"rejected_ids": [5, 6], "rejected_mask": [1, 0, 1]}, "bad_mask"),
    ({"chosen_ids": [5, 6], "chosen_mask": [1, 2]}, "bad_mask"),
    ({"chosen_ids": [5, 6], "chosen_mask": [1.0, 0.0]}, "bad_mask"),
    ({"chosen_ids": [5, 6], "chosen_mask": "10"}, "bad_mask"),
    ({"chosen_ids": [5, 6], "chosen_mask": [0, 0]}, "empty_answer"),
    ({"chosen_ids": [5, 6], "rejected_ids": [5, 6], "chosen_mask": [0, 1]}, "identical_answers"),
]


def test_bad_rows_are_left_out_with_their_reason(run: Run, chat_tokenizer: Path, chat: TextTokenizer) -> None:
    rows = [token_row(chat, index) for index in range(3)]
    prepared = run([*rows, *(token_row(chat, **changes) for changes, _ in BAD)], chat_tokenizer)
    found = {entry["line"]: entry["reason"] for entry in prepared.quarantine()}
    assert found == {number: reason for number, (_, reason) in enumerate(BAD, start=4)}
    assert prepared.report.pairs_used == 3


def masked_row(tokenizer: TextTokenizer, index: int = 0, **changes: Any) -> dict[str, Any]:
    """A pair whose chosen answer has a mask of its first and last token."""
    row = token_row(tokenizer, index)
    inside = [0] * (len(row["chosen_ids"]) - 2)
    return {**row, "chosen_mask": [1, *inside, 1], "rejected_mask": [1] * len(row["rejected_ids"]), **changes}


def test_masks_of_the_file_are_the_masks_of_the_shards(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    marked = masked_row(plain)
    as_bools = masked_row(plain, 1, chosen_mask=[bool(one) for one in marked["chosen_mask"]], rejected_mask=None)
    rows = [marked, as_bools, token_row(plain, 2)]
    prepared = run(rows, plain_tokenizer)
    table = ExampleTable.open(prepared.folder, "train")
    found = [[None if mask is None else mask.tolist() for mask in table.answer_masks(example)] for example in range(3)]
    mask = [bool(one) for one in marked["chosen_mask"]]
    assert found == [[mask, None], [mask, None], [None, None]], "a mask of ones is none"
    for example, row in enumerate(rows):
        keys = [row_key(row["prompt_ids"], row[f"{side}_ids"], row.get(f"{side}_mask")) for side in SIDES]
        assert table.row_keys(example) == keys
    assert table.loss_lengths[:, 0].tolist() == [2, 2, len(rows[2]["chosen_ids"])]
    (unread,) = prepared.report.columns_not_read.values()
    assert unread == ["chosen", "prompt", "rejected"], "masks are read"


def test_masks_of_split_pairs_and_mismatched_answers(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    rows = [masked_row(plain, index) for index in range(2)]
    mask = [bool(one) for one in rows[0]["chosen_mask"]]
    for objective, expected in (("bco", [[mask], [None]] * 2), ("kto", [[mask, mask], [None, None]] * 2)):
        prepared = run(rows, plain_tokenizer, objective=objective, unpair=True)
        table = ExampleTable.open(prepared.folder, "train")
        found = [[None if one is None else one.tolist() for one in table.answer_masks(place)] for place in range(4)]
        assert found == expected


def test_a_mask_stays_when_the_prompt_is_cut(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    row = masked_row(plain, prompt_ids=[60] * 30)
    prepared = run([row], plain_tokenizer, max_length=30, overlong="truncate_prompt")
    assert prepared.report.truncated_prompts == 1
    (mask, _) = ExampleTable.open(prepared.folder, "train").answer_masks(0)
    assert mask is not None
    assert mask.tolist() == [bool(one) for one in row["chosen_mask"]]


def test_the_last_id_of_the_vocabulary_is_in_it(run: Run, chat_tokenizer: Path, chat: TextTokenizer) -> None:
    assert chat.num_ids == len(chat.tokenizer)
    rows = [token_row(chat, chosen_ids=[chat.num_ids - 1, 0]), token_row(chat, chosen_ids=[chat.num_ids])]
    report = run(rows, chat_tokenizer).report
    assert (report.pairs_used, report.quarantined) == (1, {"bad_ids": 1})
    assert f"ids 0 to {chat.num_ids - 1}" in report.samples["bad_ids"][0]


def test_rows_without_ids_are_left_out_of_a_file_with_ids(
    run: Run, plain_tokenizer: Path, plain: TextTokenizer
) -> None:
    text = {"prompt": "q:", "chosen": " a", "rejected": " b"}
    report = run([text, text, token_row(plain), text], plain_tokenizer).report
    assert (report.pairs_used, report.quarantined) == (1, {"missing_field": 3})
    with pytest.raises(DataError, match="missing_field"):
        run([text, token_row(plain)], plain_tokenizer, max_bad_fraction=0.02)


def test_ids_that_come_late_are_not_tokenised_again(run: Run, plain_tokenizer: Path, plain: TextTokenizer) -> None:
    rows = [{"prompt": f"q {i}:", "chosen": " a", "rejected": " b"} for i in range(70)] + [token_row(plain)]
    with pytest.raises(DataError, match=r"rows\.jsonl:71: this row has token ids.*data\.format: standard"):
        run(rows, plain_tokenizer)
    assert run(rows, plain_tokenizer, format="standard").report.pairs_used == 71


def test_ids_of_another_tokenizer_are_refused(
    run: Run, plain_tokenizer: Path, plain: TextTokenizer, chat: TextTokenizer
) -> None:
    with pytest.raises(DataError) as raised:
        run([token_row(plain), token_row(chat)], plain_tokenizer)
    (problem,) = raised.value.problems
    for part in (
        "rows.jsonl:2",
        chat.ids_digest,
        plain.ids_digest,
        str(plain_tokenizer),
        "read as other text",
        "standard",
    ):
        assert part in problem


def test_the_digest_is_of_what_ids_mean_and_of_nothing_else(tmp_path: Path) -> None:
    def saved(name: str, eos: str = "</s>", specials: tuple[str, ...] = ()) -> Path:
        return save_tokenizer(tmp_path / name, bos="<s>", eos=eos, template=CHATML, specials=list(specials))

    first = TextTokenizer(str(saved("first")))
    other_template = TextTokenizer(str(tmp_path / "first"), "{{ messages[0]['content'] }}")
    assert other_template.ids_digest == first.ids_digest
    assert other_template.digest != first.digest
    # As transformers leaves it: used with padding and truncation, which are then in the file, and saved.
    first.tokenizer.pad_token = first.tokenizer.eos_token
    first.tokenizer(["a", "b b b b"], padding=True, truncation=True, max_length=3)
    first.tokenizer.save_pretrained(tmp_path / "used")
    state = json.loads((tmp_path / "used" / "tokenizer.json").read_text())
    assert state["truncation"], "there must be a difference, else nothing is tested"
    assert TextTokenizer(str(tmp_path / "used")).ids_digest == first.ids_digest
    for other in (saved("eos", eos="<eos>"), saved("specials", specials=("<x>",))):
        assert TextTokenizer(str(other)).ids_digest != first.ids_digest


id_lists = st.lists(st.integers(-2, 9), max_size=3) | st.lists(st.none() | st.booleans() | st.floats()) | st.text()


@given(
    row=st.fixed_dictionaries(
        {}, optional={**{f"{name}_ids": id_lists for name in ("prompt", "chosen", "rejected")}, "tokenizer": st.text()}
    ),
    num_answers=st.sampled_from([1, 2]),
)
def test_any_ids_are_taken_as_they_are_or_refused(row: dict[str, Any], num_answers: int) -> None:
    try:
        example = FORMATS["tokenized"].convert(row, num_answers)
    except BadRow:
        return
    answers = [row["chosen_ids"], row.get("rejected_ids")][:num_answers]
    assert example.tokens == Tokens(row["prompt_ids"], answers, row["tokenizer"])
