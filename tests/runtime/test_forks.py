"""Actors that are forks of one process: each is what a fresh process would be, and ends as one would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from raydpo.errors import WorkerError
from raydpo.runtime import run_pool, session
from tests.runtime import rank_work
from tests.runtime.test_gang import start

pytestmark = pytest.mark.slow

LIBRARIES = ("torch",)


@pytest.fixture(scope="module", autouse=True)
def processes() -> Iterator[None]:
    with session(kind="local", local_cpus=8, in_process=False):
        yield


def ask(what: str, preload: Sequence[str] = (), cpus: float = 1) -> Any:
    """What an actor of its own says."""
    (answer,) = run_pool("looker", rank_work.make_inspector, [what], num_workers=1, cpus=cpus, preload=preload)
    return answer[1]


def servers() -> list[psutil.Process]:
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if "raydpo.runtime.fork_server" in child.cmdline()]


def kill_servers() -> None:
    for server in servers():
        server.kill()
        server.wait(120)


def server_with_torch() -> int:
    (server,) = (each for each in servers() if "torch" in each.cmdline())
    return server.pid


def test_a_role_has_the_modules_that_it_named_and_no_other_has_them() -> None:
    assert ask("modules", LIBRARIES) == ["torch", "numpy"]
    assert ask("modules") == []


def test_two_actors_cost_one_import() -> None:
    ask("modules", LIBRARIES)
    before = server_with_torch()
    assert ask("modules", LIBRARIES) == ["torch", "numpy"]
    assert server_with_torch() == before


def test_threads_are_those_of_the_role_though_torch_was_there_before() -> None:
    assert ask("threads", LIBRARIES, cpus=3) == (3, "3")
    assert ask("threads", LIBRARIES, cpus=2) == (2, "2")
    assert ask("threads", (), cpus=2) == (2, "2")


def test_siblings_draw_different_numbers() -> None:
    """Of Python's, NumPy's and torch's generator, as processes do that nobody gave a seed."""
    libraries = ("torch", "numpy.random")
    first, second, fresh = ask("drawn", libraries), ask("drawn", libraries), ask("drawn")
    assert first[3] != second[3]
    for library in range(3):
        assert len({first[library], second[library], fresh[library]}) == 3


def test_a_variable_that_changes_between_two_actors_reaches_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYDPO_TEST_VARIABLE", "one")
    assert ask("variable", LIBRARIES) == ("one", "")
    monkeypatch.setenv("RAYDPO_TEST_VARIABLE", "two")
    assert ask("variable", LIBRARIES) == ("two", "")
    monkeypatch.delenv("RAYDPO_TEST_VARIABLE")
    assert ask("variable", LIBRARIES) == (None, "")
    assert len(servers()) == 1, "those of other environments are gone"


def test_an_actor_holds_nothing_of_its_guard_or_its_server() -> None:
    held = ask("descriptors")
    assert sum(name.startswith("socket:") for name in held) == 1, held
    assert not [name for name in held if name.startswith("pipe:")], held


def test_a_server_that_dies_is_replaced() -> None:
    ask("modules")
    kill_servers()
    assert ask("modules") == []


def test_a_server_that_dies_takes_no_actor_along() -> None:
    items = run_pool("long", rank_work.make_inspector, ["modules"] * 3, num_workers=1, cpus=1)
    assert next(items) == (0, [])
    kill_servers()
    assert dict(items) == {1: [], 2: []}


def test_an_actor_ends_with_its_guard(tmp_path: Path) -> None:
    """The kernel does that, so nobody stays who holds memory and cannot be ended."""
    stream = start(partial(rank_work.tell_pid_and_wait, folder=str(tmp_path)), 1)
    next(stream)
    actor = psutil.Process(int((tmp_path / "pid-0").read_text()))
    guard = actor.parent()
    assert guard is not None
    assert (actor.name(), guard.name()) == ("RankActor", "guard")
    guard.kill()
    with pytest.raises(WorkerError, match="killed by SIGKILL"):
        next(stream)
