"""The real HH files: every line accounted for, and the pairs that are known to be broken found."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from raydpo.data import DataReport, prepare
from raydpo.data.tokenizer import TextTokenizer
from tests.data.conftest import Prepared, config_of

SHARED = Path(os.environ.get("RAYDPO_SHARED", Path(__file__).parents[3] / "shared"))
HH = SHARED / "data" / "hh-rlhf"
TOKENIZER = SHARED / "data" / "tokenizers" / "gpt-neox-20b"
FILES = {
    "helpful-base-test.jsonl.gz": (2354, {"empty_answer": 4, "identical_answers": 2, "differing_prompts": 9}),
    "helpful-online-test.jsonl.gz": (1137, {"bad_turn_order": 2, "empty_answer": 3, "identical_answers": 2}),
    "helpful-rejection-sampled-test.jsonl.gz": (2749, {"identical_answers": 32, "differing_prompts": 3}),
}

pytestmark = pytest.mark.skipif(
    not (HH.is_dir() and TOKENIZER.is_dir()), reason=f"the HH files and the gpt-neox tokenizer are not in {SHARED}"
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("hh") / "data"
    config = config_of(train=[str(HH / name) for name in FILES], eval_fraction=0.1)
    return Prepared(prepare(config, str(TOKENIZER), folder), folder)


@pytest.mark.slow
def test_every_line_of_all_three_files_is_accounted_for(prepared: Prepared) -> None:
    report: DataReport = prepared.report
    assert report.lines_read == sum(lines for lines, _ in FILES.values()) == 6240
    expected: dict[str, int] = {}
    for _, reasons in FILES.values():
        for reason, count in reasons.items():
            expected[reason] = expected.get(reason, 0) + count
    assert report.quarantined == expected
    assert report.pairs_used == 6240 - sum(expected.values()) == 6183
    assert set(report.formats.values()) == {"hh"}


def test_each_file_has_its_known_broken_pairs(prepared: Prepared) -> None:
    found: dict[str, dict[str, int]] = {}
    for entry in prepared.quarantine():
        reasons = found.setdefault(Path(entry["file"]).name, {})
        reasons[entry["reason"]] = reasons.get(entry["reason"], 0) + 1
    assert found == {name: reasons for name, (_, reasons) in FILES.items()}


def test_examples_spell_the_transcripts(prepared: Prepared) -> None:
    tokenizer = TextTokenizer(str(TOKENIZER))
    assert tokenizer.decode([tokenizer.eos_id or 0]) == "<|endoftext|>"
    transcripts = {}
    for name in FILES:
        with gzip.open(HH / name) as stream:
            for number, line in enumerate(stream, start=1):
                transcripts[f"{HH / name}:{number}"] = json.loads(line)
    examples = prepared.examples("train") + prepared.examples("eval")
    assert len(examples) == 6183
    for prompt_ids, answers, source in examples[::50]:
        row, prompt = transcripts[source], tokenizer.decode(prompt_ids)
        assert prompt.endswith("\n\nAssistant:")
        for side, ids in zip(("chosen", "rejected"), answers, strict=True):
            assert prompt + tokenizer.decode(ids) == row[side] + "<|endoftext|>"


def test_no_prompt_is_in_both_splits(prepared: Prepared) -> None:
    prompts = {split: {tuple(one) for one, _, _ in prepared.examples(split)} for split in ("train", "eval")}
    assert prompts["train"].isdisjoint(prompts["eval"])
    share = prepared.report.eval_pairs / prepared.report.pairs_used
    assert 0.07 < share < 0.13
