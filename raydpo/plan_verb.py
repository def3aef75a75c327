"""The options of `raydpo plan`.

Comes in: the parsers of the command line. Goes out: one more verb. Decision: nothing heavier than argparse, so that --help
answers at once.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

_TEXT = "memory, disk and time of a run before anything is started; loads no weights"


def add(verbs: Any, parents: list[argparse.ArgumentParser], act: Callable[[argparse.Namespace], int]) -> None:
    """Add the verb. act: what it does."""
    plan = verbs.add_parser("plan", parents=parents, help=_TEXT, description=_TEXT)
    for name, text in (
        ("device-gb", "memory of a GPU in 10^9 bytes (default: this machine's)"),
        ("num-devices", "GPUs of a machine (default: this machine's)"),
        ("host-gb", "main memory of a machine in 10^9 bytes (default: this machine's)"),
        ("prompt-tokens", "of a mean prompt; with the next two, no data are read"),
        ("answer-tokens", "of a mean answer"),
        ("examples", "of the training split"),
        ("flops", "that a device (on a CPU: one rank) reaches in a second of a step"),
        ("link-gb", "10^9 bytes a second between ranks"),
    ):
        plan.add_argument(f"--{name}", type=_positive, help=text)
    plan.set_defaults(act=act)


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"given {text!r}; allowed: a number above 0")
    return number
