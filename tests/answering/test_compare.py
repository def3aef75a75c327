"""`raydpo compare`: rates by hand, a judge that likes the first place, one that likes length, and two real models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from raydpo.answering.versus import Contest, compared, controlled_rate, judged
from raydpo.cli import main
from raydpo.config.round_sections import JudgeSection
from raydpo.errors import JudgeError
from raydpo.judge.verdict import Verdict
from tests.answering.test_answers import folders, prompts

__all__ = ["folders", "prompts"]


def verdicts(*scores: tuple[float, float]) -> list[Verdict]:
    return [Verdict(each) for each in scores]


def rows(*lengths: tuple[int, int]) -> list[tuple[str, list[str]]]:
    return [(f"p{n}", ["a" * ours, "b" * theirs]) for n, (ours, theirs) in enumerate(lengths)]


def found(*both: tuple[tuple[float, float], tuple[float, float]]) -> Contest:
    return compared(rows(*[(3, 3)] * len(both)), verdicts(*(a for a, _ in both)), verdicts(*(b for _, b in both)))


def test_both_orders_count_and_the_sign_is_the_first_models() -> None:
    assert found(((1, 0), (0, 1))).win_rate == 1
    assert found(((0, 1), (1, 0))).win_rate == 0
    assert found(((1, 1), (0, 0))).win_rate == 0.5
    mixed = found(((1, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 1), (1, 0)))
    assert mixed.win_rate == (1 + 0.75 + 0) / 3
    assert mixed.low < mixed.win_rate < mixed.high


def test_a_judge_that_likes_the_first_place_decides_nothing() -> None:
    same = found(*[((1.0, 0.0), (1.0, 0.0))] * 20)
    assert same.win_rate == 0.5
    assert same.first_place == 1
    assert found(((1, 0), (0, 1))).first_place == 0


def test_rows_that_were_not_judged_are_left_out_and_counted() -> None:
    told = compared(rows((3, 3), (3, 3)), [Verdict((1, 0)), Verdict(None, "no")], verdicts((0, 1), (1, 0)))
    assert (told.prompts, told.failed, told.win_rate) == (1, 1, 1.0)
    with pytest.raises(JudgeError, match=r"judged none of 1 prompts. First reasons: no"):
        compared(rows((3, 3)), [Verdict(None, "no")], verdicts((0, 1)))


def test_length_is_taken_out() -> None:
    chance = np.random.default_rng(1)
    gaps = chance.normal(80, 60, 4000)
    spread = gaps.std()
    wins = (chance.random(4000) < 1 / (1 + np.exp(-2 * np.tanh(gaps / spread)))).astype(float)
    assert wins.mean() > 0.75  # all of it by length
    assert abs(controlled_rate(wins, gaps) - 0.5) < 0.05
    better = (chance.random(4000) < 1 / (1 + np.exp(-1 - 2 * np.tanh(gaps / spread)))).astype(float)
    assert abs(controlled_rate(better, gaps) - 1 / (1 + math.exp(-1))) < 0.05
    assert controlled_rate(np.array([1.0, 0.0, 1.0]), np.zeros(3)) == pytest.approx(2 / 3)


def test_a_judge_of_a_config_is_asked_in_both_orders() -> None:
    section = JudgeSection(kind="regex", pattern="a+")
    here, turned = judged(section, rows((3, 3)))
    assert (here[0].scores, turned[0].scores) == ((1.0, 0.0), (0.0, 1.0))


def test_two_models(folders: list[Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = tmp_path / "judge.yaml"
    judge.write_text("judge: {kind: length, target_length: 1000}\n")
    words = [str(folders[0]), str(folders[1]), str(prompts), "--judge", str(judge), "--max-new-tokens", "5"]
    assert main(["compare", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    words[:2] = words[1::-1]
    assert main(["compare", *words, "--json"]) == 0
    turned = json.loads(capsys.readouterr().out)
    assert told["win_rate"] == pytest.approx(1 - turned["win_rate"])
    assert told["mean_length"] == turned["other_length"]
    assert told["prompts"] == 3
    assert main(["compare", *words]) == 0
    assert "at equal lengths" in capsys.readouterr().out


def test_a_file_without_a_judge_is_an_error(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "none.yaml").write_text("train: {epochs: 1}\n")
    assert main(["compare", "a", "b", str(prompts), "--judge", str(tmp_path / "none.yaml")]) == 2
    assert "has no section `judge`" in capsys.readouterr().err
