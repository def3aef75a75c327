"""Sight of the loop: where the time of each round went, who waited for whom, and which change would balance them.

Comes in: phases as they begin and end, in either thread, what roles worked, how full the queue of generators was, and how old
pairs are. Goes out: numbers of a round, a line for the screen, and a warning. Decision: times stand beside a round's metrics
and not among them, because metrics are the same on every machine. What an earlier attempt had done costs nothing and counts
nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from raydpo import runtime
from raydpo.config import Config
from raydpo.driver.busy import Busy
from raydpo.driver.queue_depth import IN_WORK, WAITING, QueueDepth
from raydpo.schema.events import Event, Note, Observer, StageDone, StageStarted

PHASES = ("sample", "judge", "reference", "train", "evaluate", "waiting")
"""Of a round. sample and judge: of its pairs, ahead of the round with `split`. waiting: of the trainers, for samples."""
_PAIRS_OF_AGE = "pairs_of_age/"
LONG_WAIT = 0.2
"""Of a round's time, what a role may wait before it is told."""


class LoopSight:
    """busy: what roles worked. now_s: a clock. depth: of the queue of generators."""

    def __init__(
        self,
        config: Config,
        busy: Busy,
        observer: Observer,
        now_s: Callable[[], float] = time.monotonic,
        depth: QueueDepth | None = None,
    ) -> None:
        self._config, self._busy, self._observer, self._now_s = config, busy, observer, now_s
        self._depth, self._depths = depth or QueueDepth(now_s), dict[int, dict[str, float]]()
        self._lock = threading.Lock()
        self._seconds: dict[int, dict[str, float]] = defaultdict(dict)
        self._num_tokens: dict[int, int] = {}
        self._began: dict[int, tuple[float, Mapping[str, float]]] = {}
        self._num_begun = 0
        self._told = set[str]()

    def begin(self, index: int) -> None:
        """The time of round `index` begins."""
        self._began[index] = self._now_s(), self._busy.seconds()
        self._num_begun += 1

    @contextmanager
    def phase(self, index: int, name: str) -> Iterator[None]:
        """Count the time of the block for a phase of round `index`; while it is sampled, the tokens that come and the queue."""
        began_s, num_tokens = self._now_s(), self._busy.num_sampled_tokens
        if name == "sample" and index not in self._depths:  # the judge may have had turns between
            self._depth.begin()
        try:
            yield
        finally:
            self._add(index, name, self._now_s() - began_s)
            if name == "sample":
                self._num_tokens[index] = self._num_tokens.get(index, 0) + self._busy.num_sampled_tokens - num_tokens
                self._depths[index] = self._depth.read()

    def training(self, index: int, observer: Observer) -> Observer:
        """`observer`, and on the way the time that scoring the reference takes, which is not that of the training around it."""
        began_s: list[float] = []

        def hear(event: Event) -> None:
            if isinstance(event, StageStarted | StageDone) and event.stage == "reference":
                while began_s:
                    took_s = self._now_s() - began_s.pop()
                    self._add(index, "reference", took_s)
                    self._add(index, "train", -took_s)
                if isinstance(event, StageStarted):
                    began_s.append(self._now_s())
            observer(event)

        return hear

    def end(self, index: int, ages: Mapping[int, int] | None = None) -> dict[str, float]:
        """The numbers of round `index`, told. ages: versions by which the policy that sampled was older -> pairs."""
        began_s, before = self._began.pop(index)
        wall_s, spent = self._now_s() - began_s, self._seconds.pop(index, {})
        found = {"wall_s": wall_s, **{f"{name}_s": spent.get(name, 0.0) for name in PHASES}}
        if sample_s := found["sample_s"]:
            found["sampled_tokens_per_s"] = self._num_tokens.pop(index, 0) / sample_s
        found |= self._depths.pop(index, {})
        found |= {f"{_PAIRS_OF_AGE}{age}": float(number) for age, number in sorted((ages or {}).items())}
        _show(ages or {})
        workers = {"generate": self._config.generate.num_workers}
        for role, seconds in self._busy.seconds().items():
            found[f"busy/{role}"] = (seconds - before[role]) / (workers.get(role, 1) * wall_s) if wall_s else 0.0
        self._observer(Note("info", f"round {index}: {shown(found)}"))
        if self._is_full(index):
            self._warn(index, found)
        return found

    def _is_full(self, index: int) -> bool:
        """Whether both roles had work in round `index`: nothing is made ahead of the first one, nor beside the last ones."""
        rounds = self._config.rounds
        assert rounds is not None
        is_last = index + max(1, rounds.max_staleness) >= rounds.num_rounds
        return rounds.placement == "split" and self._num_begun > 1 and not is_last

    def _warn(self, index: int, found: Mapping[str, float]) -> None:
        role, share, change = imbalance(self._config, found)
        if share > LONG_WAIT and role not in self._told:
            self._told.add(role)
            self._observer(Note("warning", f"the {role} waited {share:.0%} of round {index}; {change}"))

    def _add(self, index: int, name: str, seconds: float) -> None:
        with self._lock:
            self._seconds[index][name] = self._seconds[index].get(name, 0.0) + seconds


def imbalance(config: Config, found: Mapping[str, float]) -> tuple[str, float, str]:
    """(who waits most, which share of the time, the change that would balance it) of a round with `placement: split`."""
    rounds = config.rounds
    assert rounds is not None
    in_turn_s = found["sample_s"] + found["judge_s"] if rounds.max_staleness == 0 else 0.0
    trainers, generators = (found["waiting_s"] + in_turn_s) / found["wall_s"], 1 - found["busy/generate"]
    role, share = ("trainers", trainers) if trainers >= generators else ("generators", generators)
    if rounds.max_staleness == 0:
        return role, share, "with rounds.max_staleness: 0 they take turns; 1 lets both work at the same time"
    change = _faster_samples(config, found) if role == "trainers" else _fewer_generators(config, found["busy/generate"])
    return role, share, change


def _faster_samples(config: Config, found: Mapping[str, float]) -> str:
    what, now, seconds = "generate", config.generate.num_workers, found["sample_s"]
    if found["judge_s"] > seconds:
        what, now, seconds = "judge", 1 if config.judge is None else config.judge.num_workers, found["judge_s"]
    enough_s = max(seconds - found["waiting_s"], seconds / 8)
    wanted = max(now + 1, math.ceil(now * seconds / enough_s) if seconds else 0)
    return f"{what}.num_workers: {wanted} (now {now}) would balance it"


def _fewer_generators(config: Config, busy: float) -> str:
    now, ranks = config.generate.num_workers, config.train.ranks[0]
    if 0 < (enough := math.ceil(now * busy)) < now:
        return f"generate.num_workers: {enough} (now {now}) would do, and what it frees can train"
    wanted = max(ranks + 1, math.ceil(ranks / max(busy, 1 / 8)))
    return f"train.num_workers: {wanted} (now {ranks}) would balance it"


def shown(found: Mapping[str, float]) -> str:
    """One line."""
    phases = ", ".join(f"{name} {found[f'{name}_s']:.1f}" for name in PHASES)
    rate = f"; {found['sampled_tokens_per_s']:,.0f} tokens/s sampled" if "sampled_tokens_per_s" in found else ""
    busy = ", ".join(f"{name[5:]} {share:.0%}" for name, share in found.items() if name.startswith("busy/"))
    return f"{found['wall_s']:.1f} s: {phases}{rate}{_queue(found)}{_staleness(found)}; busy: {busy}"


def _queue(found: Mapping[str, float]) -> str:
    if f"{WAITING}/mean" not in found:
        return ""
    waiting, in_work = (_mean_and_most(found[f"{name}/mean"], found[f"{name}/most"]) for name in (WAITING, IN_WORK))
    return f"; requests waiting {waiting}, in work {in_work}"


def _mean_and_most(mean: float, most: float) -> str:
    return f"{mean:.1f}" if most - mean < 0.05 else f"{mean:.1f} (at most {most:.0f})"


def _staleness(found: Mapping[str, float]) -> str:
    """Only where there is any."""
    ages = {int(name.removeprefix(_PAIRS_OF_AGE)): n for name, n in found.items() if name.startswith(_PAIRS_OF_AGE)}
    said = ", ".join(f"{age} ({number:.0f} pairs)" for age, number in ages.items())
    return f"; staleness in versions: {said}" if any(ages) else ""


def _show(ages: Mapping[int, int]) -> None:
    """To the monitoring of a cluster."""
    if num_pairs := sum(ages.values()):
        mean = sum(age * number for age, number in ages.items()) / num_pairs
        runtime.gauge("raydpo_pair_staleness", mean)
        runtime.gauge("raydpo_pair_staleness_most", max(ages))
