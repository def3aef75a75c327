"""The actors that a run asks the runtime for: a session with room for its roles, and the gang of trainer ranks.

Comes in: a workspace. Goes out: an open session, and what ranks yield. Decision: sizes are read from the config here and
nowhere else, so that what is checked at the start is what is asked for later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from raydpo import runtime
from raydpo.rundir.workspace import Workspace

T = TypeVar("T")


def ray_session(workspace: Workspace, *roles: str) -> AbstractContextManager[Any]:
    """Ray with enough for each of `roles` ("reference", "train"), which run one after the other."""
    demands = []
    for role in roles:
        section = getattr(workspace.config, role)
        demands.append(runtime.Demand(role, section.num_workers, section.cpus_per_worker, section.gpus_per_worker))
    return runtime.session(demands)


def trainer_ranks(
    workspace: Workspace,
    name: str,
    function: Callable[[runtime.RankContext], Iterator[T]],
    max_unread: int | None = None,
) -> Iterator[tuple[int, T]]:
    """Run `function` on the gang of ranks that `train` asks for: (rank, what it yields). Needs a Ray session."""
    train = workspace.config.train
    return runtime.run_gang(
        name,
        function,
        num_ranks=train.num_workers,
        cpus=train.cpus_per_worker,
        gpus=train.gpus_per_worker,
        hang_timeout_s=train.hang_timeout_s,
        max_unread=max_unread,
    )
