"""`python -P rounds_apart.py CONFIG OUT`: one run of rounds in a process of its own, looked at after every round.

Comes in: a config as JSON. Goes out: JSON of each round (seconds, CPU seconds, memory, files, processes, when stages began and
ended), the processes that were seen, tensors that passed the driver and the store, and the run's summary. Decision: it imports
raydpo and nothing of this folder, so that PYTHONPATH chooses the version that is measured. Processes are those below this one
in /proc, a tenth of a second apart: one that is seen once is told apart, because a process that forks to run a command is seen
twice under its own name until the command is there; one that lives for less may be missed.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

_OFTEN_S, _SELDOM_S = 0.1, 0.5
"""Between two looks at the processes. A look takes milliseconds of CPU."""
_TICKS = os.sysconf("SC_CLK_TCK")


def below(pid: int) -> Iterator[int]:
    """Processes that `pid` started, and theirs."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, task.read_text().split()):
                yield child
                yield from below(child)


class Processes:
    """Every process below this one that was seen while it is open: (pid, when it began) -> its name. every_s: between looks,
    beside those that are asked for."""

    def __init__(self, every_s: float) -> None:
        self.seen: dict[tuple[int, int], str] = {}
        self._looks = Counter[tuple[int, int]]()
        self._cpu_s: dict[tuple[int, int], float] = {}
        self._every_s, self._is_over, self._lock = every_s, threading.Event(), threading.Lock()

    def __enter__(self) -> Processes:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(self._every_s):
            with self._lock:
                self._look(is_on_time=True)

    def starts(self, *, is_brief: bool) -> Counter[str]:
        """By name, those that were seen once, or those that were seen again."""
        return Counter(name for key, name in self.seen.items() if (self._looks[key] < 2) == is_brief)

    def cpu_s(self) -> float:
        """Of all that were seen, those that ended as they were seen last: Ray does not count them with their parent."""
        with self._lock:
            self._look(is_on_time=False)
            return sum(self._cpu_s.values())

    def look(self) -> dict[int, str]:
        """Those that live: pid -> name."""
        with self._lock:
            return self._look(is_on_time=False)

    def _look(self, *, is_on_time: bool) -> dict[int, str]:
        """is_on_time: of those that are a while apart."""
        found = {}
        for pid in [os.getpid(), *below(os.getpid())]:
            with suppress(OSError, ValueError, IndexError):
                text = Path(f"/proc/{pid}/stat").read_text()
                name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
                key = pid, int(rest[19])
                self.seen[key] = found[pid] = name  # the last name counts: actors name themselves
                self._looks[key] += is_on_time
                self._cpu_s[key] = (int(rest[11]) + int(rest[12])) / _TICKS
        return found


class TensorBytes(pickle.Pickler):
    """Counts the bytes of tensors in whatever is dumped."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO())
        self.total = 0

    def persistent_id(self, value: Any) -> str | None:
        import torch

        if isinstance(value, torch.Tensor):
            self.total += value.nbytes
            return "tensor"
        return None


def count_tensors() -> dict[str, TensorBytes]:
    """driver: of what ranks tell the driver. store: of what is shared with actors, on either runtime."""
    from raydpo.driver.train_events import Driver
    from raydpo.runtime.in_process import InProcess
    from raydpo.runtime.local_processes import LocalProcesses
    from raydpo.runtime.ray_backend import RayActors

    found = {"driver": TensorBytes(), "store": TensorBytes()}

    def watch(kind: type, method: str, tensors: TensorBytes) -> None:
        original = getattr(kind, method)

        def counted(self: Any, value: Any) -> Any:
            tensors.dump(value)
            return original(self, value)

        setattr(kind, method, counted)

    watch(Driver, "handle", found["driver"])
    for kind in (InProcess, LocalProcesses, RayActors):
        watch(kind, "share", found["store"])
    return found


def memory_bytes(pid: int) -> tuple[int, int]:
    """RSS of a process, and what of it is anonymous."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "RssAnon"))}
    return int(fields["VmRSS"]) * 1024, int(fields["RssAnon"]) * 1024


def kind_of(descriptor: Path) -> str:
    """What an open file of this process is: its path without digits."""
    with suppress(OSError):
        return "".join(letter for letter in os.readlink(descriptor) if not letter.isdigit())
    return "closed"


def state(processes: Processes, run_dir: Path) -> dict[str, Any]:
    """Of this moment: clocks, what each process holds, and files."""
    living = processes.look()
    held = []
    for pid, name in living.items():
        with suppress(OSError, KeyError):
            rss, anonymous = memory_bytes(pid)
            files = len(os.listdir(f"/proc/{pid}/fd"))
            held.append({"pid": pid, "name": name, "rss": rss, "anonymous": anonymous, "files": files})
    return {
        "at_s": time.monotonic(),
        "cpu_s": processes.cpu_s(),
        "processes": held,
        "own_files": Counter(kind_of(path) for path in Path("/proc/self/fd").iterdir()),
        "num_shared_files": len(list(Path("/dev/shm").glob("raydpo*"))),
        "num_run_files": sum(1 for path in run_dir.rglob("*") if path.relative_to(run_dir).parts[0] not in _KEPT),
    }


_KEPT = ("rounds", "log")
"""What a run keeps of each round: its pieces, and a record of each commit."""


def main() -> None:
    raw, out = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    import raydpo
    from raydpo.config import Config

    is_counting = raw.pop("counts")
    counts = count_tensors() if is_counting else {}
    config, run_dir = Config.model_validate(raw), Path(raw["run"]["dir"])
    processes = Processes(_OFTEN_S if is_counting else _SELDOM_S)
    events: list[dict[str, Any]] = []

    def observe(event: Any) -> None:
        said = {name: getattr(event, name, "") for name in ("stage", "text", "done")}
        events.append({"kind": type(event).__name__, **said, "at_s": time.monotonic(), "cpu_s": processes.cpu_s()})

    with processes:
        states = [state(processes, run_dir)]
        for _ in raydpo.iterate(config, observer=observe):
            states.append(state(processes, run_dir))
    found = {
        "package": str(Path(raydpo.__file__).parent),
        "states": states,
        "starts": processes.starts(is_brief=False),
        "seen_once": processes.starts(is_brief=True),
        "tensor_bytes": {name: each.total for name, each in counts.items()},
        "events": events,
        "summary": json.loads((run_dir / "summary.json").read_text()),
    }
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
