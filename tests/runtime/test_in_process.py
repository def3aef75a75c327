"""One rank or worker of the local runtime is this process: breakpoints, errors, order, and what is put back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from raydpo.errors import DataError, IntegrityError, WorkerError
from raydpo.runtime import Gang, Pool, RankContext, run_gang, run_pool, session
from tests.runtime import rank_work

LONG_S = 600.0


@pytest.fixture(autouse=True)
def here() -> Iterator[None]:
    with session(kind="local"):
        yield


def test_a_worker_and_a_rank_are_this_process() -> None:
    make = partial(rank_work.make_keeper, "nowhere")
    assert {pid for pid, _, _ in dict(run_pool("here", make, range(3), num_workers=1, cpus=1)).values()} == {
        os.getpid()
    }
    (shown,) = dict(run_gang("here", rank_work.show_environment, num_ranks=1, cpus=2, hang_timeout_s=LONG_S)).values()
    assert shown["context"] == RankContext(0, 1, 0, 1, False)
    assert shown["environment"]["OMP_NUM_THREADS"] == "2"
    assert "MASTER_PORT" not in os.environ


def test_two_ranks_are_not() -> None:
    events = dict(run_gang("there", rank_work.show_environment, num_ranks=2, cpus=1, hang_timeout_s=LONG_S))
    assert {shown["environment"]["RANK"] for shown in events.values()} == {"0", "1"}


def test_work_that_leaves_traces_is_not() -> None:
    make = partial(rank_work.make_keeper, "nowhere")
    found = dict(run_pool("there", make, range(2), num_workers=1, cpus=1, own_process=True))
    assert os.getpid() not in {pid for pid, _, _ in found.values()}


def test_an_item_is_done_when_it_is_asked_for_and_not_before(tmp_path: Path) -> None:
    """What a driver does after a result, it has done before the next item begins: as with one actor, and no item ahead."""
    done = tmp_path / "done.txt"
    for index, _ in run_pool(
        "order", partial(rank_work.make_mortal, str(tmp_path), 0), range(4), num_workers=1, cpus=1
    ):
        assert done.read_text().split() == [str(number) for number in range(index + 1)]


def test_events_come_one_by_one(tmp_path: Path) -> None:
    function = partial(rank_work.count_and_mark, folder=str(tmp_path), num_events=4)
    for _, event in run_gang("order", function, num_ranks=1, cpus=1, hang_timeout_s=LONG_S):
        assert len(list(tmp_path.glob("made-*"))) == event + 1


def test_a_trace_function_reaches_the_rank() -> None:
    """A breakpoint is one: the debugger of this thread sees the frames of the rank."""
    seen: list[str] = []
    before = sys.gettrace()
    sys.settrace(lambda frame, event, _: seen.append(frame.f_code.co_name))  # type: ignore[func-returns-value]
    try:
        list(run_gang("traced", partial(rank_work.count_up, num_events=1), num_ranks=1, cpus=1, hang_timeout_s=LONG_S))
    finally:
        sys.settrace(before)
    assert "count_up" in seen


def test_errors_are_those_of_processes(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        list(run_pool("raising", partial(rank_work.make_raiser, "own", str(tmp_path)), range(4), num_workers=1, cpus=1))
    assert caught.value.problems == ("first problem.", "second problem.")
    with pytest.raises(WorkerError, match=r"raising worker 0 .*item 2 of 4.*ZeroDivisionError: the item was two"):
        list(run_pool("raising", partial(rank_work.make_raiser, "odd", str(tmp_path)), range(4), num_workers=1, cpus=1))
    function = partial(rank_work.fail_on_ranks, ranks=(0,), own=True)
    with pytest.raises(IntegrityError, match="shard 7"):
        list(run_gang("raising", function, num_ranks=1, cpus=1, hang_timeout_s=LONG_S))


def test_a_standing_worker_keeps_what_it_was_told() -> None:
    pool = Pool("keepers", partial(rank_work.make_keeper, "nowhere"), num_workers=1, cpus=1)
    pool.greet_with(("keep", 1))
    assert [value for _, value, _ in dict(pool.run(range(2))).values()] == [1, 1]
    assert len(pool.tell(("keep", 2))) == 1
    assert [value for _, value, _ in dict(pool.run(range(2))).values()] == [2, 2]
    pool.close()
    with pytest.raises(WorkerError, match="keepers: the actors were ended"):
        list(pool.run(range(2)))


def test_a_pool_tells_how_full_its_queue_is_and_at_last_that_it_is_empty() -> None:
    seen: list[tuple[int, int]] = []
    make = partial(rank_work.make_keeper, "nowhere")
    pool = Pool("keepers", make, num_workers=1, cpus=1, depth=lambda *numbers: seen.append(numbers))
    pool.greet_with(("keep", 1))
    for _ in range(2):
        seen.clear()
        assert len(dict(pool.run(range(3)))) == 3
        assert seen[-4:] == [(2, 1), (1, 1), (0, 1), (0, 0)]
    assert len(seen) == 4, "the worker was ready"
    pool.close()


def test_the_process_is_put_back_at_every_pause() -> None:
    """Environment, threads, random numbers and denormals are the actor's inside and this process's outside."""
    torch.manual_seed(5)
    threads, environment, state = torch.get_num_threads(), dict(os.environ), torch.get_rng_state()
    stream = run_gang("state", rank_work.change_everything, num_ranks=1, cpus=3, hang_timeout_s=LONG_S)
    inside = [next(stream)[1]]
    torch.rand(3)  # this process's own numbers are not the rank's
    moved = torch.get_rng_state()
    for _, event in stream:
        inside.append(event)
        assert torch.get_num_threads() == threads
        assert dict(os.environ) == environment
        assert torch.equal(torch.get_rng_state(), moved)
        assert float(torch.full((), 1e-39) * 1.0) != 0
    assert not torch.equal(state, moved)
    assert [event["threads"] for event in inside] == [3, 3, 3]
    assert [event["variable"] for event in inside] == ["1", "2", "3"]
    assert all(event["flushes"] for event in inside)
    torch.manual_seed(11)
    assert [event["random"] for event in inside] == [torch.rand(()).item() for _ in range(3)]


def test_a_hang_prints_where_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    list(run_gang("slow", partial(rank_work.pause, pause_s=3), num_ranks=1, cpus=1, hang_timeout_s=0.5))
    assert "in pause" in capfd.readouterr().err


@pytest.mark.parametrize("beats", [True, False])
def test_a_worker_that_hangs_prints_where_it_is_unless_it_beats(capfd: pytest.CaptureFixture[str], beats: bool) -> None:
    items = [(3.0 if beats else 1.5, beats)]
    list(run_pool("slow", rank_work.make_pauser, items, num_workers=1, cpus=1, hang_timeout_s=5 if beats else 0.5))
    assert ("in work" in capfd.readouterr().err) is not beats


def test_an_interrupt_is_the_drivers_own() -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run_pool("stopped", rank_work.make_interrupter, [1], num_workers=1, cpus=1))


def test_output_files_go_with_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with session(kind="local", in_process=False):
        assert dict(run_pool("s", rank_work.make_squarer, [3], num_workers=1, cpus=1)) == {0: 9}
        assert len(list(tmp_path.glob("raydpo-*/actor-*.log"))) == 1
    assert not list(tmp_path.glob("raydpo-*"))


def test_a_standing_rank_keeps_things_and_ends_them_with_the_gang(tmp_path: Path) -> None:
    gang = Gang("here", num_ranks=1, cpus=1, hang_timeout_s=LONG_S)
    function = partial(rank_work.count_runs, folder=str(tmp_path))
    told = [event for _ in range(3) for _, event in gang.run(function)]
    assert [(pid, number) for pid, number, _ in told] == [(os.getpid(), 1), (os.getpid(), 2), (os.getpid(), 3)]
    assert told[0][2] is not None
    assert "MASTER_PORT" not in os.environ
    assert not (tmp_path / "ended-0").exists()
    gang.close()
    gang.close()
    assert (tmp_path / "ended-0").read_text() == "3\n"


def test_what_a_rank_kept_ends_with_a_function_that_failed(tmp_path: Path) -> None:
    gang = Gang("here", num_ranks=1, cpus=1, hang_timeout_s=LONG_S)
    with pytest.raises(IntegrityError, match="shard 7"):
        list(gang.run(partial(rank_work.count_runs, folder=str(tmp_path), fails_at=1)))
    assert gang.is_closed
    assert (tmp_path / "ended-0").read_text() == "1\n"
