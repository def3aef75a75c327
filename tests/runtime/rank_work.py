"""What the actors of these tests run: module-level functions, as the runtime asks for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError, DataError, IntegrityError
from raydpo.runtime import RankContext
from raydpo.schema.pulse import beat

AT_IMPORT = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")}
"""The environment at the moment a module that may import torch is imported."""
TORCH_AT_IMPORT = "torch" in sys.modules


def make_squarer() -> Callable[[int], int]:
    return lambda item: item * item


def make_onlooker(folder: str) -> Callable[[int], list[str]]:
    """Waits until there is a `go` in the folder, at most five minutes; says what it sees there."""

    def work(item: int) -> list[str]:
        deadline_s = time.monotonic() + 300
        while not (Path(folder) / "go").exists() and time.monotonic() < deadline_s:
            time.sleep(0.1)
        return sorted(path.name for path in Path(folder).iterdir() if path.name in ("seen", "go"))

    return work


def make_waiter(folder: str, num_others: int) -> Callable[[int], int]:
    """Item 0 waits until so many others have left their mark, at most five minutes; says who did an item."""

    def work(item: int) -> int:
        deadline_s = time.monotonic() + 300
        while item == 0 and len(list(Path(folder).iterdir())) < num_others and time.monotonic() < deadline_s:
            time.sleep(0.1)
        if item:
            (Path(folder) / str(item)).touch()
        return os.getpid()

    return work


def make_mortal(folder: str, deaths: int) -> Callable[[int], int]:
    """Item 3 kills its process (SIGKILL) the first `deaths` times; each completed item leaves a line."""

    def work(item: int) -> int:
        if item == 3:
            marks = len(list(Path(folder).glob("death-*")))
            if marks < deaths:
                (Path(folder) / f"death-{marks}").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        with open(Path(folder) / "done.txt", "a") as file:
            file.write(f"{item}\n")
        return item * 10

    return work


def make_raiser(kind: str, folder: str) -> Callable[[int], int]:
    def work(item: int) -> int:
        with open(Path(folder) / "tries.txt", "a") as file:
            file.write(f"{item}\n")
        if item == 2:
            if kind == "own":
                raise DataError(["first problem.", "second problem."])
            raise ZeroDivisionError("the item was two")
        return item

    return work


def make_sleeper(folder: str, num_naps: int) -> Callable[[str], str]:
    """ "nap" hangs in its first `num_naps` tries; "beat" says that it lives until the last try of "nap" has begun."""

    def work(item: str) -> str:
        mark = Path(folder) / f"{item}-{len(list(Path(folder).glob(f'{item}-*')))}"
        mark.touch()
        if item == "nap" and mark.name < f"nap-{num_naps}":
            take_a_very_long_nap()
        deadline_s = time.monotonic() + 300
        while item == "beat" and not (Path(folder) / f"nap-{num_naps}").exists() and time.monotonic() < deadline_s:
            beat()
            time.sleep(0.1)
        return item

    return work


def napping_factory() -> Callable[[str], str]:
    take_a_very_long_nap()
    return str


def make_pauser() -> Callable[[tuple[float, bool]], None]:
    """Sleeps twice so long, with a beat between if it is asked for one."""

    def work(item: tuple[float, bool]) -> None:
        pause_s, beats = item
        time.sleep(pause_s)
        if beats:
            beat()
        time.sleep(pause_s)

    return work


def broken_factory() -> Callable[[int], int]:
    raise ConfigError("model.path: no such folder.")


def dying_factory(folder: str) -> Callable[[int], int]:
    with open(Path(folder) / "starts.txt", "a") as file:
        file.write("x\n")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def make_unpicklable() -> Callable[[int], Any]:
    return lambda item: threading.Lock()


def add(left: int, right: int) -> int:
    return left + right


def sleep_holding_gil(seconds: float) -> int:
    """Compute without ever waiting."""
    end_s = time.monotonic() + seconds
    total = 0
    while time.monotonic() < end_s:
        total += sum(range(10000))
    return total


def count_up(context: RankContext, num_events: int) -> Iterator[tuple[int, int]]:
    for number in range(num_events):
        yield context.rank, number


def show_environment(context: RankContext) -> Iterator[dict[str, Any]]:
    yield {"context": context, "environment": dict(os.environ), "at_import": AT_IMPORT, "torch": TORCH_AT_IMPORT}


def take_a_very_long_nap() -> None:
    time.sleep(3600)


def fail_on_ranks(context: RankContext, ranks: tuple[int, ...], own: bool) -> Iterator[int]:
    yield context.rank
    if context.rank in ranks:
        raise IntegrityError("shard 7 is damaged.") if own else ValueError(f"rank {context.rank} saw a bad value")
    time.sleep(3600)


def lose_a_peer_then_hear_why(context: RankContext, pause_s: float) -> Iterator[int]:
    """Rank 0 loses rank 1, whose own error comes later."""
    yield context.rank
    if context.rank == 0:
        raise RuntimeError("Connection closed by peer")
    time.sleep(pause_s)
    raise ValueError("the cause")


def pause(context: RankContext, pause_s: float) -> Iterator[str]:
    yield "before"
    time.sleep(pause_s)
    yield "after"


def nap_on_rank(context: RankContext, rank: int) -> Iterator[int]:
    yield context.rank
    if context.rank == rank:
        take_a_very_long_nap()


def tell_pid_and_wait(context: RankContext, folder: str) -> Iterator[int]:
    (Path(folder) / f"pid-{context.rank}").write_text(str(os.getpid()))
    yield os.getpid()
    time.sleep(3600)


def make_keeper(folder: str) -> Callable[[Any], Any]:
    """Keeps the last value that it was told ("keep", value); answers other items with (its pid, value, item)."""
    kept: list[Any] = []

    def work(item: Any) -> Any:
        if isinstance(item, tuple) and item[0] == "keep":
            kept[:] = [item[1]]
        elif item == "die" and not (Path(folder) / "died").exists():
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return os.getpid(), kept[0] if kept else None, item

    return work


def count_and_mark(context: RankContext, folder: str, num_events: int) -> Iterator[int]:
    """Leaves a mark for each event before it is sent."""
    for number in range(num_events):
        (Path(folder) / f"made-{number}").touch()
        yield number


def start_a_child(context: RankContext, folder: str) -> Iterator[int]:
    """A process that a rank starts, and its own sleep."""
    child = subprocess.Popen(["sleep", "3600"])
    yield child.pid
    time.sleep(3600)


def make_speaker() -> Callable[[int], None]:
    """Says something and ends by a signal of that number, or with that exit code."""

    def work(how: int) -> None:
        print("the last words", flush=True)
        if how == 7:
            os._exit(7)
        os.kill(os.getpid(), how)

    return work


def make_interrupter() -> Callable[[int], None]:
    def work(item: int) -> None:
        raise KeyboardInterrupt

    return work


class Tally:
    """What ranks leave for their next function: how often one ran. Its end leaves a line in `path`."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0

    def close(self) -> None:
        with self.path.open("a") as file:
            file.write(f"{self.number}\n")


def count_runs(context: RankContext, folder: str, fails_at: int = 0) -> Iterator[tuple[int, int, str | None]]:
    """(process, runs of it so far, port at which ranks meet)."""
    assert context.kept is not None
    tally: Tally = context.kept.setdefault("tally", Tally(Path(folder) / f"ended-{context.rank}"))
    tally.number += 1
    yield os.getpid(), tally.number, os.environ.get("MASTER_PORT")
    if tally.number == fails_at:
        raise IntegrityError("shard 7 is damaged.")


def change_everything(context: RankContext) -> Iterator[dict[str, Any]]:
    """Changes what a process remembers, and says what it finds at each event."""
    import torch

    torch.manual_seed(11)
    torch.set_flush_denormal(True)
    for number in range(1, 4):
        os.environ["RAYDPO_TEST_STATE"] = str(number)
        yield {
            "threads": torch.get_num_threads(),
            "variable": os.environ["RAYDPO_TEST_STATE"],
            "flushes": float(torch.full((), 1e-39) * 1.0) == 0,
            "random": torch.rand(()).item(),
        }


def make_inspector() -> Callable[[str], Any]:
    """Says what a process has of the driver or of its siblings."""

    def look(what: str) -> Any:
        if what == "modules":
            return [name for name in ("torch", "numpy") if name in sys.modules]
        if what == "variable":
            return os.environ.get("RAYDPO_TEST_VARIABLE"), os.environ.get("CUDA_VISIBLE_DEVICES")
        if what == "descriptors":
            return sorted(
                os.readlink(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd") if _is_open(entry)
            )
        if what == "threads":
            import torch

            return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
        if what == "drawn":
            import random

            import numpy as np
            import torch

            return random.random(), float(np.random.random()), float(torch.rand(())), os.getpid()
        raise ValueError(what)

    return look


def _is_open(entry: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{entry}")
