"""A Chrome trace of torch's profiler, read back as pieces of time: what ran at each moment of the recorded steps.

Comes in: the parsed JSON, with one range STEP for each step. Goes out: pieces whose times add up to that of the steps.
Decision: on a CPU the line of time is that of the thread that trains; a moment in which it runs no operator while a
collective runs in another thread is communication. On a GPU it is that of the device: a moment in which only a
collective runs is communication, one in which nothing runs is waiting, if the thread waits for a micro-batch, or else
device idle. What overlaps with computing costs nothing and is not counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raydpo.train.breakdown import Op, TimeSlice, is_collective, is_operator
from raydpo.train.ranges import STEP, WAITING

Interval = tuple[float, float]
"""(start, end) in microseconds."""

IDLE = "(device idle)"
ELSEWHERE = "gloo: (waited for)"
_HOST, _DEVICE = ("cpu_op", "user_annotation"), ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass
class _Call:
    """An event of a host thread.

    op: what was called.
    start, end: when, in microseconds.
    thread: where it ran.
    number: the profiler's id, which what it launched on the device carries too.
    in_step: whether it ran in a recorded step.
    inner: intervals of the calls directly below it.
    """

    op: Op
    start: float
    end: float
    thread: Any
    number: int
    in_step: bool
    inner: list[Interval] = field(default_factory=list)

    def own(self) -> list[Interval]:
        """When it ran itself."""
        return _without((self.start, self.end), self.inner)


def read_pieces(trace: Mapping[str, Any]) -> list[TimeSlice]:
    """Pieces of the recorded steps. Shapes are there if the profiler recorded them."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    calls = _calls(event for event in events if event.get("cat") in _HOST)
    device = [event for event in events if event.get("cat") in _DEVICE]
    return _on_device(calls, device) if device else _on_host(calls)


def _calls(events: Iterable[Mapping[str, Any]]) -> list[_Call]:
    """Host events as a tree, by thread."""
    threads = defaultdict(list)
    for event in events:
        start, arguments = float(event["ts"]), event.get("args", {})
        entry = (start, -(start + float(event["dur"])), int(arguments.get("External id", 0)))
        threads[event["tid"]].append((entry, event["name"], _shapes(arguments.get("Input Dims", []))))
    calls: list[_Call] = []
    for thread, entries in threads.items():
        stack: list[_Call] = []
        for (start, minus_end, number), name, shapes in sorted(entries, key=lambda entry: entry[0]):
            while stack and stack[-1].end <= start:
                stack.pop()
            caller = stack[-1] if stack else None
            end = -minus_end if caller is None else min(-minus_end, caller.end)  # times are rounded
            in_step = name == STEP or (caller is not None and caller.in_step)
            call = _Call(Op(name, shapes, caller.op if caller else None), start, end, thread, number, in_step)
            if caller is not None:
                caller.inner.append((start, end))
            stack.append(call)
            calls.append(call)
    return calls


def _shapes(dims: list[Any]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for shape in dims if shape and all(isinstance(size, int) for size in shape))


def _on_host(calls: list[_Call]) -> list[TimeSlice]:
    threads = {call.thread for call in calls if call.op.name == STEP}
    apart = (c for c in calls if c.thread not in threads and is_collective(c.op.name))
    collectives = _merged((call.start, call.end) for call in apart)
    pieces = []
    for call in calls:
        if not call.in_step:
            continue
        own = call.own()
        waited = 0.0 if is_operator(call.op.name) else _overlap(own, collectives)
        if waited:
            pieces.append(TimeSlice(Op(ELSEWHERE, (), call.op), waited))
        pieces.append(TimeSlice(call.op, sum(end - start for start, end in own) - waited))
    return pieces


def _on_device(calls: list[_Call], device: list[Mapping[str, Any]]) -> list[TimeSlice]:
    launched_by = {call.number: call.op for call in calls}
    steps = _merged((call.start, call.end) for call in calls if call.op.name == STEP)
    works: list[tuple[Op, Interval, bool]] = []
    for event in device:
        interval = (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        launcher = launched_by.get(int(event.get("args", {}).get("External id", -1)))
        is_comm = is_collective(event["name"])
        works.append((Op(event["name"], (), launcher) if is_comm or launcher is None else launcher, interval, is_comm))
    times = _one_at_a_time(works, steps)
    pieces = [TimeSlice(op, time) for (op, *_), time in zip(works, times, strict=True)]
    busy = _merged(interval for _, interval, _ in works)
    idle = [gap for step in steps for gap in _without(step, busy)]
    waiting = _overlap(idle, _merged((call.start, call.end) for call in calls if call.op.name == WAITING))
    idle_us = sum(end - start for start, end in idle)
    pieces += [TimeSlice(Op(WAITING), waiting), TimeSlice(Op(IDLE), idle_us - waiting)]
    return [piece for piece in pieces if piece.self_us > 0]


def _one_at_a_time(works: list[tuple[Op, Interval, bool]], steps: list[Interval]) -> list[float]:
    """Time of each work when a moment counts once: for the compute that began first, else for a collective."""
    times = [0.0] * len(works)
    bounds = sorted(
        [(time, index) for index, (_, interval, _) in enumerate(works) for time in interval]
        + [(time, -1) for step in steps for time in step]
    )
    running: set[int] = set()
    before = 0.0
    for time, index in bounds:
        if running and time > before:
            first = min(running, key=lambda work: (works[work][2], works[work][1][0]))
            times[first] += _overlap([(before, time)], steps)
        before = time
        if index >= 0:
            running ^= {index}
    return times


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The union, as disjoint intervals in order."""
    found: list[Interval] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _without(whole: Interval, taken: list[Interval]) -> list[Interval]:
    """What is left of `whole`. taken: disjoint and in order."""
    left, (at, end) = [], whole
    for start, stop in taken[max(0, bisect_right(taken, (at, at)) - 1) :]:
        if start >= end:
            break
        if start > at:
            left.append((at, start))
        at = max(at, stop)
    return [*left, (at, end)] if at < end else left


def _overlap(intervals: list[Interval], others: list[Interval]) -> float:
    """Length that both cover. others: disjoint and in order."""
    total = 0.0
    for start, end in intervals:
        for low, high in others[max(0, bisect_right(others, (start, start)) - 1) :]:
            if low >= end:
                break
            total += max(0.0, min(end, high) - max(start, low))
    return total
