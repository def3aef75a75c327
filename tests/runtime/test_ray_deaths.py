"""What Ray says of the dead, as recorded from Ray 2.60, and what it is taken for. No Ray is started."""

from __future__ import annotations

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayError,
)

from raydpo.errors import Cause
from raydpo.runtime.ray_deaths import death_of

_HEAD = "The actor died unexpectedly before finishing this task.\n\tclass_name: RankActor\n\tactor_id: 3b\n\tpid: 7\n"
_NODE = "The actor died because its node has died. Node Id: 5f\n\tthe actor's node was "
_OWNER = (
    "The actor is dead because its owner has died. Owner Id: 01 Owner Ip address: 10.0.0.1 Owner worker exit type: "
    "SYSTEM_ERROR Worker exit detail: "
)
_WORKER = "The actor is dead because its worker process has died. Worker exit type: "
_MEMORY = (
    "Memory on the node (IP: 10.0.0.1, ID: 5f) was 30.1GB / 31.0GB (0.97), which exceeds the memory usage threshold of "
    "0.95. Ray killed this worker (ID: 2a) because it was the most recently scheduled task; the node was running low on "
    "memory."
)
_END_OF_FILE = (
    "SYSTEM_ERROR Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. There are some "
    "potential root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage."
)


def _actor(text: str, preempted: bool = False) -> RayActorError:
    return RayActorError("3b", _HEAD + text, preempted=preempted)


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (_actor("the flag alone tells", preempted=True), Cause.PREEMPTED, "preempted"),
        (_actor(_NODE + "preempted: Node was forcibly preempted"), Cause.PREEMPTED, "forcibly preempted"),
        (_actor(_NODE + "terminated expectedly: received SIGTERM"), Cause.PREEMPTED, "received SIGTERM"),
        (
            _actor(_NODE + "terminated unexpectedly: health check failed due to missing too many heartbeats"),
            Cause.NODE_DIED,
            "missing too many heartbeats",
        ),
        (
            NodeDiedError(
                "Task failed because the node it was running on is dead or unavailable. Node IP: 10.0.0.1. This can happen if "
                "the node was preempted, had a hardware failure, or its raylet crashed unexpectedly."
            ),
            Cause.NODE_DIED,
            "its node died",
        ),
        (OutOfMemoryError(_MEMORY), Cause.OUT_OF_HOST_MEMORY, "ran out of memory"),
        (_actor(_WORKER + "NODE_OUT_OF_MEMORY Worker exit detail: " + _MEMORY), Cause.OUT_OF_HOST_MEMORY, "ran out of"),
        (_actor(_OWNER + "Owner's node has crashed."), Cause.OWNER_DIED, "the raylet of the driver's own node is gone"),
        (LocalRayletDiedError(), Cause.OWNER_DIED, "the same command goes on"),
        (_actor(_WORKER + _END_OF_FILE), Cause.KILLED, "SIGKILL"),
        (_actor("The actor is dead because it was killed by `ray.kill`."), Cause.KILLED, "ray.kill"),
        (
            _actor(_WORKER + "INTENDED_SYSTEM_EXIT Worker exit detail: Worker exits with an exit code 15."),
            Cause.EXITED,
            "exit code 15",
        ),
        (ActorUnavailableError("RpcError: rpc_code: 14", None), Cause.UNREACHABLE, "rpc_code: 14"),
        (GetTimeoutError("Get timed out: some object(s) not ready."), Cause.HUNG, "did not answer in time"),
        (ActorDiedError(), Cause.UNKNOWN, "died unexpectedly"),
    ],
    ids=lambda value: value.name if isinstance(value, Cause) else None,
)
def test_texts_of_ray_become_causes(error: RayError, cause: Cause, words: str) -> None:
    death = death_of(error)
    assert death.cause is cause
    assert words in death.text
    assert "\n" not in death.text
    assert not death.text.endswith(".")
