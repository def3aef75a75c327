"""The process that forks the actors of a local session: `python -m raydpo.runtime.fork_server SOCKET [MODULE ...]`.

Comes in: modules to import once, and requests over a socket pair. Goes out: for each request a guard and, as its child, the
actor. Decision: the guard leads a session of its own and does nothing but wait: for the actor's end, which it tells the
driver, and for the end of a pipe that the driver holds open, upon which it kills the whole session. So the driver may die
in any way, and what the actor started goes along, even if the actor itself hangs in native code. The price is one small
process an actor. This process ends with the driver's end of the socket.
"""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from raydpo.runtime.bulk_import import import_modules
from raydpo.runtime.fork_request import ForkRequest, receive_request
from raydpo.runtime.local_actor import serve

_AT_IMPORT = {"OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""While modules are imported: no pool of threads and no CUDA context, neither of which survives a fork."""
_PR_SET_PDEATHSIG = 1
_GUARD = "guard"


def main() -> None:
    """Fork until the driver goes away. In an actor it serves."""
    driver = socket.socket(fileno=int(sys.argv[1]))
    driver.set_inheritable(False)
    _import(sys.argv[2:])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets guards that ended
    while (request := receive_request(driver)) is not None:
        if os.fork() == 0:
            driver.close()
            _leave_guard(request)
            _become_actor(request)
            serve(request.connection)  # never returns; what it raises ends the actor as it would end any program
        request.close()


def _import(modules: Sequence[str]) -> None:
    """As far as they can be; an actor that needs one that cannot says so itself."""
    before = {name: os.environ.get(name) for name in _AT_IMPORT}
    os.environ.update(_AT_IMPORT)
    import_modules(modules)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    sys.stdout.flush()  # else every fork would print it too
    gc.freeze()  # what is shared stays shared: no collection of an actor writes to it
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)


def _leave_guard(request: ForkRequest) -> None:
    """In a fork: fork the actor and become its guard. It returns in the actor only."""
    os.setsid()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    actor = os.fork()
    if actor == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in (woken, wake, request.life, request.status):
            os.close(descriptor)
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _name(_GUARD)
    os.close(request.connection)
    os.close(request.log)
    _tell(request.status, actor)
    _watch(actor, request, woken)
    os.killpg(0, signal.SIGKILL)


def _watch(actor: int, request: ForkRequest, woken: int) -> None:
    """Return when the driver lets go and the actor has ended; its exit code is told as soon as it is known."""
    is_wanted, is_alive = True, True
    while is_wanted or is_alive:
        ready, _, _ = select.select([request.life] * is_wanted + [woken] * is_alive, [], [])
        if request.life in ready:
            is_wanted = False
            if is_alive:
                os.kill(actor, signal.SIGKILL)
        if woken in ready:
            os.read(woken, 64)
            ended, status = os.waitpid(actor, os.WNOHANG)
            if ended:
                is_alive = False
                _tell(request.status, os.waitstatus_to_exitcode(status))


def _tell(status: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the driver is gone
        os.write(status, f"{number}\n".encode())


def _become_actor(request: ForkRequest) -> None:
    """What a fork must not share with its siblings, or with the server."""
    for stream in (1, 2):
        os.dup2(request.log, stream)
    os.close(request.log)
    os.environ["CUDA_VISIBLE_DEVICES"] = request.devices
    if "numpy.random" in sys.modules:  # Python's own generator is seeded at every fork
        sys.modules["numpy.random"].seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    _name(request.kind)
    if sys.platform == "linux":  # the kernel ends it with its guard
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _name(process: str) -> None:
    """For people who look at processes, where the kernel lets a process choose."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(process)


if __name__ == "__main__":
    main()
