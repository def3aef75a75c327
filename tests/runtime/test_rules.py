"""What needs no Ray: fitting demands, paths under a job, the verdict over several ranks, reading a stack."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raydpo.errors import Cause, ConfigError, DataError, HangError, ResourceError, WorkerError
from raydpo.runtime import stacks
from raydpo.runtime.failure import Death, Failure, failure_of
from raydpo.runtime.interface import interface_of, outward_variables
from raydpo.runtime.job import check_paths, in_ray_job
from raydpo.runtime.place import Place
from raydpo.runtime.placement import Placement
from raydpo.runtime.rank_failures import RankFailure, verdict
from raydpo.runtime.resources import Demand, Node, check_demands, count_fitting
from raydpo.runtime.spread import spread_of
from raydpo.runtime.stacks import innermost_frames

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def test_workers_are_fitted_node_by_node() -> None:
    nodes = [Node({"CPU": 3.0}), Node({"CPU": 3.0})]
    assert count_fitting(Demand("train", 3, 2.0), nodes) == 2
    with pytest.raises(ResourceError, match="room for 1 on any single node"):
        check_demands([Demand("train", 3, 2.0)], nodes)


def test_a_demand_that_fits_is_silent_and_all_that_do_not_are_listed() -> None:
    nodes = [Node({"CPU": 4.0, "GPU": 1.0})]
    check_demands([Demand("a", 4, 1.0), Demand("b", 1, 4.0, 1.0), Demand("c", 8, 0.5, 0.125)], nodes)
    with pytest.raises(ResourceError) as caught:
        check_demands([Demand("a", 5, 1.0), Demand("b", 1, 1.0), Demand("c", 1, 1.0, 2.0)], nodes)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["a", "c"]


def test_a_head_without_cpus_takes_no_worker() -> None:
    assert count_fitting(Demand("train", 2, 1.0), [Node({"memory": 1e9}), Node({"CPU": 2.0})]) == 2
    assert count_fitting(Demand("train", 2, 1.0), [Node({"memory": 1e9})]) == 0


@pytest.mark.parametrize(
    ("strategy", "room"),
    [("PACK", 5), ("SPREAD", 5), ("STRICT_PACK", 3), ("STRICT_SPREAD", 2)],
    ids=lambda value: str(value),
)
def test_a_strategy_decides_how_many_fit(strategy: Any, room: int) -> None:
    nodes = [Node({"CPU": 3.0}), Node({"CPU": 2.5}), Node({"CPU": 0.5})]
    demand = Demand("train", 6, 1.0, placement=Placement(strategy))
    assert count_fitting(demand, nodes) == room
    check_demands([replace(demand, workers=room)], nodes)
    with pytest.raises(ResourceError, match=f"enough for {room}"):
        check_demands([demand], nodes)


def test_parts_of_one_gpu_are_not_of_two() -> None:
    assert count_fitting(Demand("generate", 9, 0.0, 0.6), [Node({"GPU": 2.0})]) == 2
    assert count_fitting(Demand("generate", 9, 0.0, 0.25), [Node({"GPU": 2.0})]) == 8


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("spot", "b"), ("!spot", "ac"), ("in(spot, reserved)", "bc"), ("!in(spot,reserved)", "a"), ("reserved", "c")],
)
def test_labels_choose_nodes(wanted: str, found: str) -> None:
    labels: dict[str, dict[str, str]] = {"a": {}, "b": {"market": "spot"}, "c": {"market": "reserved"}}
    placement = Placement(label_selector={"market": wanted})
    assert "".join(name for name, those in labels.items() if placement.takes(those)) == found


def test_a_node_that_is_turned_away_is_none_of_the_others() -> None:
    nodes = [Node({"CPU": 2.0}, {"ray.io/node-id": name, "zone": "a"}) for name in ("one", "two", "three")]
    placement: Placement | None = Placement(label_selector={"zone": "a"})
    for name, left in (("two", 4), ("three", 2), ("one", 0)):
        assert placement is not None
        placement = placement.without(name)
        assert placement is not None
        assert count_fitting(Demand("reference", 9, 1.0, placement=placement), nodes) == left
    assert Placement(label_selector={"ray.io/node-id": "one"}).without("one") is None


def test_custom_resources_and_labels_are_named_when_they_lack() -> None:
    nodes = [Node({"CPU": 8.0, "nvme": 1.0}, {"zone": "a"}), Node({"CPU": 8.0}, {"zone": "b"})]
    check_demands([Demand("train", 1, 1.0, placement=Placement("PACK", {"nvme": 1.0}, {"zone": "a"}))], nodes)
    with pytest.raises(
        ResourceError, match=r"1 CPUs and 1 nvme each .* There: 8 CPUs and 0 nvme on the 1 of 2 nodes with "
    ):
        check_demands([Demand("train", 1, 1.0, placement=Placement("PACK", {"nvme": 1.0}, {"zone": "b"}))], nodes)


@given(st.integers(1, 40), st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 1.0, 1.5]))
def test_exactly_enough_is_enough(workers: int, cpus: float) -> None:
    check_demands([Demand("train", workers, cpus)], [Node({"CPU": workers * cpus})])
    with pytest.raises(ResourceError):
        check_demands([Demand("train", workers + 1, cpus)], [Node({"CPU": workers * cpus})])


def test_a_node_is_left_through_the_interface_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    loopback = interface_of("127.0.0.1")
    assert loopback in {name for _, name in socket.if_nameindex()}
    assert outward_variables("127.0.0.1") == {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": f"={loopback}"}
    assert interface_of("203.0.113.9") is None, "an address of documentation"
    assert outward_variables("203.0.113.9") == {}
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert outward_variables("127.0.0.1") == {"GLOO_SOCKET_IFNAME": loopback}, "what the node says stays"


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ("a", "1 on 1 node: 0 on host a"),
        ("aabb", "4 on 2 nodes: 0-1 on host a, 2-3 on host b"),
        ("aabcc", "5 on 3 nodes: 0-1 on host a, 2 on host b, 3-4 on host c"),
    ],
)
def test_the_spread_of_ranks_is_said_in_ranges(nodes: str, said: str) -> None:
    assert spread_of([Place(node, f"host {node}", pid) for pid, node in enumerate(nodes)]) == said


def test_relative_paths_are_refused_under_a_job_only(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"run.dir": "runs/first", "reference.cache_dir": "~/.cache/raydpo", "other": "/mnt/x", "last": "."}
    monkeypatch.delenv(JOB, raising=False)
    assert not in_ray_job()
    check_paths(paths)
    monkeypatch.setenv(JOB, "{}")
    assert in_ray_job()
    with pytest.raises(ConfigError) as caught:
        check_paths(paths)
    first, last = caught.value.problems
    assert first.startswith("run.dir: 'runs/first' is relative")
    assert "run.dir=/mnt/shared/first" in first
    assert last.startswith("last: ")


def test_asking_whether_this_is_a_job_does_not_import_ray() -> None:
    code = (
        "import sys; from raydpo.runtime import check_paths, in_ray_job; in_ray_job(); sys.exit('ray' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def _raised(rank: int, class_name: str, message: str) -> RankFailure:
    return RankFailure(rank, f"pid {rank} on h", Failure(class_name, message, f"trace of {rank}"))


def _lost(rank: int) -> RankFailure:
    return _raised(rank, "RuntimeError", "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")


def _died(rank: int, cause: Cause = Cause.KILLED) -> RankFailure:
    return RankFailure(rank, f"pid {rank} on h", Death(cause, "its process ended without an exception"))


def test_an_exception_comes_before_a_death_and_a_death_before_a_lost_peer() -> None:
    first_lines = [
        str(verdict("train", failures)).splitlines()[0]
        for failures in (
            [_lost(0), _died(2), _raised(1, "ValueError", "bad")],
            [_lost(0), _died(2)],
            [_lost(0)],
        )
    ]
    assert first_lines[0] == "train: rank 1 (pid 1 on h) raised ValueError: bad."
    assert first_lines[1] == "train: rank 2 (pid 2 on h) died: its process ended without an exception."
    assert first_lines[2].startswith("train: rank 0 (pid 0 on h) raised RuntimeError: [gloo")


@pytest.mark.parametrize(
    ("failures", "cause", "rank"),
    [
        ([_lost(0), _died(2), _raised(1, "ValueError", "bad")], Cause.RAISED, 1),
        ([_lost(0), _died(2, Cause.OUT_OF_HOST_MEMORY)], Cause.OUT_OF_HOST_MEMORY, 2),
        ([_lost(1), _lost(0)], Cause.UNREACHABLE, 0),
        ([_died(0, Cause.KILLED), _died(1, Cause.PREEMPTED)], Cause.PREEMPTED, 1),
        ([_raised(0, "ValueError", "bad"), _died(1, Cause.PREEMPTED)], Cause.PREEMPTED, 1),
    ],
    ids=["raised", "died", "lost", "two deaths", "raised beside a preemption"],
)
def test_the_error_says_by_a_value_what_happened_and_to_whom(
    failures: list[RankFailure], cause: Cause, rank: int
) -> None:
    error = verdict("train", failures)
    assert isinstance(error, WorkerError)
    assert (error.cause, error.rank) == (cause, rank)


def test_an_error_that_ranks_raised_gets_the_number_of_the_first() -> None:
    failures = [RankFailure(rank, "pid 0 on h", failure_of(HangError("no news."))) for rank in (3, 2)]
    error = verdict("train", failures)
    assert type(error) is HangError
    assert (error.cause, error.rank) == (Cause.HUNG, 2)


def test_every_cause_has_one_answer_of_what_to_do() -> None:
    assert {cause for cause in Cause if cause.is_user_error} == {Cause.RAISED}
    assert {cause for cause in Cause if cause.is_preemption} == {Cause.PREEMPTED}
    stop = {Cause.RAISED, Cause.DID_NOT_FIT, Cause.HUNG, Cause.OWNER_DIED, Cause.ENDED}
    assert {cause for cause in Cause if not cause.is_loss} == stop


def test_nothing_is_left_out() -> None:
    message = str(verdict("train", [_lost(0), _died(2), _raised(1, "ValueError", "bad")]))
    for rank in range(3):
        assert f"rank {rank} (pid {rank} on h)" in message
    assert message.endswith("trace of 1")


def test_equal_errors_share_a_sentence() -> None:
    message = str(verdict("train", [_raised(2, "OSError", "full"), _raised(0, "OSError", "full")]))
    assert message.splitlines()[0] == "train: ranks 0 (pid 0 on h), 2 (pid 2 on h) raised OSError: full."


def test_an_error_of_ours_stays_itself_unless_ranks_disagree() -> None:
    ours = RankFailure(0, "pid 0 on h", failure_of(DataError(["a.", "b."])))
    alone = verdict("train", [ours, _lost(1)])
    assert type(alone) is DataError
    assert alone.problems == ("a.", "b.")
    mixed = verdict("train", [ours, _raised(1, "ValueError", "bad")])
    assert type(mixed) is WorkerError
    assert "DataError: a." in str(mixed)


def test_a_user_error_that_mentions_a_peer_is_not_taken_for_a_lost_one() -> None:
    assert not _raised(0, "ValueError", "the peer review column is missing").is_collateral
    assert _lost(0).is_collateral


def test_an_exception_that_cannot_be_pickled_keeps_its_text() -> None:
    class Odd(WorkerError):
        def __init__(self, left: int, right: int) -> None:
            super().__init__(f"{left} {right}")

    failure = failure_of(Odd(1, 2))
    assert failure.error is None
    assert failure.summary == "Odd: 1 2"


def test_a_flight_recorder_is_asked_through_its_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As NCCL makes it: the prefix, a rank, .pipe. A pipe that nobody reads holds nobody up."""
    monkeypatch.setattr(stacks, "flight_pipe", lambda pid: f"{tmp_path}/{pid}-")
    monkeypatch.setattr(stacks, "_RECORD_S", 0.0)
    for name in ("7-0.pipe", "7-1.pipe", "8-0.pipe"):
        os.mkfifo(tmp_path / name)
    readers = {name: os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK) for name in ("7-0.pipe", "8-0.pipe")}
    try:
        stacks.ask_flight_recorder(7)
        assert [os.read(reader, 8) for reader in readers.values()] == [b"1", b""]
    finally:
        for reader in readers.values():
            os.close(reader)


def test_the_innermost_frames_are_those_of_the_main_thread() -> None:
    dump = (
        "Thread 0x1 (most recent call first):\n"
        '  File "/x/other.py", line 1 in other\n'
        "\n"
        "Current thread 0x2 (most recent call first):\n"
        '  File "/x/a.py", line 3 in sleep\n'
        '  File "/y/ray/_private/worker.py", line 9 in loop\n'
        '  File "/x/b.py", line 4 in step\n'
        "\n"
        "Thread 0x3 (most recent call first):\n"
        '  File "/x/c.py", line 5 in more\n'
    )
    assert innermost_frames(dump) == '  File "/x/a.py", line 3 in sleep\n  File "/x/b.py", line 4 in step'
    assert innermost_frames("nothing") == ""
