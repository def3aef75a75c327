"""How long each role of a run worked, for which share of the time, and how fast policies were sampled from."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from raydpo.schema.samples import Generated

ROLES = ("generate", "judge", "train")


@dataclass
class SamplingPace:
    """What sampling from one policy cost in this process's attempt, over all generators.

    version: of the policy. num_tokens: of answers. num_steps: forwards of engines, 0 where they do not tell. busy_s: seconds
    of generators, one after the other.
    """

    version: int
    num_tokens: int = 0
    num_steps: int = 0
    busy_s: float = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Of a generator, while it worked."""
        return self.num_tokens / self.busy_s if self.busy_s else 0.0


class Busy:
    """Seconds of work by role, of this process's attempt. What was committed before costs nothing and counts nothing."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._seconds = dict.fromkeys(ROLES, 0.0)
        self._paces: dict[int, SamplingPace] = {}
        self._lock = threading.Lock()

    def add(self, role: str, seconds: float) -> None:
        with self._lock:
            self._seconds[role] += seconds

    def sampled(self, answer: Generated) -> None:
        """Count a request that generators answered."""
        self.add("generate", answer.busy_s)
        pace = self._paces.setdefault(answer.version, SamplingPace(answer.version))
        pace.num_tokens += answer.num_tokens
        pace.num_steps += answer.num_steps
        pace.busy_s += answer.busy_s

    @property
    def num_sampled_tokens(self) -> int:
        """Of all policies, so far."""
        return sum(pace.num_tokens for pace in tuple(self._paces.values()))

    @contextmanager
    def working(self, role: str) -> Iterator[None]:
        """Count the time of the block."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self.add(role, time.monotonic() - began_s)

    def seconds(self) -> dict[str, float]:
        """By role, until now."""
        with self._lock:
            return dict(self._seconds)

    def report(self, num_generators: int) -> dict[str, Any]:
        """wall_s; busy_s by role; busy_share by role: of the wall time, of generators also of their number; sampling: the pace
        of each policy that was sampled from."""
        wall_s = time.monotonic() - self._began_s
        workers = {"generate": num_generators}
        shares = {role: seconds / (wall_s * workers.get(role, 1)) for role, seconds in self._seconds.items()}
        paces = [{**asdict(pace), "tokens_per_s": pace.tokens_per_s} for _, pace in sorted(self._paces.items())]
        return {"wall_s": wall_s, "busy_s": dict(self._seconds), "busy_share": shares, "sampling": paces}
