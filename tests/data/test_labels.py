"""Labelled answers, pairs split into them, the answer to another prompt, and weights from a column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.artifacts.examples import ExampleTable, examples_digest
from raydpo.config.sections import ObjectiveSection
from raydpo.data import prepare
from raydpo.data.formats import detect
from raydpo.data.mismatched import partners
from raydpo.errors import DataError
from raydpo.schema import row_key
from raydpo.schema.events import Event, Note
from tests.data.conftest import Prepared, Run, config_of, write_jsonl

PAIRS = [{"prompt": f"question {i}:", "chosen": f" yes {i}", "rejected": f" no {i} {i}"} for i in range(6)]
LABELLED = [
    {"prompt": f"question {i}:", "completion": text, "label": label}
    for i in range(6)
    for text, label in ((f" yes {i}", True), (f" no {i} {i}", False))
]


def table_of(prepared: Prepared, split: str = "train") -> ExampleTable:
    return ExampleTable.open(prepared.folder, split)


def test_labelled_rows_and_pairs_split_in_two_are_the_same_examples(run: Run, plain_tokenizer: Path) -> None:
    found = {}
    for name, rows, options in (("labelled", LABELLED, {}), ("pairs", PAIRS, {"unpair": True})):
        prepared = run(rows, plain_tokenizer, objective="apo_zero_unpaired", **options)
        assert prepared.report.train_pairs == 12
        assert prepared.report.lines_read == len(rows)
        assert prepared.report.pairs_used == 12
        table = table_of(prepared)
        assert table.num_answers == 1
        assert table.labels.tolist() == [True, False] * 6
        found[name] = [answers for _, answers, _ in prepared.examples()]
        digest = examples_digest(prepared.folder, "train")
        assert digest == found.setdefault("digest", digest)
    assert found["labelled"] == found["pairs"]


def test_labels_decide_the_digest_of_the_data(run: Run, plain_tokenizer: Path) -> None:
    digests = []
    for labels in ([True, False] * 6, [False, True] * 6):
        rows = [{**row, "label": label} for row, label in zip(LABELLED, labels, strict=True)]
        digests.append(examples_digest(run(rows, plain_tokenizer, objective="bco").folder, "train"))
    assert digests[0] != digests[1]


def test_a_split_of_pairs_keeps_a_line_together_and_counts_lines(run: Run, plain_tokenizer: Path) -> None:
    rows: list[Any] = [{"prompt": f"q{i}:", "chosen": " a", "rejected": " b"} for i in range(100)]
    rows += [{"prompt": "x:", "chosen": " same", "rejected": " same"}, b"not json"]
    report = run(rows, plain_tokenizer, objective="bco", unpair=True, eval_fraction=0.2).report
    assert report.lines_read == 102
    assert report.train_pairs + report.eval_pairs == report.pairs_used == 200
    assert report.train_pairs % 2 == 0
    assert report.quarantined == {"malformed_json": 1, "identical_answers": 1}


BAD = {
    "not_a_label": [{"label": 2}, {"label": "yes"}, {"label": 0.5}],
    "missing_field": [{"label": None}, {"completion": None}, {"prompt": None}],
}


def test_bad_labels_are_left_out_with_their_reason(run: Run, plain_tokenizer: Path) -> None:
    good = [{"prompt": "p:", "completion": f" c{i}", "label": i % 2} for i in range(8)]
    bad = [{"prompt": "p:", "completion": " c", "label": True, **change} for rows in BAD.values() for change in rows]
    prepared = run([*good, *bad], plain_tokenizer, objective="bco")
    assert prepared.report.quarantined == {reason: len(rows) for reason, rows in BAD.items()}
    assert table_of(prepared).labels.tolist() == [False, True] * 4


def test_conversations_can_be_labelled(run: Run, chat_tokenizer: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"add {i}"}], "completion": [{"role": "assistant", "content": "four"}]}
        for i in range(3)
    ]
    labelled = [{**row, "label": bool(i)} for i, row in enumerate(rows)]
    assert detect(labelled) == "labelled"
    assert detect(rows) == "text"
    assert table_of(run(labelled, chat_tokenizer, objective="kto")).labels.tolist() == [False, True, True]


def test_files_that_do_not_fit_the_objective_are_refused(run: Run, plain_tokenizer: Path) -> None:
    with pytest.raises(DataError, match=r"holds pairs .* Set data.unpair: true"):
        run(PAIRS, plain_tokenizer, objective="kto")
    with pytest.raises(DataError, match="holds labelled answers already"):
        run(LABELLED, plain_tokenizer, objective="kto", unpair=True)
    unlabelled = [{"prompt": row["prompt"], "completion": row["completion"]} for row in LABELLED]
    assert run([*LABELLED, *unlabelled], plain_tokenizer, objective="bco").report.quarantined == {"missing_field": 12}


def test_pairs_are_not_made_of_labelled_answers_and_sft_leaves_undesirable_ones_out(
    run: Run, plain_tokenizer: Path
) -> None:
    with pytest.raises(DataError, match="rejected is missing"):
        run(LABELLED, plain_tokenizer, objective="dpo")
    prepared = run(LABELLED, plain_tokenizer, objective="sft", max_bad_fraction=0.0)
    assert (prepared.report.train_pairs, prepared.report.quarantined) == (6, {"undesirable": 6})


def test_the_balance_of_labels_is_told(plain_tokenizer: Path, tmp_path: Path) -> None:
    def warnings(labels: list[bool], objective: dict[str, Any]) -> list[str]:
        rows = [{"prompt": f"p{i}:", "completion": f" c{i}", "label": label} for i, label in enumerate(labels)]
        events: list[Event] = []
        config = config_of("kto", train=[str(write_jsonl(tmp_path / "rows.jsonl", rows))])
        config = config.model_copy(update={"objective": ObjectiveSection.model_validate(objective)})
        report = prepare(config, str(plain_tokenizer), tmp_path / "run" / "data", observer=events.append)
        assert report.desirable == sum(labels)
        return [event.text for event in events if isinstance(event, Note) and event.level == "warning"]

    assert warnings([True, False], {"name": "kto"}) == []
    assert warnings([True] * 4 + [False] * 3, {"name": "kto"}) == []
    (text,) = warnings([True] * 6 + [False] * 2, {"name": "kto"})
    assert "objective.desirable_weight: 0.333 would make it 1" in text
    assert warnings([True] * 6 + [False] * 2, {"name": "kto", "desirable_weight": 0.34}) == []
    assert warnings([True] * 6 + [False] * 2, {"name": "bco"}) == []
    (text,) = warnings([False, False], {"name": "bco"})
    assert "everything is pushed down" in text


# --- the answer to another prompt ------------------------------------------------------------------------------


def test_mismatched_rows_by_hand(run: Run, plain_tokenizer: Path) -> None:
    """Both answers of a prompt take the first answer of the next prompt; the last prompt takes that of the first."""
    prepared = run(LABELLED, plain_tokenizer, objective="kto")
    examples = prepared.examples()
    firsts = [answers[0] for _, answers, _ in examples]
    assert [answers[1] for _, answers, _ in examples] == [firsts[(2 * (i // 2) + 2) % 12] for i in range(12)]
    table = table_of(prepared)
    assert table.num_answers == 2
    assert table.labels.tolist() == [True, False] * 6
    for i, (prompt, answers, source) in enumerate(examples):
        assert table.row_keys(i) == [row_key(prompt, answer) for answer in answers]
        assert source.endswith(f"rows.jsonl:{i + 1}")


def test_an_added_row_changes_one_neighbour(run: Run, plain_tokenizer: Path) -> None:
    def keys(rows: list[Any]) -> set[str]:
        table = table_of(run(rows, plain_tokenizer, objective="kto"))
        return {key for example in range(len(table)) for key in table.row_keys(example)}

    before = keys(LABELLED)
    after = keys([*LABELLED[:4], {"prompt": "new:", "completion": " word", "label": True}, *LABELLED[4:]])
    assert len(before - after) == 1  # both answers of the prompt before it had the same mismatched row
    assert len(after - before) == 3  # it has another now, and there are the new row and its own


def test_a_mismatched_answer_is_cut_to_the_length_limit(run: Run, plain_tokenizer: Path) -> None:
    rows = [
        {"prompt": "a long prompt with many words in it:", "completion": " b", "label": True},
        {"prompt": "p:", "completion": " an answer of a good many words too", "label": False},
    ]
    whole = run(rows, plain_tokenizer, objective="kto").examples()
    limit = max(len(prompt) + len(answers[0]) for prompt, answers, _ in whole)
    cut = run(rows, plain_tokenizer, objective="kto", max_length=limit).examples()
    (prompt, (_, other), _), (_, (theirs, _), _) = cut
    assert other == theirs[: limit - len(prompt)]
    assert 0 < len(other) < len(theirs)


def test_one_prompt_alone_is_refused_for_kto_only(run: Run, plain_tokenizer: Path) -> None:
    rows = [{"prompt": "p:", "completion": f" c{i}", "label": True} for i in range(3)]
    assert run(rows, plain_tokenizer, objective="bco").report.train_pairs == 3
    with pytest.raises(DataError, match="all 3 examples have the same prompt"):
        run(rows, plain_tokenizer, objective="kto")


def test_a_preparation_with_mismatched_rows_is_used_again(plain_tokenizer: Path, tmp_path: Path, run: Run) -> None:
    prepared = run(LABELLED, plain_tokenizer, objective="kto")
    config = config_of("kto", train=[str(tmp_path / "rows.jsonl")], max_bad_fraction=1.0)
    assert prepare(config, str(plain_tokenizer), prepared.folder).reused
    other = config_of("bco", train=[str(tmp_path / "rows.jsonl")], max_bad_fraction=1.0)
    assert not prepare(other, str(plain_tokenizer), prepared.folder).reused


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_partners_are_the_next_with_another_prompt(prompts: list[int]) -> None:
    if len(set(prompts)) == 1:
        with pytest.raises(ValueError, match="the same"):
            partners(np.array(prompts))
        return
    found = partners(np.array(prompts)).tolist()
    for i, prompt in enumerate(prompts):
        circle = [(i + step) % len(prompts) for step in range(1, len(prompts) + 1)]
        assert found[i] == next(j for j in circle if prompts[j] != prompt)


# --- weights ---------------------------------------------------------------------------------------------------


def test_weights_come_from_a_column(run: Run, plain_tokenizer: Path) -> None:
    rows = [{**row, "meta": {"trust": 0.5 * i}} for i, row in enumerate(PAIRS)]
    bad = [{**PAIRS[0], "meta": {"trust": value}} for value in (-1, "much", float("inf"), None)]
    prepared = run([*rows, *bad], plain_tokenizer, weight_column="meta.trust")
    table = table_of(prepared)
    assert table.weights.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert table.is_weighted
    assert prepared.report.quarantined == {"missing_field": 1, "not_a_number": 2, "negative_weight": 1}
    assert not table_of(run(rows, plain_tokenizer)).is_weighted


def test_both_answers_of_a_pair_carry_its_weight(run: Run, plain_tokenizer: Path) -> None:
    rows = [{**row, "w": i} for i, row in enumerate(PAIRS)]
    table = table_of(run(rows, plain_tokenizer, objective="kto", unpair=True, weight_column="w"))
    assert table.weights.tolist() == [i for i in range(6) for _ in range(2)]
