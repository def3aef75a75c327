"""Ranks and nodes that are lost while a training runs: it goes on by itself, with the numbers of an undisturbed run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from raydpo.driver.healing import Budget
from raydpo.errors import Cause, WorkerError
from raydpo.pipelines import train
from tests.pipelines.deadly_schedule import VARIABLE
from tests.pipelines.toy import Notes, Toy, config, metrics, weights

TWO = {
    "train.num_workers": 2,
    "train.save_every": 2,
    "train.epochs": 5,
    "train.warmup_fraction": 0,
    "train.schedule": "tests.pipelines.deadly_schedule:constant",
    "train.hang_timeout_s": 300,
}


@pytest.fixture
def kills(tmp_path, monkeypatch):
    """A file that names the steps, from 0, at which rank 1 kills itself, each once."""
    file = tmp_path / "kills"
    monkeypatch.setenv(VARIABLE, str(file))
    return file


@pytest.fixture(scope="module")
def undisturbed(toy: Toy):
    train(config(toy, toy.root / "undisturbed-two", TWO))
    return toy.root / "undisturbed-two"


@pytest.mark.slow
def test_a_rank_that_dies_is_replaced_and_no_bit_changes(toy: Toy, tmp_path, undisturbed, kills):
    kills.write_text("3 14")  # far enough apart that something is committed between
    notes = Notes()
    train(config(toy, tmp_path / "run", TWO), notes)
    assert kills.read_text() == ""
    said = [text for text in notes.warning if "Going on after step" in text]
    assert len(said) == 2
    assert all("SIGKILL" in text and "(failure 1 of 3)" in text for text in said), said
    assert weights(tmp_path / "run/model") == weights(undisturbed / "model")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [line["step"] for line in metrics(undisturbed)]


@pytest.mark.slow
def test_a_step_that_dies_twice_ends_the_run_and_names_its_rows(toy: Toy, tmp_path, kills):
    kills.write_text("2 2")
    wanted = config(toy, tmp_path / "run", TWO | {"train.save_every": None})
    with pytest.raises(WorkerError, match=r"second time at step 3 without a checkpoint.*Its rows: .*train\.jsonl:\d+"):
        train(wanted)


def lost(cause: Cause = Cause.KILLED) -> WorkerError:
    return WorkerError("train: rank 1 died.", cause, 1)


def rows() -> str:
    return "a.jsonl:1"


def test_failures_have_a_budget_that_a_commit_fills_again():
    budget = Budget(2, None)
    assert budget.spend(lost(), 3, rows) == "failure 1 of 2"
    assert budget.spend(lost(Cause.NODE_DIED), 3, rows) == "failure 2 of 2"
    budget.refill()
    assert budget.spend(lost(), 3, rows) == "failure 1 of 2"
    assert budget.spend(lost(), 4, rows) == "failure 2 of 2"
    with pytest.raises(WorkerError, match=r"number 3 since the last commit, and train\.max_failures is 2"):
        budget.spend(lost(), 5, rows)


def test_a_rank_that_died_without_work_is_counted_and_no_step_is_to_blame():
    budget, idle = Budget(3, None), WorkerError("train: rank 1 died.", Cause.KILLED, 1, was_idle=True)
    assert budget.spend(idle, 1, rows) == "failure 1 of 3"
    assert budget.spend(lost(), 1, rows) == "failure 2 of 3"
    with pytest.raises(WorkerError, match="second time at step 1"):
        budget.spend(lost(), 1, rows)


def test_preemptions_have_their_own_and_may_meet_one_step_again():
    budget = Budget(0, None)
    for number in range(1, 5):
        assert budget.spend(lost(Cause.PREEMPTED), 3, rows) == f"preemption {number} of any number"
    with pytest.raises(WorkerError, match=r"train: rank 1 died\. The same command goes on"):
        budget.spend(lost(), 3, rows)
    strict = Budget(3, 1)
    strict.spend(lost(Cause.PREEMPTED), 3, rows)
    with pytest.raises(WorkerError, match=r"number 2 since the last commit, and train\.max_preemptions is 1"):
        strict.spend(lost(Cause.PREEMPTED), 3, rows)


@pytest.mark.parametrize("cause", [Cause.RAISED, Cause.HUNG, Cause.OWNER_DIED, Cause.ENDED, Cause.DID_NOT_FIT])
def test_what_another_try_would_not_change_is_raised_as_it_is(cause: Cause):
    error = lost(cause)
    with pytest.raises(WorkerError) as raised:
        Budget(3, None).spend(error, 1, rows)
    assert raised.value is error


def losses(run) -> dict[int, float]:
    return {int(line["step"]): line["loss"] for line in metrics(run) if "loss" in line}


def told(folder: Path) -> str:
    """Lets the story of nodes happen in `folder`, within ten minutes. Fails with what it printed."""
    command, output = [sys.executable, "-m", "tests.pipelines.node_story", str(folder)], folder / "output.txt"
    with output.open("w") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=file, timeout=600, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
    assert code == 0, f"the story ended with {code} (-1: it took more than 600 s):\n{output.read_text()}"
    return (folder / "notes.txt").read_text()


@pytest.mark.slow
@pytest.mark.ray
def test_a_node_goes_and_another_comes(tmp_path):
    """Two ranks, one, two again, one: the same examples in each step, the same numbers within the noise of float32.

    In a process of its own: one that has used Ray without a token cannot join a cluster that has one.
    """
    text = told(tmp_path)
    assert re.search(r"Going on after step \d+ \(failure 1 of 3\)", text), text
    assert "2 ranks from here on, 1 before" in text, text
    assert "a node is being taken away" in text, text
    assert text.count("1 ranks from here on, 2 before") == 2, text
    there, here = losses(tmp_path / "run"), losses(tmp_path / "alone")
    assert there.keys() == here.keys()
    assert max(abs(there[step] - here[step]) for step in there) < 1e-5
    changed = int(re.search(r"Going on after step (\d+)", text)[1]) + 1  # type: ignore[index]
    assert abs(there[changed] - here[changed]) < 1e-6
