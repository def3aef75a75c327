"""A connection to Ray for the length of a `with` block.

What comes in: the demands of all roles. What goes out: a connected process, or a ResourceError before any work starts.
With RAY_ADDRESS (every submitted job has it) the cluster there is used; without, a private Ray starts on this machine
and ends with the block. Its processes are tied to this one by the kernel: after a SIGKILL the actors are gone in
seconds, and two idle agents of Ray's, which hold nothing, within a minute.
Decision: a local Ray never joins one that happens to run on the machine, and carries a token of its own in the
environment of its processes: nothing is written to, nor needed from, the home folder. It listens on loopback alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import ray
from ray.exceptions import RayError

from raydpo.errors import ResourceError
from raydpo.runtime.import_path import LOCAL_CPUS_VARIABLE, import_path
from raydpo.runtime.ray_backend import RayBackend
from raydpo.runtime.ray_folders import leave_logs
from raydpo.runtime.stops import claim, handlers_kept

_LISTENER_TIMEOUT_S = 10.0
_START_ATTEMPTS = 4
_OBJECT_STORE_BYTES = 256 * 2**20
"""What travels between actors and driver are metrics and records of shards, not tensors."""
_DRIVER = {"RAY_timeout_ms_task_wait_for_death_info": "60000"}
"""An actor's connection breaks before Ray knows that it died, and of what. Ray itself waits a second for that news, too
little for a busy machine: the error would lack the cause."""


@contextmanager
def open_ray(local_cpus: int | None) -> Iterator[RayBackend]:
    """Connect to Ray and disconnect at the end. A process that is connected already stays so.

    local_cpus: CPUs that a local Ray declares, instead of those of the machine; ignored on a cluster.
    Raises ResourceError when no cluster answers at RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield RayBackend()
        return
    with handlers_kept():  # ray.init sets its own, below Python's too
        address = os.environ.get("RAY_ADDRESS", "")
        with _connected_to(address) if address not in ("", "local") else _started_locally(local_cpus):
            claim()
            yield RayBackend()


@contextmanager
def _connected_to(address: str) -> Iterator[None]:
    if "://" in address:
        raise ResourceError(
            f"RAY_ADDRESS is {address!r}, a Ray client address. raydpo's driver must be a process of the cluster: "
            "send it there with `ray job submit --working-dir . -- python -m raydpo train run.yaml`, or unset "
            "RAY_ADDRESS to run on this machine."
        )
    _require_listener(address)
    _forget_cached_token()
    with _environment(_DRIVER):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (RayError, RuntimeError, ConnectionError, ValueError) as error:
            ray.shutdown()
            raise ResourceError(f"RAY_ADDRESS is {address!r}, and {_refusal(error)}") from error
        _silence_ray()
        try:
            yield
        finally:
            ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray itself tries for minutes; whether anything listens at HOST:PORT is known at once."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_LISTENER_TIMEOUT_S).close()
    except OSError as error:
        raise ResourceError(
            f"RAY_ADDRESS is {address!r}, and nothing listens there ({error.strerror or error}). Start a cluster with "
            "`ray start --head`, or unset RAY_ADDRESS to run on this machine."
        ) from error


def _refusal(error: BaseException) -> str:
    """Why Ray did not let us in, from the whole chain of its exceptions."""
    texts = []
    link: BaseException | None = error
    while link is not None:
        texts.append(str(link))
        link = link.__cause__ or link.__context__
    if any("auth" in text.lower() and "token" in text.lower() for text in texts):
        return (
            "the cluster there wants a token that this process does not have. Set RAY_AUTH_MODE=token, and put the "
            "cluster's token into ~/.ray/auth_token or RAY_AUTH_TOKEN; or unset RAY_ADDRESS to run on this machine."
        )
    return (
        f"no Ray cluster let this process in there: {texts[0].splitlines()[0]}. Start one with `ray start --head`, or "
        "unset RAY_ADDRESS to run on this machine."
    )


@contextmanager
def _started_locally(local_cpus: int | None) -> Iterator[None]:
    declared = os.environ.get(LOCAL_CPUS_VARIABLE)
    num_cpus = local_cpus if local_cpus is not None else int(declared) if declared else None
    with _environment(_local_environment()), _on_loopback(), ExitStack() as after:
        _forget_cached_token()
        try:
            _start_with_patience(num_cpus)
            _silence_ray()
            folder = _session_folder()
            if folder is not None:
                after.push(partial(leave_logs, folder))
            yield
        finally:
            ray.shutdown()


def _start_with_patience(num_cpus: int | None) -> None:
    """Start the local Ray. It gives itself 30 s, too little for a machine that is busy with something else."""
    for attempts_left in reversed(range(_START_ATTEMPTS)):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_OBJECT_STORE_BYTES,
            )
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            if not attempts_left:
                raise ResourceError(
                    f"a local Ray did not start in {_START_ATTEMPTS} attempts of 30 s each; this machine is too busy. Nothing "
                    "was computed. Run the same command again when it is quieter."
                ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that starts inside listens on 127.0.0.1 alone: all of its processes bind to the node's address, or to every one
    unless that is loopback. Ray turns a loopback address that it is given into the machine's outer one, except where it
    supports no clusters."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _session_folder() -> Path | None:
    """Where the local Ray keeps its sockets and logs."""
    import ray._private.worker as ray_worker

    node = ray_worker._global_node
    return None if node is None else Path(node.get_session_dir_path())


def _local_environment() -> dict[str, str]:
    """What the processes of a local Ray inherit: its token, no usage reports, and the driver's import path."""
    # Ray would give its workers the lowest priority, below whatever else the machine does.
    variables = {
        **_DRIVER,
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the same for its processes as `_on_loopback` for this one
        "PYTHONPATH": os.pathsep.join(import_path()),
    }
    if "RAY_AUTH_MODE" not in os.environ:
        variables["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return variables


def _forget_cached_token() -> None:
    # Ray reads the token once a process; without this, a second session would go on with the first one's.
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()


def _silence_ray() -> None:
    # log_to_driver=False leaves Ray's own "(raylet) A worker died" on the screen; raydpo reports deaths itself.
    with suppress(ImportError, AttributeError):
        import ray._private.worker as ray_worker

        ray_worker._worker_logs_enabled = False


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set `variables` for the block, then put the whole environment back: Ray adds some of its own."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            if name in variables or name.startswith("RAY_") or name == "PYTHONBREAKPOINT":
                del os.environ[name]
        os.environ.update({name: before[name] for name in variables if name in before})
