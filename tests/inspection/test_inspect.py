"""`raydpo inspect` on data that were made to be wrong in one way each, and on real pairs."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from raydpo.cli import main
from raydpo.inspection.look import Inspection, inspect
from raydpo.inspection.pair_facts import Proportion
from raydpo.quickstart.bpe import train_bpe

HH = Path(__file__).parents[3] / "shared/data/hh-rlhf"
WORDS = "oak elm ash fir bay yew box gum fig nut pea rye hop tea rue dill mint sage kale leek".split()  # noqa: SIM905


def sentence(chance: random.Random, num_words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(num_words))


def pairs(number: int = 400, **changes: Any) -> list[dict[str, Any]]:
    """Pairs that nothing is wrong with: equal lengths on average, other words, other prompts."""
    chance = random.Random(0)
    rows = []
    for index in range(number):
        chosen, rejected = (sentence(chance, chance.randint(5, 15)) for _ in range(2))
        rows.append({"prompt": f"question {index}", "chosen": chosen, "rejected": rejected})
    return rows


def looked(
    folder: Path, rows: list[dict[str, Any]], held_out: list[dict[str, Any]] | None = None, **more: Any
) -> Inspection:
    files = []
    for name, each in (("train", rows), ("eval", held_out)):
        files.append([] if each is None else [str(folder / f"{name}.jsonl")])
        if each is not None:
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    return inspect(*files, **more)


def said(found: Inspection) -> str:
    return "\n".join(each.text for each in found.advice)


def held_out() -> list[dict[str, Any]]:
    return [{**row, "prompt": f"held out {index}"} for index, row in enumerate(pairs(250))]


def test_good_pairs_get_no_warning(tmp_path: Path) -> None:
    found = looked(tmp_path, pairs(1200), held_out())
    assert [each.text for each in found.advice] == []
    assert (found.facts.pairs, found.facts.prompts, found.facts.eval_pairs) == (1200, 1200, 250)


def test_a_bias_to_length_has_its_sign(tmp_path: Path) -> None:
    longer = [{**row, "chosen": f"{row['chosen']} {row['chosen']} {row['chosen']}"} for row in pairs()]
    found = looked(tmp_path, longer, held_out())
    assert found.facts.longer_chosen.value > 0.9
    assert found.facts.length_difference > 0
    assert "the longer answer is the chosen one" in said(found)
    shorter = [{**row, "rejected": row["chosen"], "chosen": row["rejected"]} for row in longer]
    assert "the shorter answer is the chosen one" in said(looked(tmp_path, shorter, held_out()))


def test_answers_that_are_too_alike(tmp_path: Path) -> None:
    alike = [{**row, "chosen": f"{row['rejected']} {row['rejected']} yes"} for row in pairs()]
    assert "too alike" not in said(looked(tmp_path, alike))
    alike = [{**row, "chosen": f"{row['rejected']} yes"} for row in pairs() if len(row["rejected"].split()) > 9]
    found = looked(tmp_path, alike)
    assert found.facts.alike.value == 1
    assert "likelihood displacement" in said(found)


def test_noise_doubles_and_leaks_are_counted(tmp_path: Path) -> None:
    rows = pairs()
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:7]]
    found = looked(tmp_path, [*rows, *swapped, *rows[50:53]], [*held_out(), {**rows[9], "chosen": "other"}])
    assert found.facts.repeated == 3
    assert found.facts.contradicted == 14  # both members of each
    assert found.facts.eval_in_train == 1
    assert "labels are noisy" in said(found)
    assert "1 of 251 held-out pairs have a prompt that is trained on" in said(found)
    assert found.advice[0].level == "warning"


def test_long_pairs_are_measured_in_the_model_s_tokens(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    train_bpe([" ".join(WORDS)] * 3, 400, tokenizer)
    long = [{**row, "chosen": " ".join([row["chosen"]] * 120)} for row in pairs(20)]
    found = looked(tmp_path, long, model=str(tokenizer))
    assert found.unit == "tokens"
    assert found.facts.over_limit[256].count == 20
    text = next(each for each in found.advice if "default limit" in each.text)
    limit = int(text.keys[0].removeprefix("data.max_length="))
    assert found.facts.over_limit[limit].value <= 0.01 < found.facts.over_limit[limit // 2].value
    in_bytes = looked(tmp_path, long)
    assert in_bytes.unit == "bytes"
    assert in_bytes.facts.lengths["chosen"]["max"] == max(len(row["chosen"].encode()) for row in long) + 1  # and an end
    assert "default limit" not in said(in_bytes)


def test_left_out_lines_and_columns_that_are_not_read(tmp_path: Path) -> None:
    rows = [
        *pairs(100),
        {"prompt": "p", "chosen": "same", "rejected": "same"},
        {"prompt": "p", "chosen": "", "rejected": "x"},
    ]
    rows = [{**row, "origin": "there"} for row in rows]
    found = looked(tmp_path, rows)
    assert found.report.quarantined == {"empty_answer": 1, "identical_answers": 1}
    assert list(found.report.columns_not_read.values()) == [["origin"]]
    assert "2 of 102 lines (2.0%) are left out" in said(found)


def test_terminal_and_json_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    looked(tmp_path, pairs(30))
    file = str(tmp_path / "train.jsonl")
    assert main(["inspect", file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert "  lines 30, pairs 30, prompts 30, held out 0" in lines
    assert any("no held-out data" in line for line in lines)
    assert main(["inspect", file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["facts"]["pairs"] == 30
    share = told["facts"]["longer_chosen"]
    assert share["interval"][0] < share["share"] < share["interval"][1]


def test_data_that_are_not_there_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "no/such.jsonl"]) == 2
    assert "no/such.jsonl" in capsys.readouterr().err


def test_intervals_are_wilson_s() -> None:
    low, high = Proportion(8, 10).interval  # by hand: (0.8 + z2/20 -+ z sqrt(0.016 + z2/400)) / (1 + z2/10)
    assert math.isclose(low, 0.4901624715, rel_tol=1e-8)
    assert math.isclose(high, 0.9433178485, rel_tol=1e-8)
    assert Proportion(0, 0).interval == (0.0, 1.0)


@pytest.mark.skipif(not HH.is_dir(), reason="the HH-RLHF files lie beside the project, not in it")
def test_real_pairs() -> None:
    found = inspect([str(HH / "helpful-base-test.jsonl.gz")], [str(HH / "helpful-online-test.jsonl.gz")])
    assert found.report.lines_read == 2354 + 1137
    assert {"identical_answers", "empty_answer", "differing_prompts"} <= set(found.report.quarantined)
    assert found.facts.longer_chosen.interval[0] > 0.5
