"""Actors on Ray. Only the modules `ray_*` import it.

What comes in: classes and calls. What goes out: what Ray's actors answer, or how they died (`ray_deaths`).
Decision: an actor is never restarted by Ray, because what it loaded would be gone without a word; pools start others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from raydpo.errors import Cause, ResourceError, WorkerError
from raydpo.runtime.backend import ActorDied, Actors, CallFailed, Kind
from raydpo.runtime.failure import Death
from raydpo.runtime.interface import outward_variables
from raydpo.runtime.patience import NodePatience
from raydpo.runtime.place import Place
from raydpo.runtime.ray_deaths import death_of
from raydpo.runtime.ray_gauges import set_gauge
from raydpo.runtime.ray_storage import check_ray_storage, unseen_on
from raydpo.runtime.resources import Demand, Node, amounts, count_fitting
from raydpo.runtime.shared_gpus import SEAT_GPUS, Seat
from raydpo.runtime.silence import read_silence_s
from raydpo.runtime.stacks import Stacks, gather, read_stack

_STACKS_TIMEOUT_S = 120.0
_EVENT_TIMEOUT_S = 300.0
"""Longest way of an event from its node, once it is there."""
_ASK_S = 5.0
"""Between two looks at the nodes and at the clock, while ranks wait for their places."""


class RayBackend:
    """The open connection to Ray."""

    kind: Kind = "ray"
    in_process = False

    def __init__(self) -> None:
        self._shared: tuple[PlacementGroup, int] | None = None

    def nodes(self) -> list[Node]:
        leaving = self.leaving()
        there = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
        return [Node(node["Resources"], node.get("Labels") or {}) for node in there]

    def leaving(self) -> frozenset[str]:
        with suppress(ImportError, AttributeError, RayError):
            from ray._private.state import state

            return frozenset(state.get_draining_nodes())
        return frozenset()

    @contextmanager
    def wish(self, demand: Demand) -> Iterator[None]:
        group = _group(demand)  # one that waits is what an autoscaler looks at
        try:
            yield
        finally:
            with suppress(RayError):
                remove_placement_group(group)

    def actors(self, num_actors: int, *, own_process: bool, preload: Sequence[str] = ()) -> Actors:
        return RayActors(self._shared)

    @contextmanager
    def gpus_shared(self, num_gpus: int) -> Iterator[None]:
        if not num_gpus:
            yield
            return
        demand = Demand("shared GPUs", num_gpus, 0, 1.0)
        places = RayActors().reserve(demand, NodePatience())
        self._shared = (places[0][0], num_gpus)
        try:
            yield
        finally:
            self._shared = None
            RayActors().release(places)

    def show(self, name: str, help_text: str, value: float, labels: dict[str, str]) -> None:
        set_gauge(name, help_text, value, labels)

    def check_storage(self, folder: Path) -> frozenset[str]:
        return check_ray_storage(folder, self.leaving())

    def unseen_on(self, node_id: str, folder: Path) -> str:
        return unseen_on(node_id, folder)


def _group(demand: Demand) -> PlacementGroup:
    """A placement group for all workers of `demand`. Ray removes it when this process is gone."""
    placement = demand.placement
    selectors = [dict(placement.label_selector)] * demand.workers if placement.label_selector else None
    return placement_group([demand.each] * demand.workers, strategy=placement.strategy, bundle_label_selector=selectors)


class RayActors:
    """See `raydpo.runtime.backend.Actors`. A place is a bundle of a placement group."""

    is_shared = False
    hint = "the logs of Ray on that node have its last output"

    def __init__(self, shared: tuple[PlacementGroup, int] | None = None) -> None:
        """shared: the group of all roles, and its bundles."""
        self._shared = shared

    def seat(self, demand: Demand, number: int) -> Any:
        if self._shared is None or demand.gpus != 1:
            return None
        group, num_gpus = self._shared
        return Seat(group, number % num_gpus)

    def reserve(self, demand: Demand, patience: NodePatience) -> Sequence[Any]:
        if self._shared is not None and demand.gpus == 1:
            return [self.seat(demand, number) for number in range(demand.workers)]
        group = _group(demand)
        try:
            self._wait_for_places(group, demand, patience)
        except BaseException:
            self.release([(group, 0)])
            raise
        return [(group, index) for index in range(demand.workers)]

    def _wait_for_places(self, group: PlacementGroup, demand: Demand, patience: NodePatience) -> None:
        """Raises WorkerError as soon as a node is lost without which they never fit, unless others may come: with fewer ranks
        they may. ResourceError when it is too late."""
        waiting = patience.for_places()
        while not group.wait(timeout_seconds=_ASK_S):
            fits = count_fitting(demand, RayBackend().nodes())
            if fits < demand.workers and not patience.wait_s:
                raise WorkerError(
                    f"{demand.role}: {demand.workers} ranks were to start, and the nodes that are left have room for {fits}: "
                    "others were lost or are being taken away.",
                    Cause.NODE_DIED,
                )
            if not waiting.goes_on(
                lambda: f"{demand.role}: waiting for places; free in the cluster now: {self.free()}"
            ):
                raise ResourceError(
                    f"{demand.role}: {demand.workers} ranks with {amounts(demand.each)} each found no "
                    f"place within {waiting.waited_s:.0f} s. Free in the cluster now: {self.free()}. Other jobs hold the "
                    "rest. Wait for them, or lower what each rank takes."
                )

    def release(self, places: Sequence[Any]) -> None:
        for place in places:
            if isinstance(place, tuple) and place[1] == 0:  # seats are the whole run's
                with suppress(RayError):
                    remove_placement_group(place[0])

    def start(self, kind: type, demand: Demand, place: Any = None) -> Any:
        placement = demand.placement
        options: dict[str, Any] = {
            "num_cpus": demand.cpus,
            "num_gpus": demand.gpus,
            "resources": dict(placement.resources),
        }
        if place is not None:
            group, index = (place.group, place.index) if isinstance(place, Seat) else place
            if isinstance(place, Seat):
                options |= {"num_cpus": 0, "num_gpus": SEAT_GPUS}
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
        else:
            is_free = not (demand.cpus or demand.gpus)  # Ray would put all that reserve nothing on one node
            options["scheduling_strategy"] = "SPREAD" if placement.strategy == "SPREAD" or is_free else "DEFAULT"
            options["label_selector"] = dict(placement.label_selector) or None
        return ray.remote(max_restarts=0, max_task_retries=0, **options)(kind).remote()

    def call(self, actor: Any, method: str, *arguments: Any, hang_timeout_s: float | None = None) -> Any:
        return getattr(actor, method).remote(*arguments)

    def stream(self, actor: Any, method: str, *arguments: Any, max_unread: int | None, hang_timeout_s: float) -> Any:
        options: dict[str, Any] = {"num_returns": "streaming"}
        if max_unread is not None:
            options |= {"_generator_backpressure_num_objects": max_unread}
        return getattr(actor, method).options(**options).remote(*arguments)

    def share(self, value: Any) -> Any:
        return ray.put(value)

    def wait(self, pending: Sequence[Any], timeout_s: float) -> list[Any]:
        ready, _ = ray.wait(list(pending), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        return list(ready)

    def result(self, call: Any, timeout_s: float | None = None) -> Any:
        try:
            return ray.get(call, timeout=timeout_s)
        except RayTaskError as error:
            raise CallFailed(str(error)) from error
        except RayError as error:
            raise ActorDied(death_of(error)) from error

    def next_event(self, stream: Any) -> Any:
        try:
            return ray.get(next(stream), timeout=_EVENT_TIMEOUT_S)
        except GetTimeoutError as error:
            text = f"an event of it did not arrive within {_EVENT_TIMEOUT_S:.0f} s; its node may be lost"
            raise ActorDied(Death(Cause.UNREACHABLE, text)) from error
        except RayError as error:
            raise ActorDied(death_of(error)) from error

    def kill(self, actor: Any) -> None:
        with suppress(Exception):
            ray.kill(actor, no_restart=True)

    @staticmethod
    def locate() -> Place:
        context = ray.get_runtime_context()
        address = ray.util.get_node_ip_address()
        return Place(context.get_node_id(), address, os.getpid(), _visible_device(), outward_variables(address))

    def stacks(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, str]:
        return _read_on_nodes(read_stack, ranks)

    def silences_s(self, ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, float]:
        return {number: float(text) for number, text in _read_on_nodes(read_silence_s, ranks).items()}

    def free(self) -> str:
        free = ray.available_resources()
        return f"{free.get('CPU', 0.0):g} CPUs and {free.get('GPU', 0.0):g} GPUs"


def _read_on_nodes(read: Callable[[Stacks], str], ranks: Mapping[int, tuple[Place, Stacks]]) -> dict[int, str]:
    """What `read` finds in a task on the node of each."""

    def ask(place: Place, stacks: Stacks) -> Any:
        affinity = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
        return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=affinity)(read).remote(stacks)

    def answer(pending: Any, timeout_s: float) -> str:
        with suppress(RayError):
            return str(ray.get(pending, timeout=timeout_s))
        return ""

    return gather(ranks, ask, answer, _STACKS_TIMEOUT_S)


def _visible_device() -> str:
    """Index of this actor's GPU among those it sees. Ray shows each actor only its own, unless told not to."""
    visible = [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    mine = [str(device) for device in ray.get_gpu_ids()]
    return str(visible.index(mine[0])) if mine and mine[0] in visible else (mine[0] if mine and not visible else "0")
