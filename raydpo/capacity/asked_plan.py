"""The options of `raydpo plan` to what is asked, a plan to lines.

Comes in: a config and the options by name. Goes out: the plan and its text. Decision: what nobody states is this machine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raydpo.capacity.machine_room import Room, room_here
from raydpo.capacity.plan_page import lines
from raydpo.capacity.planning import Question, plan_run
from raydpo.capacity.step_time import CPU_CORE, GPU, Speed
from raydpo.config import Config
from raydpo.errors import ConfigError
from raydpo.schema.events import Observer, ignore

_LENGTHS = ("prompt_tokens", "answer_tokens", "examples")


def planned(
    config: Config, options: Mapping[str, Any], observer: Observer = ignore
) -> tuple[dict[str, Any], list[str]]:
    """(the plan, its text). options: of the command line, None where not given. Raises ConfigError."""
    plan = plan_run(config, Question(_room(options), _speed(config, options), _tokens(options)), observer)
    return plan, lines(plan)


def _room(options: Mapping[str, Any]) -> Room:
    room = room_here()
    if (device_gb := options.get("device_gb")) is not None:
        room = replace(room, device_bytes=round(device_gb * 1e9), num_devices=max(1, room.num_devices))
    if (num_devices := options.get("num_devices")) is not None:
        room = replace(room, num_devices=round(num_devices))
    if (host_gb := options.get("host_gb")) is not None:
        room = replace(room, host_bytes=round(host_gb * 1e9))
    return room


def _tokens(options: Mapping[str, Any]) -> tuple[int, int, int] | None:
    given = [options.get(name) for name in _LENGTHS]
    numbers = [round(number) for number in given if number is not None]
    if not numbers:
        return None
    if len(numbers) < len(given):
        raise ConfigError(
            "--prompt-tokens, --answer-tokens and --examples go together: with all three no data are read, and with some of "
            "them half of the numbers would be unknown. Nothing was planned. Give all three, or none."
        )
    return numbers[0], numbers[1], numbers[2]


def _speed(config: Config, options: Mapping[str, Any]) -> Speed | None:
    flops, link_gb = options.get("flops"), options.get("link_gb")
    if flops is None and link_gb is None:
        return None
    known = GPU if config.train.gpus_per_worker else CPU_CORE
    return replace(known, flops=flops or known.flops, link=known.link if link_gb is None else link_gb * 1e9)
