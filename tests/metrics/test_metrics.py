"""Sums that are divided once, sinks that survive a kill, warnings that name a remedy, patience that ends."""

import json

import pytest

from raydpo.errors import ConfigError
from raydpo.metrics import METRICS, Patience, Sinks, Sums, Watch, best_direction, means


def test_means_are_of_sums_not_of_means():
    sums = Sums()
    sums.add({"loss": (10.0, 4)})
    sums.add({"loss": (1.0, 1), "rewards/margins": (3.0, 2)})
    names = ["grad_norm", "loss", "rewards/margins"]
    assert means(names, sums.vector(names), "eval/") == {"eval/loss": 11 / 5, "eval/rewards/margins": 1.5}


def test_directions():
    assert best_direction("eval/loss") == "lower"
    assert best_direction("eval/rewards/margins") == "higher"
    with pytest.raises(KeyError):
        best_direction("grad_norm")
    assert all(name == metric.name for name, metric in METRICS.items())


def test_a_resumed_file_reads_like_an_undisturbed_one(tmp_path):
    with Sinks(tmp_path) as sinks:
        for step in (1, 2, 3):
            sinks.write(step, {"loss": step / 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    with Sinks(tmp_path, resume_step=2) as sinks:
        sinks.write(3, {"loss": 0.3})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": s, "loss": s / 10} for s in (1, 2, 3)]


def test_tensorboard_reads_what_was_written(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Sinks(tmp_path) as sinks:
        sinks.write(1, {"eval/loss": 0.5, "rewards/margins": 1.25})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("rewards/margins")] == [(1, 1.25)]


class Failing:
    """Cannot be made for a run that goes on, nor written to after step 1; counts how often it was closed."""

    closed = 0

    def __init__(self, run_dir, resume_step):
        assert resume_step == 0, "it cannot go on"

    def write(self, step, metrics):
        if step > 1:
            raise ConnectionError("nobody answers")

    def close(self):
        Failing.closed += 1


def test_what_a_sink_of_another_package_raises_names_it(tmp_path):
    names, Failing.closed = ("jsonl", f"{__name__}:Failing"), 0
    with Sinks(tmp_path, 0, names) as sinks:
        sinks.write(1, {"loss": 1.0})
        with pytest.raises(ConfigError, match=r"train.sinks: .*:Failing raised ConnectionError: nobody answers"):
            sinks.write(2, {"loss": 0.5})
    assert Failing.closed == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(ConfigError, match=r"Failing raised AssertionError: it cannot go on"):
        Sinks(tmp_path, 1, names)


class Tracker(Failing):
    is_tracker = True

    def close(self):
        super().close()
        raise ConnectionError("nobody answers at the end, either")


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(tmp_path):
    names, Failing.closed, said = ("jsonl", f"{__name__}:Tracker"), 0, []
    with Sinks(tmp_path, 0, names, said.append) as sinks:
        for step in (1, 2, 3):
            sinks.write(step, {"loss": 1.0})
    assert len(said) == 1
    assert "Tracker raised ConnectionError: nobody answers" in said[0]
    assert "The run goes on without this tracker" in said[0]
    assert Failing.closed == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    with Sinks(tmp_path, 1, names, said.append) as sinks:
        sinks.write(2, {"loss": 0.5})
    assert "it cannot go on" in said[1]
    assert len(said) == 2


def feed(rows):
    watch = Watch()
    return [w for chosen, margin, ratio in rows for w in watch.observe(_metrics(chosen, margin, ratio))]


def _metrics(chosen, margin, ratio):
    return {"rewards/chosen": chosen, "rewards/margins": margin, "log_ratios/abs": ratio}


def test_each_warning_comes_once_and_names_a_remedy():
    falling = feed([(-0.1 * i, 0.1 * i, 1.0) for i in range(90)])
    flat = feed([(0.0, 0.001, 1.0)] * 90)
    runaway = feed([(0.0, 5.0 + i, 500.0) for i in range(90)])
    assert [len(x) for x in (falling, flat, runaway)] == [1, 1, 1]
    assert "objective.beta" in falling[0]
    assert "train.learning_rate" in flat[0]
    assert "runs away" in runaway[0]


def test_without_a_reference_there_is_no_log_ratio_and_no_advice_on_beta():
    watch = Watch()
    rows = [{"rewards/chosen": -0.1 * i, "rewards/margins": 0.1 * i} for i in range(90)]
    (falling,) = [text for row in rows for text in watch.observe(row)]
    assert "Lower train.learning_rate." in falling
    assert "beta" not in falling


def test_a_healthy_run_is_quiet():
    assert feed([(0.01 * i, 0.02 * i, 2.0) for i in range(90)]) == []
    assert Watch().observe({"loss": 1.0}) == []


def test_patience_counts_evaluations_without_a_better_one():
    patience = Patience(2)
    assert [patience.exhausted(m) for m in (0.0, 1.0, 0.5, 1.0)] == [False, False, False, True]
    assert not any(Patience(None).exhausted(0.0) for _ in range(9))
    assert Patience(2, [0.0, 1.0, 0.5]).exhausted(0.9)


def test_margins_in_nats_count_where_there_is_a_reference():
    """A tiny beta makes tiny rewards: 4 nats of margin are not flat."""
    rows = [{"rewards/chosen": 0.0, "rewards/margins": 4e-5 * i, "log_ratios/margins": 0.04 * i} for i in range(90)]
    moving, still = Watch(), Watch()
    assert not [text for row in rows for text in moving.observe(row)]
    flat = [text for row in rows for text in still.observe({**row, "log_ratios/margins": 0.05})]
    assert len(flat) == 1
    assert "log_ratios/margins" in flat[0]


def test_margins_of_single_answers_are_the_difference_of_two_means():
    sums = Sums()
    sums.add({"rewards/chosen": (3.0, 2), "rewards/rejected": (-1.0, 4), "log_ratios/chosen": (1.0, 1)})
    found = means(sorted(METRICS), sums.vector(sorted(METRICS)), "eval/")
    assert found["eval/rewards/margins"] == 1.5 + 0.25
    assert "eval/log_ratios/margins" not in found  # nobody counted the other side
