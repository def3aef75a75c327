"""A gang of real Ray actors: streams, environment, failures, hangs, cleaning up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raydpo.errors import Cause, HangError, IntegrityError, WorkerError
from raydpo.runtime import Gang, RankContext, gang_run, ray_backend, run_gang, run_pool, session
from raydpo.runtime.sessions import current
from tests.runtime import rank_torch, rank_work

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

LONG_S = 600.0


def start(
    function: Callable[[RankContext], Iterator[Any]], num_ranks: int, *, cpus: float = 1, hang_timeout_s: float = LONG_S
) -> Generator[tuple[int, Any], None, None]:
    return run_gang("trainer", function, num_ranks=num_ranks, cpus=cpus, hang_timeout_s=hang_timeout_s)


def test_events_stream_in_the_order_of_each_rank() -> None:
    events = list(start(partial(rank_work.count_up, num_events=30), 3))
    for rank in range(3):
        assert [event for from_rank, event in events if from_rank == rank] == [(rank, number) for number in range(30)]


def test_places_that_no_node_has_any_more_are_a_loss_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_backend, "_ASK_S", 0.5)
    with pytest.raises(WorkerError, match="9 ranks were to start, and the nodes that are left have room for 8") as lost:
        list(start(partial(rank_work.count_up, num_events=1), 9))
    assert lost.value.cause is Cause.NODE_DIED
    assert lost.value.cause.is_loss


def test_events_arrive_while_the_rank_still_runs(tmp_path: Path) -> None:
    stream = start(partial(rank_work.tell_pid_and_wait, folder=str(tmp_path)), 1)
    rank, pid = next(stream)
    assert rank == 0
    assert _is_alive(pid)
    stream.close()
    _assert_ends(pid)


def test_the_environment_is_there_before_the_function_is_imported() -> None:
    events = start(rank_work.show_environment, 2, cpus=2)
    shown = dict(events)
    assert set(shown) == {0, 1}
    for rank, seen in shown.items():
        assert seen["context"] == RankContext(rank=rank, num_ranks=2, local_rank=rank, local_size=2, use_gpu=False)
        expected = {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "LOCAL_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "OMP_NUM_THREADS": "2",
            "DS_ACCELERATOR": "cpu",
            "TOKENIZERS_PARALLELISM": "false",
        }
        assert expected.items() <= seen["environment"].items()
        assert seen["at_import"]["RANK"] == str(rank)
        assert seen["at_import"]["OMP_NUM_THREADS"] == "2"
        assert not seen["torch"], "torch must not be in the process before its environment is"
    assert shown[0]["environment"]["MASTER_PORT"] == shown[1]["environment"]["MASTER_PORT"]


def test_ranks_find_each_other_with_torch_distributed() -> None:
    events = dict(start(rank_torch.sum_over_ranks, 2))
    assert events == {0: 3.0, 1: 3.0}


@pytest.mark.parametrize(
    ("how", "expected", "cause"),
    [
        ("raise", "ZeroDivisionError: division in the loss", Cause.RAISED),
        ("kill", "SIGKILL", Cause.KILLED),
    ],
    ids=["raise-ZeroDivisionError: division in the loss", "kill-SIGKILL"],
)
def test_the_rank_that_failed_is_named_not_the_one_that_lost_it(how: str, expected: str, cause: Cause) -> None:
    stream = start(partial(rank_torch.fail_in_collective, how=how), 2)
    with pytest.raises(WorkerError) as caught:
        list(stream)
    first_line = str(caught.value).splitlines()[0]
    assert first_line.startswith("trainer: rank 1 (pid ")
    assert expected in first_line
    assert not isinstance(caught.value, HangError)
    assert (caught.value.cause, caught.value.rank) == (cause, 1)


def test_the_cause_is_waited_for_while_a_lost_peer_is_all_that_is_known() -> None:
    with pytest.raises(WorkerError) as caught:
        list(start(partial(rank_work.lose_a_peer_then_hear_why, pause_s=6), 2))
    first, second, *_ = str(caught.value).splitlines()
    assert first.startswith("trainer: rank 1 (pid ")
    assert first.endswith("raised ValueError: the cause.")
    assert second.startswith("After that: trainer: rank 0 (pid ")


def test_one_rank_raising_kills_all() -> None:
    stream = start(partial(rank_work.fail_on_ranks, ranks=(1,), own=False), 3)
    with pytest.raises(WorkerError, match=r"rank 1 .*ValueError: rank 1 saw a bad value") as caught:
        list(stream)
    assert "Traceback of rank 1" in str(caught.value)
    assert "rank 0 (" not in str(caught.value), "the others did nothing wrong"


def test_an_error_of_ours_keeps_its_class_when_all_failing_ranks_raised_it() -> None:
    stream = start(partial(rank_work.fail_on_ranks, ranks=(0, 2), own=True), 3)
    with pytest.raises(IntegrityError, match="shard 7") as caught:
        list(stream)
    assert any("Raised in trainer by rank" in note for note in caught.value.__notes__)


def test_a_sleeping_rank_is_named_with_the_line_it_sleeps_in() -> None:
    stream = start(partial(rank_work.nap_on_rank, rank=1), 2, hang_timeout_s=20)
    with pytest.raises(HangError) as caught:
        list(stream)
    message = str(caught.value)
    assert message.startswith("trainer: rank 1 yielded nothing")
    assert (caught.value.cause, caught.value.rank) == (Cause.HUNG, 1)
    assert "take_a_very_long_nap" in message


def test_a_rank_that_waits_in_a_collective_is_not_the_one_behind() -> None:
    stream = start(partial(rank_torch.fail_in_collective, how="sleep"), 2, hang_timeout_s=30)
    with pytest.raises(HangError) as caught:
        list(stream)
    message = str(caught.value)
    assert message.startswith("trainer: rank 1 yielded nothing"), message
    assert "rank 0 only waited for them" in message


def test_a_driver_that_takes_its_time_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the deadline, by the clock that it looks at, while the rank is silent for a few seconds."""
    away_s = 0.0
    monkeypatch.setattr(gang_run, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + away_s))
    seen = []
    for _, event in start(partial(rank_work.pause, pause_s=6), 1, hang_timeout_s=LONG_S):
        away_s += 10 * LONG_S
        seen.append(event)
    assert seen == ["before", "after"]


def test_an_error_of_the_driver_ends_the_ranks(tmp_path: Path) -> None:
    function = partial(rank_work.tell_pid_and_wait, folder=str(tmp_path))
    pids = []

    def drive() -> None:
        for _, pid in start(function, 2):
            pids.append(pid)
            if len(pids) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive()
    for pid in pids:
        _assert_ends(pid)


def test_the_place_is_free_again_after_a_gang() -> None:
    for _ in range(3):
        events = list(start(partial(rank_work.count_up, num_events=1), 2, cpus=4))
        assert len(events) == 2


def _is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second one if it ends between the two
        return False


def _assert_ends(pid: int) -> None:
    deadline_s = time.monotonic() + 120
    while _is_alive(pid):
        assert time.monotonic() < deadline_s, f"process {pid} is still there"
        time.sleep(0.2)


def standing(num_ranks: int) -> Gang:
    return Gang("trainer", num_ranks=num_ranks, cpus=1, hang_timeout_s=LONG_S)


def test_a_gang_runs_one_function_after_the_other_in_the_same_processes(tmp_path: Path) -> None:
    """What a rank kept is there, the variables are set once, and each function has its own bound on unread events."""
    gang = standing(2)
    told = [dict(gang.run(partial(rank_work.count_runs, folder=str(tmp_path)), most)) for most in (None, 1, 3)]
    assert [[told[number][rank][1] for number in range(3)] for rank in (0, 1)] == [[1, 2, 3]] * 2
    assert len({events[0][0] for events in told}) == len({events[1][0] for events in told}) == 1
    assert len({port for events in told for _, _, port in events.values()}) == 1
    numbers = [event for rank, event in gang.run(partial(rank_work.count_up, num_events=9), 2) if rank == 1]
    assert numbers == [(1, number) for number in range(9)]
    gang.close()
    for pid, _, _ in told[0].values():
        _assert_ends(pid)


def test_a_function_that_fails_closes_the_gang(tmp_path: Path) -> None:
    gang = standing(2)
    pids = [pid for pid, _, _ in dict(gang.run(partial(rank_work.count_runs, folder=str(tmp_path)))).values()]
    with pytest.raises(IntegrityError, match="shard 7"):
        list(gang.run(partial(rank_work.count_runs, folder=str(tmp_path), fails_at=2)))
    assert gang.is_closed
    for pid in pids:
        _assert_ends(pid)


def test_a_function_that_is_left_in_the_middle_closes_the_gang(tmp_path: Path) -> None:
    gang = standing(1)
    stream = gang.run(partial(rank_work.tell_pid_and_wait, folder=str(tmp_path)))
    _, pid = next(stream)
    stream.close()
    assert gang.is_closed
    _assert_ends(pid)


def test_a_rank_that_died_idle_is_a_failure_of_the_next_function(tmp_path: Path) -> None:
    gang = standing(2)
    pids = {rank: pid for rank, (pid, _, _) in gang.run(partial(rank_work.count_runs, folder=str(tmp_path)))}
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"trainer: rank 1 \(pid .* died while it stood idle: .*SIGKILL") as lost:
        list(gang.run(partial(rank_work.count_runs, folder=str(tmp_path))))
    assert (lost.value.cause, lost.value.rank) == (Cause.KILLED, 1)
    assert gang.is_closed
    _assert_ends(pids[0])


def test_a_pool_works_on_the_cpus_of_a_gang_that_waits(tmp_path: Path) -> None:
    gang = Gang("trainer", num_ranks=2, cpus=4, hang_timeout_s=LONG_S)  # all that the machine has
    list(gang.run(partial(rank_work.count_up, num_events=1)))
    kind = current().kind
    with session(kind=kind, in_process=False, lends_cpus=True), session(kind=kind, in_process=False):
        assert dict(run_pool("reference", rank_work.make_squarer, [2, 3], num_workers=1, cpus=4)) == {0: 4, 1: 9}
    assert len(list(gang.run(partial(rank_work.count_up, num_events=1)))) == 2
    gang.close()
