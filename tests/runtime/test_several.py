"""Workers with several items in work, on processes of this machine; what Ray adds is in test_pool.py."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from raydpo.errors import Stopped, WorkerError
from raydpo.runtime import Pool, run_pool, session
from raydpo.runtime.stops import deferred, watching
from tests.runtime.juggling import Juggler


@pytest.fixture(autouse=True)
def local() -> Iterator[None]:
    with session(kind="local"):
        yield


def steps(folder: Path) -> list[list[int]]:
    """The items in work at each step, in order."""
    return [[int(word) for word in line.split()[1:]] for line in (folder / "steps.txt").read_text().splitlines()]


@pytest.mark.parametrize("in_process", [True, False], ids=["here", "process"])
def test_a_slow_item_holds_nobody_up_and_the_worker_is_never_less_than_full(tmp_path: Path, in_process: bool) -> None:
    items = [12, 1, 3, 2, 1, 4, 2, 3]
    make = partial(Juggler, str(tmp_path), 3)
    found = list(run_pool("jugglers", make, items, num_workers=1, cpus=1, own_process=not in_process))
    assert [index for index, _ in found] == [1, 2, 3, 4, 6, 5, 7, 0]
    done = steps(tmp_path)
    assert len(done) == 12, "no step more than the longest item has"
    assert [len(each) for each in done] == [3] * 7 + [2] * 2 + [1] * 3


def test_workers_share_items_that_one_alone_had_room_for(tmp_path: Path) -> None:
    with closing(Pool("jugglers", partial(Juggler, str(tmp_path), 100), num_workers=2, cpus=1)) as pool:
        pool.start()
        found = dict(pool.run([50] * 8))
        told = pool.tell("hello")
    assert sorted(found) == list(range(8))
    assert set(found.values()) == {pid for _, pid in told}
    assert max(map(len, steps(tmp_path))) == 4, "never more than half of what is unfinished"
    assert {text for text, _ in told} == {"hello"}


def test_what_a_dead_worker_had_in_work_goes_to_others_and_what_it_finished_does_not(tmp_path: Path) -> None:
    """Item 2 kills at its fourth step of five; 0 and 1 are done by then, and 3 was in work beside it."""
    make = partial(Juggler, str(tmp_path), 3, 2, 1)
    found = list(run_pool("jugglers", make, [1, 2, 5, 9, 1], num_workers=1, cpus=1, own_process=True, max_retries=1))
    assert sorted(index for index, _ in found) == [0, 1, 2, 3, 4], "each once"
    done = steps(tmp_path)
    pids = [line.split()[0] for line in (tmp_path / "steps.txt").read_text().splitlines()]
    second = [each for each, pid in zip(done, pids, strict=True) if pid != pids[0]]
    assert len(set(pids)) == 2
    assert {item for each in second for item in each} == {2, 3}
    assert sum(3 in each for each in second) == 9, "what was in work began anew"


def test_an_item_that_kills_again_and_again_is_found_among_those_in_work(tmp_path: Path) -> None:
    make = partial(Juggler, str(tmp_path), 4, 2, 99)
    with pytest.raises(WorkerError) as caught:
        list(run_pool("jugglers", make, [30, 30, 9, 30], num_workers=1, cpus=1, own_process=True, max_retries=2))
    assert "item 2 of 4 (9)" in str(caught.value)
    assert "3 workers died of or hung over this item" in str(caught.value)
    assert len(list(tmp_path.glob("death-*"))) == 3


def test_a_retry_that_is_not_allowed_names_all_that_were_in_work(tmp_path: Path) -> None:
    make = partial(Juggler, str(tmp_path), 4, 2, 99)
    with pytest.raises(WorkerError, match=r"items 0, 1, 2, 3 of 4 died.*died of or hung over one of these items"):
        list(run_pool("jugglers", make, [30, 30, 9, 30], num_workers=1, cpus=1, own_process=True))


def test_an_exception_says_what_was_in_work(tmp_path: Path) -> None:
    make = partial(Juggler, str(tmp_path), 4)
    with pytest.raises(WorkerError, match=r"items 0, 1 of 3 raised ZeroDivisionError: an item of less"):
        list(run_pool("jugglers", make, [30, -1, 9], num_workers=1, cpus=1))


def stopped_after_one(folder: Path, found: list[int]) -> None:
    """A run of four items, of which two are in work at a time; it is asked to end when the first is done."""
    make = partial(Juggler, str(folder), 2)
    with watching(60.0), deferred():
        for index, _ in run_pool("jugglers", make, [1, 40, 40, 40], num_workers=1, cpus=1):
            if not found:
                signal.raise_signal(signal.SIGTERM)
            found.append(index)


def test_a_stop_finishes_what_is_in_work_and_hands_out_nothing_more(tmp_path: Path) -> None:
    found: list[int] = []
    with pytest.raises(Stopped):
        stopped_after_one(tmp_path, found)
    assert found == [0, 1, 2], "2 took the place of 0 before the signal came"
