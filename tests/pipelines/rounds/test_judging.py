"""Judges in actors: they stand until the end, and make room where others need what they hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raydpo.config.round_sections import JudgeSection
from raydpo.driver.judges import Judging
from raydpo.errors import WorkerError
from raydpo.generate.engine import EngineSpec


def whose(prompt: str, responses: list[str]) -> list[float]:
    """Scores by which a test knows the process that gave them."""
    return [float(os.getpid())] * len(responses)


def judge_of(tmp_path: Path, *, is_colocated: bool = True) -> Judging:
    section = JudgeSection(kind="function", function=f"{__name__}:whose")
    return Judging(None, section, EngineSpec(str(tmp_path)), is_colocated=is_colocated)


def pids(judging: Judging) -> set[tuple[float, ...] | None]:
    return {verdict.scores for _, verdicts in judging.verdicts([[("a", ["b"])]]) for verdict in verdicts}


def test_the_actors_of_a_judge_are_started_once(tmp_path: Path, processes: None) -> None:
    judging = judge_of(tmp_path)
    first, second = pids(judging), pids(judging)
    assert len(first) == 1
    assert first == second != {None}
    judging.stop()
    with pytest.raises(WorkerError, match="the actors were ended"):
        pids(judging)
    assert not judging._actors()._workers


@pytest.mark.parametrize("is_colocated", [True, False])
def test_a_judge_with_a_gpu_gives_it_back_where_trainers_need_it(
    tmp_path: Path, processes: None, is_colocated: bool
) -> None:
    """There is no GPU here: the judge only believes that it has one."""
    judging = judge_of(tmp_path, is_colocated=is_colocated)
    judging.needs_gpu = True
    first, second = pids(judging), pids(judging)
    assert (first == second) is not is_colocated
    judging.stop()


def test_a_judge_that_is_stopped_before_it_began_starts_nothing(tmp_path: Path, processes: None) -> None:
    judging = judge_of(tmp_path)
    judging.stop()
    with pytest.raises(WorkerError, match="the actors were ended"):
        pids(judging)
    assert not judging._actors()._workers
