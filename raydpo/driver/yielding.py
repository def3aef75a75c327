"""What generators do with their devices while another role needs them, decided once for a run.

Comes in: a config of rounds. Goes out: a `Yielding`, which says why. Decision: they sleep only where all that it takes is known
from the config: an engine that can, and roles with one GPU a worker anywhere on Ray, which then have seats on the same devices.
All else is as without sleep. Price: ranges of workers and placements on certain nodes do not go with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from raydpo.config import Config
from raydpo.config.doors import ENGINES
from raydpo.config.outside import is_outside
from raydpo.config.round_sections import GenerateSection
from raydpo.config.scheduling_section import SchedulingSection
from raydpo.config.worker_range import bounds


@dataclass(frozen=True)
class Yielding:
    """how: sleeps: in their processes, and wake again; stays: they keep what they hold; stopped: they end, and others start.
    why: a clause. num_gpus: that all roles have seats on; 0 where none are shared."""

    how: Literal["sleeps", "stays", "stopped"]
    why: str
    num_gpus: int = 0


def yielding(config: Config) -> Yielding:
    """Of the generators of a run of rounds."""
    if config.rounds is None or config.rounds.placement != "colocated":
        return Yielding("stays", "generators have devices of their own")
    if not config.generate.gpus_per_worker:
        return Yielding("stays", "on CPUs generators wait in main memory")
    if why := next(_hindrances(config), ""):
        return Yielding("stopped", why)
    return Yielding("sleeps", "its engine can, and roles have seats on the same GPUs", _num_gpus(config))


def _hindrances(config: Config) -> Iterator[str]:
    """Why generators cannot sleep, as clauses."""
    if text := _awake(config.generate):
        yield text
    if config.run.runtime != "ray":
        yield "run.runtime: local gives a GPU to one process at a time"
    for name, section in _on_gpus(config):
        fewest, most = bounds(section.num_workers)
        if section.gpus_per_worker != 1:
            yield f"{name}.gpus_per_worker is {section.gpus_per_worker:g}, and seats are shared of one GPU a worker"
        if fewest != most:
            yield f"{name}.num_workers is a range"
        if section.scheduling != SchedulingSection():
            yield f"{name}.scheduling says where its workers go"


def _awake(section: GenerateSection) -> str:
    """Why the engine cannot sleep, as a clause; an engine of one's own says it by a class attribute `sleeps`."""
    name = section.engine
    if name == "vllm":
        return "" if section.vllm.enable_sleep_mode else "generate.vllm.enable_sleep_mode is off"
    can = is_outside(name) and getattr(ENGINES.resolve(name), "sleeps", False)
    return "" if can else f"the engine {name} cannot sleep"


def _on_gpus(config: Config) -> list[tuple[str, Any]]:
    sections = {name: getattr(config, name) for name in ("generate", "train", "reference", "judge")}
    return [(name, each) for name, each in sections.items() if each is not None and each.gpus_per_worker]


def _num_gpus(config: Config) -> int:
    return max(bounds(section.num_workers)[1] for _, section in _on_gpus(config))
