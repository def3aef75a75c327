"""A pool of real Ray actors: results, sharing, deaths, errors."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import ray

from raydpo.errors import Cause, ConfigError, DataError, HangError, WorkerError
from raydpo.runtime import Pool, run_pool
from tests.runtime import rank_work
from tests.runtime.juggling import Juggler
from tests.runtime.single import run_single

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def test_every_item_comes_back_once_with_its_index() -> None:
    items = list(range(20))
    results = list(run_pool("squares", rank_work.make_squarer, items, num_workers=3, cpus=1))
    assert sorted(results) == [(index, index * index) for index in items]


def test_no_items_is_no_work_and_needs_no_actor() -> None:
    assert list(run_pool("none", rank_work.broken_factory, [], num_workers=2, cpus=1)) == []


def test_a_slow_item_does_not_hold_back_the_others(tmp_path: Path) -> None:
    """The first item takes until all others are done, which its own worker can do none of."""
    make = partial(rank_work.make_waiter, str(tmp_path), 11)
    pids = dict(run_pool("share", make, list(range(12)), num_workers=2, cpus=1))
    assert len(pids) == 12
    assert [item for item, pid in pids.items() if pid == pids[0]] == [0]


def test_fractions_of_a_cpu_are_enough() -> None:
    results = list(run_pool("halves", rank_work.make_squarer, [1, 2, 3], num_workers=3, cpus=0.5))
    assert sorted(results) == [(0, 1), (1, 4), (2, 9)]


def test_a_killed_worker_loses_nothing_and_nothing_comes_twice(tmp_path: Path) -> None:
    make = partial(rank_work.make_mortal, str(tmp_path), 2)
    results = list(run_pool("mortal", make, list(range(8)), num_workers=2, cpus=1, max_retries=2))
    assert sorted(results) == [(item, item * 10) for item in range(8)]
    assert sorted(map(int, (tmp_path / "done.txt").read_text().split())) == list(range(8))
    assert len(list(tmp_path.glob("death-*"))) == 2


def test_an_item_that_kills_every_worker_ends_the_run(tmp_path: Path) -> None:
    make = partial(rank_work.make_mortal, str(tmp_path), 99)
    with pytest.raises(WorkerError) as caught:
        list(run_pool("reference", make, list(range(8)), num_workers=2, cpus=1, max_retries=1))
    message = str(caught.value)
    assert "reference worker" in message
    assert "item 3 of 8 (3)" in message
    assert "pid" in message
    assert "SIGKILL" in message
    assert (caught.value.cause, caught.value.rank) == (Cause.KILLED, None)
    assert len(list(tmp_path.glob("death-*"))) == 2, "one retry: two deaths"


def test_a_worker_that_hangs_is_ended_and_its_item_goes_to_another_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one works for longer than the deadline, too, by construction, and lives: it beats."""
    results = list(
        run_pool(
            "reference",
            partial(rank_work.make_sleeper, str(tmp_path), 1),
            ["beat", "nap"],
            num_workers=2,
            cpus=1,
            max_retries=1,
            hang_timeout_s=10,
        )
    )
    assert sorted(results) == [(0, "beat"), (1, "nap")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beat-0", "nap-0", "nap-1"]
    (text,) = [record.getMessage() for record in caplog.records if "hung" in record.getMessage()]
    assert "item 1 of 2 ('nap') hung: it gave neither a result nor a sign of life" in text
    assert "retry 1 of 1" in text
    assert "take_a_very_long_nap" in text


@pytest.mark.parametrize("where", ["item", "factory"])
def test_a_hang_that_no_retry_is_left_for_names_worker_stack_and_key(tmp_path: Path, where: str) -> None:
    make = rank_work.napping_factory if where == "factory" else partial(rank_work.make_sleeper, str(tmp_path), 9)
    with pytest.raises(HangError) as caught:
        list(
            run_pool("judge", make, ["nap"], num_workers=1, cpus=1, hang_timeout_s=10, hang_key="judge.hang_timeout_s")
        )
    message = str(caught.value)
    assert message.startswith("judge worker 0 (pid ")
    assert ("item 0 of 1 ('nap')" if where == "item" else "before it took an item") in message
    assert "judge.hang_timeout_s: 10, to be raised if its work takes longer" in message
    assert "take_a_very_long_nap" in message.split("was at\n")[1]
    assert "pool_actor.py" in message, "from where it was called"
    assert caught.value.cause is Cause.HUNG


def test_an_item_that_killed_two_workers_is_tried_with_less_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first death may be anything; 3 is the item that kills, 23 what is made of it."""
    make = partial(rank_work.make_mortal, str(tmp_path), 99)
    results = run_pool("mortal", make, [3], num_workers=1, cpus=1, max_retries=2, lighter=lambda item: item + 20)
    assert list(results) == [(0, 230)]
    assert len(list(tmp_path.glob("death-*"))) == 2
    assert ["with less memory" in record.getMessage() for record in caplog.records] == [False, True]


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_an_exception_is_not_tried_again(tmp_path: Path, kind: str) -> None:
    make = partial(rank_work.make_raiser, kind, str(tmp_path))
    with pytest.raises((DataError, WorkerError)) as caught:
        list(run_pool("raising", make, list(range(4)), num_workers=1, cpus=1, max_retries=5))
    assert (tmp_path / "tries.txt").read_text().split().count("2") == 1
    if kind == "own":
        assert type(caught.value) is DataError
        assert caught.value.problems == ("first problem.", "second problem.")
    else:
        assert type(caught.value) is WorkerError
        assert "ZeroDivisionError: the item was two" in str(caught.value)
        assert "rank_work.py" in str(caught.value), "the traceback of the worker comes along"
        assert "item 2 of 4" in str(caught.value)


def test_an_exception_of_the_factory_passes_through() -> None:
    with pytest.raises(ConfigError, match=r"model\.path"):
        list(run_pool("broken", rank_work.broken_factory, [1], num_workers=1, cpus=1, max_retries=5))


def test_workers_that_die_at_their_start_are_not_started_for_ever(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="before it took an item"):
        list(run_pool("dying", partial(rank_work.dying_factory, str(tmp_path)), [1, 2], num_workers=1, cpus=1))
    assert len((tmp_path / "starts.txt").read_text().split()) == 1


def test_a_result_that_cannot_travel_is_an_error_not_a_death() -> None:
    with pytest.raises(WorkerError, match="pickle"):
        list(run_pool("files", rank_work.make_unpicklable, [1], num_workers=1, cpus=1, max_retries=5))


def test_one_item_on_one_actor() -> None:
    assert run_single("sum", rank_work.add, 2, 3, cpus=1) == 5


def test_an_error_names_the_type_that_was_raised() -> None:
    with pytest.raises(WorkerError, match="TypeError"):
        run_single("sum", rank_work.add, 2, "3", cpus=1)


def test_several_items_in_work_at_two_workers_of_which_one_dies(tmp_path: Path) -> None:
    """As on processes of this machine (test_several.py). Item 2 kills once, when another is in work beside it."""
    make = partial(Juggler, str(tmp_path), 3, 2, 1)
    found = list(run_pool("jugglers", make, [4, 1, 6, 9, 2, 3], num_workers=2, cpus=1, max_retries=1))
    assert sorted(index for index, _ in found) == list(range(6)), "each once"
    assert len({pid for _, pid in found}) >= 2
    in_work = [line.split()[1:] for line in (tmp_path / "steps.txt").read_text().splitlines()]
    assert max(map(len, in_work)) == 3, "as many as there is room for"
    assert len(list(tmp_path.glob("death-*"))) == 1


def _keepers(tmp_path: Path, **options: float) -> closing[Pool]:
    make = partial(rank_work.make_keeper, str(tmp_path))
    return closing(Pool("keepers", make, num_workers=2, max_retries=1, **{"cpus": 1, **options}))


def test_a_standing_pool_keeps_its_actors_and_what_they_were_told(tmp_path: Path) -> None:
    with _keepers(tmp_path) as pool:
        assert pool.tell(("keep", "nobody")) == [], "actors start with the first items"
        before = dict(pool.run(range(6)))
        told = pool.tell(("keep", 7))
        after = dict(pool.run(range(4)))
    assert {value for _, value, _ in before.values()} == {None}
    assert len(told) == 2
    assert [after[item][1:] for item in range(4)] == [(7, item) for item in range(4)]
    assert {pid for pid, _, _ in after.values()} <= {pid for pid, _, _ in told}
    assert {pid for pid, _, _ in before.values()} <= {pid for pid, _, _ in told}


def test_an_actor_that_comes_later_hears_the_greeting_first(tmp_path: Path) -> None:
    with _keepers(tmp_path) as pool:
        pool.greet_with(("keep", "first"))
        assert {value for _, value, _ in dict(pool.run(range(4))).values()} == {"first"}
        pool.tell(("keep", "second"))
        pool.greet_with(("keep", "second"))
        answers = dict(pool.run(["a", "die", "b", "c"]))
    assert [answers[index][1:] for index in range(4)] == [("second", item) for item in ("a", "die", "b", "c")]
    assert (tmp_path / "died").exists()


def test_an_actor_that_dies_over_a_message_is_replaced_when_there_is_work(tmp_path: Path) -> None:
    with _keepers(tmp_path) as pool:
        pool.start()
        assert len(pool.tell(("keep", "once"))) == 2
        pool.greet_with(("keep", "again"))
        assert len(pool.tell("die")) < 2
        answers = dict(pool.run(range(4)))
    assert {item for _, _, item in answers.values()} == set(range(4))


def test_deaths_of_actors_that_stood_idle_are_not_those_of_an_item(tmp_path: Path) -> None:
    """Two died where an item may lose one."""
    with _keepers(tmp_path) as pool:
        pool.start()
        for pid, _, _ in pool.tell(("keep", "both")):
            os.kill(pid, signal.SIGKILL)
        assert [item for _, _, item in dict(pool.run(range(1))).values()] == [0]


def test_actors_that_reserve_nothing_run_beside_those_that_hold_all(tmp_path: Path) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    with _keepers(tmp_path, cpus=0, threads=1) as pool:
        pool.start()
        assert dict(run_pool("all", rank_work.make_squarer, [3], num_workers=1, cpus=cpus)) == {0: 9}
        pids = [pid for pid, _, _ in pool.tell(("keep", "both"))]
        assert len(pids) == 2
        assert {pid for pid, _, _ in dict(pool.run(range(4))).values()} <= set(pids)


def test_a_closed_pool_starts_no_actor(tmp_path: Path) -> None:
    pool = Pool("keepers", partial(rank_work.make_keeper, str(tmp_path)), num_workers=2, cpus=1)
    pool.close()
    with pytest.raises(WorkerError, match="keepers: the actors were ended"):
        list(pool.run(range(4)))
    assert run_single("sum", rank_work.add, 2, 3, cpus=1) == 5  # what was asked for before is there by now
    deadline_s = time.monotonic() + 120
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline_s, "an actor holds its CPU"
        time.sleep(0.2)
