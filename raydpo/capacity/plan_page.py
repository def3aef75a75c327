"""A plan as text of at most 100 columns.

Comes in: what `plan_run` gives. Goes out: lines. Decision: a part below a thousandth of its role, and changes after
the eighth, are left out of the text; the JSON has them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from raydpo.disk import sized

WIDTH = 100
_SMALL_SHARE = 1e-3
_MOST_CHANGES = 8


def lines(plan: Mapping[str, Any]) -> list[str]:
    """The whole page."""
    return [text for part in (_head, _memory, _disk, _time, _budget, _changes, _end) for text in part(plan)]


def _head(plan: Mapping[str, Any]) -> Iterator[str]:
    model, data, machine = plan["model"], plan["data"], plan["machine"]
    trained = "all" if model["trained"] == model["weights"] else f"{model['trained']:,}"
    yield f"model     {model['weights']:,} weights in {model['layers']} layers, {model['dtype']}; trained: {trained}"
    yield from _wrapped(
        f"data      {data['examples']:,} examples: prompt {data['prompt']:,.0f}, answer {data['answer']:,.0f}, longest row "
        f"{data['longest']:,} tokens ({data['source']}); {data['layout']} rows, {data['steps']:,} steps"
    )
    gpus = (
        "no GPU" if machine["device_bytes"] is None else f"{machine['num_devices']} x {sized(machine['device_bytes'])}"
    )
    yield f"machine   {gpus}, {sized(machine['host_bytes'])} of main memory"
    yield ""


def _memory(plan: Mapping[str, Any]) -> Iterator[str]:
    for role in plan["roles"]:
        verdict = {None: "", True: ": fits", False: ": DOES NOT FIT"}[role["fits"]]
        room = "" if role["room"] is None else f" of {sized(int(role['room']))}{verdict}"
        yield f"{role['role']:12}{role['place']:12}{sized(int(role['bytes'])):>10}{room}"
        yield f"{'':12}{role['what']}"
        for name, size in role["parts"].items():
            if size > _SMALL_SHARE * role["bytes"]:
                yield f"{'':14}{name:24}{sized(int(size)):>10}"
    yield ""


def _disk(plan: Mapping[str, Any]) -> Iterator[str]:
    disk = plan["disk"]
    verdict = "fits" if disk["bytes"] <= disk["free"] else "DOES NOT FIT"
    yield f"{'disk':12}{'run.dir':12}{sized(int(disk['bytes'])):>10} of {sized(disk['free'])} free: {verdict}"
    for name, size in disk["parts"].items():
        if size:
            yield f"{'':14}{name:24}{sized(int(size)):>10}"
    yield ""


def _time(plan: Mapping[str, Any]) -> Iterator[str]:
    time = plan["time"]
    parts = ", ".join(f"{name} {_span(seconds)}" for name, seconds in time["parts_s"].items())
    yield from _wrapped(f"time      a step {_span(time['step_s'])} ({parts}), training {_span(time['training_s'])}")
    if "reference_s" in time:
        yield f"          reference {_span(time['reference_s'])}"


def _budget(plan: Mapping[str, Any]) -> Iterator[str]:
    micro = plan["micro_batch"]
    text = f"micro-batch of {micro['tokens']:,} tokens, {micro['recomputed_layers']} layers recomputed"
    if micro["largest"] is not None:
        most = f"the largest train.tokens_per_microbatch that fits is {micro['largest']:,}"
        text += f"; {most if micro['largest'] else 'no train.tokens_per_microbatch fits'}"
    yield from _wrapped(f"tokens    {text}")
    yield ""


def _changes(plan: Mapping[str, Any]) -> Iterator[str]:
    found = [change for change in plan["changes"] if change["fits"] or plan["fits"] is not False]
    if not found:
        if plan["fits"] is False:
            yield "nothing that was tried makes it fit: more or larger devices, or a smaller model"
            yield ""
        return
    what = "what makes it fit" if plan["fits"] is False else "what would be smaller"
    yield f"{what}, the smallest change first" + (" (+ fits)" if plan["fits"] is not None else "")
    for change in found[:_MOST_CHANGES]:
        mark = "+" if change["fits"] else " "
        host = f" ({sized(int(change['host_bytes']))} of main memory a rank)" if change["host_bytes"] else ""
        yield from _wrapped(f"  {mark} {sized(int(change['bytes'])):>10}  {change['said']}{host}", indent=16)
    yield ""


def _end(plan: Mapping[str, Any]) -> Iterator[str]:
    for note in plan["notes"]:
        yield from _wrapped(f"note      {note}")
    flat = {key: value for key, value in plan["coefficients"].items() if not isinstance(value, dict)}
    flat |= {f"{role} {key}": v for role in ("train", "reference") for key, v in plan["coefficients"][role].items()}
    yield from _wrapped("by        " + ", ".join(f"{key} {value:,.6g}" for key, value in flat.items()))


def _wrapped(text: str, indent: int = 10) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
