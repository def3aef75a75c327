"""SIGTERM and Ctrl-C: what is in work is brought to its boundary and committed; the same command ends with the same bytes."""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from raydpo.config.render import dump
from raydpo.errors import Stopped
from raydpo.pipelines import evaluate, precompute, train
from raydpo.runtime import deferred, has_grace, watching
from raydpo.schema.events import Advanced, Event, StageStarted
from tests.pipelines import driver
from tests.pipelines.conftest import Finished
from tests.pipelines.toy import Notes, Toy, committed_shards, config, everything_in, weights


class Signal(Notes):
    """An observer that sends this process a signal when `moment` holds, `times` times."""

    def __init__(self, moment: Callable[[Event], bool], signum: int = signal.SIGTERM, times: int = 1) -> None:
        super().__init__()
        self.moment, self.signum, self.times, self.at_step = moment, signum, times, 0

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Advanced) and event.stage == "train":
            self.at_step = event.done
        if self.times and self.moment(event):
            sent, self.times = self.times, 0
            for _ in range(sent):
                os.kill(os.getpid(), self.signum)


def at_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, Advanced) and event.stage == "train" and event.done == step


def in_first_evaluation(event: Event) -> bool:
    return isinstance(event, StageStarted) and event.stage == "train"


def checkpoints(run) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def without_steps(toy: Toy, run, **changes):
    """No checkpoint by steps, so that every one is that of the signal or the last."""
    return config(toy, run, {"train.save_every": None, **changes})


@pytest.fixture(scope="module")
def undisturbed(toy: Toy) -> bytes:
    train(config(toy, toy.root / "never-stopped"))
    return weights(toy.root / "never-stopped/model")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_commits_its_next_step_and_goes_on(toy: Toy, tmp_path, undisturbed, signum, ranks):
    wanted = without_steps(toy, tmp_path / "run", **{"train.num_workers": ranks})
    before = signal.getsignal(signum)
    notes = Signal(at_step(2), signum)
    with pytest.raises(Stopped) as stopped:
        train(wanted, notes)
    assert signal.getsignal(signum) is before
    assert stopped.value.exit_code == {signal.SIGTERM: 143, signal.SIGINT: 130}[signum]
    assert [text for text in notes.warning if "saving at the next step boundary" in text]
    (name,) = checkpoints(tmp_path / "run")
    step = int(name.removeprefix("step-"))
    assert 2 <= step < 4
    assert str(stopped.value).endswith(f"Step {step} is committed.")
    notes = Notes()
    summary = train(wanted, notes)
    assert summary["train"]["resumed_from_step"] == step
    if ranks == 1:
        assert weights(tmp_path / "run/model") == undisturbed


def test_a_second_signal_ends_at_once(toy: Toy, tmp_path):
    with pytest.raises(Stopped, match="No step was committed yet"):
        train(without_steps(toy, tmp_path / "run"), Signal(at_step(2), times=2))
    assert not (tmp_path / "run/checkpoints").exists() or not checkpoints(tmp_path / "run")


def stop_in_block(committed: str, then: Callable[[], object], grace_s: float) -> None:
    """A signal inside a block that goes on with `then`."""
    told = threading.Event()
    with watching(grace_s), deferred(told.set, lambda: committed):
        os.kill(os.getpid(), signal.SIGTERM)
        assert told.is_set()
        then()


def test_what_takes_longer_than_the_grace_ends_at_once():
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM\. Nothing yet\.$"):
        stop_in_block("Nothing yet.", lambda: threading.Event().wait(driver.PATIENCE_S), 0.1)


def test_outside_a_block_that_saves_a_signal_ends_at_once(toy: Toy, tmp_path):
    with pytest.raises(Stopped):
        train(without_steps(toy, tmp_path / "run"), Signal(in_first_evaluation))


def test_other_threads_have_grace_until_the_second_signal():
    seen = []

    def end_twice() -> None:
        seen.append(has_grace())
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            seen.append(has_grace())

    with pytest.raises(Stopped):
        stop_in_block("Nothing yet.", end_twice, 60)
    assert seen == [True, False]
    assert not has_grace()


def swallow_a_stop() -> None:
    with watching(0.1, lambda: "Nothing yet."):
        with suppress(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        threading.Event().wait(driver.PATIENCE_S)


def test_a_stop_that_somebody_swallows_comes_again():
    """Code of others may catch everything: a model's hook, a judge, a finaliser."""
    with pytest.raises(Stopped, match="Nothing yet"):
        swallow_a_stop()


def test_an_evaluation_ends_at_once_and_keeps_nothing(toy: Toy, tmp_path, finished: Finished):
    wanted = config(toy, tmp_path / "run", {"evaluate.model": str(finished.dir / "model")})
    with pytest.raises(Stopped, match="An evaluation commits nothing before its end") as stopped:
        evaluate(wanted, Signal(lambda event: isinstance(event, Advanced) and event.stage == "evaluate"))
    assert stopped.value.exit_code == 143
    assert not (tmp_path / "run/evaluate.json").exists()
    assert evaluate(wanted)["eval"]["last"] == pytest.approx(finished.summary["eval"]["last"], abs=1e-5)


def test_a_failure_after_the_signal_is_the_stop():
    """A launcher that signals every process kills ranks too."""
    with pytest.raises(Stopped, match="Step 3"):
        stop_in_block("Step 3 is committed.", lambda: 1 / 0, 60)


def test_precompute_finishes_the_shards_in_work(toy: Toy, tmp_path):
    settings = {"reference.rows_per_shard": 16}
    wanted = config(toy, tmp_path / "run", {"reference.cache_dir": str(tmp_path / "cache"), **settings})
    with pytest.raises(Stopped, match=r"rows were scored and committed") as stopped:
        precompute(wanted, Signal(lambda event: isinstance(event, Advanced) and event.stage == "reference"))
    assert stopped.value.exit_code == 143
    kept = len(committed_shards(tmp_path / "cache"))
    assert kept >= 1
    whole = precompute(
        config(toy, tmp_path / "other", {"reference.cache_dir": str(tmp_path / "other-cache"), **settings})
    )
    rest = precompute(wanted)
    assert rest["reference"]["rows_scored"] == whole["reference"]["rows_scored"] - 16 * kept


@pytest.mark.slow
@pytest.mark.ray
def test_a_command_on_ray_whose_whole_process_group_is_signalled(toy: Toy, tmp_path, undisturbed):
    """As a scheduler does it: driver and ranks get SIGTERM at the same moment."""
    run, log = tmp_path / "run", tmp_path / "log"
    wanted = config(toy, run, {"run.runtime": "ray", "train.epochs": 200, "train.save_every": None})
    (tmp_path / "run.yaml").write_text(dump(wanted))
    child = driver.start("train", str(tmp_path / "run.yaml"), log=log)
    driver.wait_until(
        lambda: (run / "metrics.jsonl").exists() and "loss" in (run / "metrics.jsonl").read_text(), child, log
    )
    for pid, _ in driver.descendants(child.pid):
        if "RankActor" in driver.title(pid):
            os.kill(pid, signal.SIGTERM)
    child.send_signal(signal.SIGTERM)
    assert child.wait(driver.PATIENCE_S) == 143, log.read_text()
    text = log.read_text()
    assert "stopped by SIGTERM. Step" in text
    assert "The same command goes on" in text
    assert "*** SIGTERM received" not in text
    assert not [name for name in everything_in(run) if ".staging" in name]
    (name,) = checkpoints(run)
    assert int(name.removeprefix("step-")) >= 1
