"""Labelled answers, pairs split into them, the answer to another prompt, and weights from a column."""

from __future__ import annotations

import itertools
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
from raydpo.schema.events import Event, Note
from raydpo.schema.rows import row_key
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


def test_labels_of_any_type_are_seen(run: Run, plain_tokenizer: Path) -> None:
    """Columns that held a null come as floats; text is refused, not read as no label."""
    floats = [{**row, "label": float(row["label"])} for row in LABELLED]
    texts = [{**row, "label": "yes" if row["label"] else "no"} for row in LABELLED]
    for objective in ("bco", "sft", "nll"):
        assert run(floats, plain_tokenizer, objective=objective).report.train_pairs == (12 if objective == "bco" else 6)
        with pytest.raises(DataError, match="neither true nor false"):
            run(texts, plain_tokenizer, objective=objective, max_bad_fraction=0.1)


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
        assert report.desirable == {"train": sum(labels), "eval": 0}
        return [event.text for event in events if isinstance(event, Note) and event.level == "warning"]

    assert warnings([True, False], {"name": "kto"}) == []
    assert warnings([True] * 4 + [False] * 3, {"name": "kto"}) == []
    (text,) = warnings([True] * 6 + [False] * 2, {"name": "kto"})
    assert "objective.desirable_weight: 0.333 would make it 1" in text
    assert warnings([True] * 6 + [False] * 2, {"name": "kto", "desirable_weight": 0.34}) == []
    assert warnings([True] * 6 + [False] * 2, {"name": "bco"}) == []
    (text,) = warnings([False, False], {"name": "bco"})
    assert text == "train: all answers have one label; nothing is compared with them"


# --- the answer to another prompt ------------------------------------------------------------------------------


def test_mismatched_rows_by_hand(run: Run, plain_tokenizer: Path) -> None:
    """Both answers of a prompt take those of the next prompt, the first the first; the last prompt takes the first's."""
    prepared = run(LABELLED, plain_tokenizer, objective="kto")
    examples = prepared.examples()
    own = [answers[0] for _, answers, _ in examples]
    assert [answers[1] for _, answers, _ in examples] == own[2:] + own[:2]
    table = table_of(prepared)
    assert table.num_answers == 2
    assert table.labels.tolist() == [True, False] * 6
    for i, (prompt, answers, source) in enumerate(examples):
        assert table.row_keys(i) == [row_key(prompt, answer) for answer in answers]
        assert source.endswith(f"rows.jsonl:{i + 1}")


def test_an_added_row_changes_the_prompt_before_it(run: Run, plain_tokenizer: Path) -> None:
    def keys(rows: list[Any]) -> set[str]:
        table = table_of(run(rows, plain_tokenizer, objective="kto"))
        return {key for example in range(len(table)) for key in table.row_keys(example)}

    before = keys(LABELLED)
    after = keys([*LABELLED[:4], {"prompt": "new:", "completion": " word", "label": True}, *LABELLED[4:]])
    assert len(before - after) == 2  # the mismatched rows of the prompt before it
    assert len(after - before) == 3  # its one answer with that prompt, and the new row with its own


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


def test_one_prompt_alone_is_refused_for_kto_only(run: Run, plain_tokenizer: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "p:", "completion": f" c{i}", "label": i == 0} for i in range(3)]
    assert run(rows, plain_tokenizer, objective="bco").report.train_pairs == 3
    with pytest.raises(DataError, match=r"data\.train has a single prompt, and objective kto"):
        run(rows, plain_tokenizer, objective="kto")
    config = config_of("kto", train=[str(write_jsonl(tmp_path / "rows.jsonl", rows))])
    with pytest.raises(DataError, match="single prompt"):  # found without writing anything, too
        prepare(config, str(plain_tokenizer), tmp_path / "check" / "data", write=False)
    with pytest.raises(DataError, match=r"data\.eval_fraction = 1e-09, which holds out one prompt"):
        run(LABELLED, plain_tokenizer, objective="kto", eval_fraction=1e-9)


def test_a_preparation_with_mismatched_rows_is_used_again(plain_tokenizer: Path, tmp_path: Path, run: Run) -> None:
    prepared = run(LABELLED, plain_tokenizer, objective="kto")
    config = config_of("kto", train=[str(tmp_path / "rows.jsonl")], max_bad_fraction=1.0)
    assert prepare(config, str(plain_tokenizer), prepared.folder).reused
    other = config_of("bco", train=[str(tmp_path / "rows.jsonl")], max_bad_fraction=1.0)
    assert not prepare(other, str(plain_tokenizer), prepared.folder).reused


def runs_of(prompts: list[int]) -> list[list[int]]:
    return [list(group) for _, group in itertools.groupby(range(len(prompts)), key=lambda i: prompts[i])]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_partners_answer_the_next_prompt_and_all_its_answers_are_taken(prompts: list[int]) -> None:
    if len(set(prompts)) == 1:
        with pytest.raises(ValueError, match="the same"):
            partners(np.array(prompts))
        return
    found, groups = partners(np.array(prompts)).tolist(), runs_of(prompts)
    for number, group in enumerate(groups):
        circle = [groups[(number + step) % len(groups)] for step in (1, 2)]
        following = next(other for other in circle if prompts[other[0]] != prompts[group[0]])
        assert [found[i] for i in group] == [following[k % len(following)] for k in range(len(group))]


# --- weights ---------------------------------------------------------------------------------------------------


def test_weights_come_from_a_column(run: Run, plain_tokenizer: Path) -> None:
    rows = [{**row, "meta": {"trust": 0.5 * i}} for i, row in enumerate(PAIRS)]
    bad = [{**PAIRS[0], "meta": {"trust": value}} for value in (-1, "much", float("inf"), 1e300, None)]
    prepared = run([*rows, *bad], plain_tokenizer, weight_column="meta.trust")
    table = table_of(prepared)
    assert table.weights.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert table.is_weighted
    assert prepared.report.quarantined == {"missing_field": 1, "not_a_number": 3, "negative_weight": 1}
    assert not table_of(run(rows, plain_tokenizer)).is_weighted


def test_both_answers_of_a_pair_carry_its_weight(run: Run, plain_tokenizer: Path) -> None:
    rows = [{**row, "w": i} for i, row in enumerate(PAIRS)]
    table = table_of(run(rows, plain_tokenizer, objective="kto", unpair=True, weight_column="w"))
    assert table.weights.tolist() == [i for i in range(6) for _ in range(2)]
