"""Portions of a mixture: which examples of an entry of data.train or data.eval are used, and how often.

Comes in: entries of the config, and the examples of each. Goes out: the portions with their sources and names; of the
examples those that are drawn, and how often each is used.
Decision: one pass over the examples, so that what is drawn depends on the seed, the entry's path and its good examples in
order. Price: `count` examples that are in no committed part are in memory, and a part of a pass has its size on average only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np

from raydpo.config.mixture_entry import MixtureEntry
from raydpo.data.sources import Source, find_parts

_METRICS = {"loss", "rewards", "logps", "log_ratios"}
"""Beginnings of names of metrics, which a source's name must not be."""


class Drawable(Protocol):
    """Examples of which some can be taken. `kept`: the same in as little memory as they need."""

    def __len__(self) -> int: ...
    def take(self, chosen: np.ndarray, /) -> Self: ...
    def kept(self) -> Self: ...


B = TypeVar("B", bound=Drawable)


@dataclass(frozen=True)
class Portion:
    """One entry with its sources. seed: of what is drawn."""

    name: str
    sources: list[Source]
    entry: MixtureEntry
    seed: int

    def sample(self, batches: Iterable[B]) -> Iterator[B]:
        """At most `count` of the examples, each with the same chance, in their order; all where there is no `count`."""
        if self.entry.count is None:
            yield from batches
            return
        chance, kept, num_seen = self._chance("count"), list[int](), 0
        held: list[tuple[np.ndarray, B]] = []  # of each batch: numbers of examples that were drawn, and these
        for batch in batches:
            own: dict[int, int] = {}  # of this batch: place in `kept` -> number of the example there
            for seen in range(num_seen, num_seen + len(batch)):  # reservoir sampling, Vitter 1985, algorithm R
                if seen < self.entry.count:
                    kept.append(seen)
                    own[seen] = seen
                elif (place := chance.randrange(seen + 1)) < self.entry.count:
                    kept[place] = own[place] = seen
            if own:
                numbers = np.sort(np.array([*own.values()], np.int64))
                held.append((numbers, batch.take(numbers - num_seen).kept()))
            num_seen += len(batch)
        drawn = np.array(kept, np.int64)
        yield from (batch.take(np.flatnonzero(np.isin(numbers, drawn))) for numbers, batch in held)

    def times(self) -> Iterator[int]:
        """How often the next example is used."""
        chance, whole = self._chance("passes"), int(self.entry.passes)
        rest = self.entry.passes - whole
        while True:
            yield whole + (rest > 0 and chance.random() < rest)

    def _chance(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what} {self.entry.path}")


@dataclass
class Mixture:
    """Portions of both splits. notes: on splits by name. problems: a sentence for each entry that cannot be found."""

    train: list[Portion] = field(default_factory=list)
    eval: list[Portion] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def find_mixture(
    train: Sequence[MixtureEntry], held_out: Sequence[MixtureEntry], *, seed: int, unless: str | None
) -> Mixture:
    """What the entries of data.train and data.eval stand for. unless: the key that is set, so that parts of data.train that
    are held out by name are not read."""
    found = Mixture()
    for entry, name in zip(train, _names(train), strict=True):
        parts = find_parts("data.train", [entry.path], asks_hub=unless is None)
        found.train.append(Portion(name, parts.sources, entry, seed if entry.seed is None else entry.seed))
        found.notes += parts.notes
        found.problems += parts.problems
        if parts.held_out and unless is None:
            found.eval.append(Portion(name, parts.held_out, MixtureEntry(path=entry.path), seed))
        elif parts.held_out:
            unread = ", ".join(source.name for source in parts.held_out)
            found.notes.append(f"data.train: held-out parts are not read, since {unless} is set: {unread}")
    for entry, name in zip(held_out, _names(held_out), strict=True):
        parts = find_parts("data.eval", [entry.path], asks_hub=True)
        found.eval.append(Portion(name, parts.sources, entry, seed if entry.seed is None else entry.seed))
        found.notes += parts.notes
        found.problems += parts.problems
    return found


def _names(entries: Sequence[MixtureEntry]) -> list[str]:
    """A name for each entry, given or from its path; one that is taken gets a number."""
    taken = {entry.name for entry in entries if entry.name is not None}
    names = []
    for entry in entries:
        name = entry.name or _stem(entry.path)
        if entry.name is None:
            number = 2
            base = name = f"{name}-data" if name in _METRICS else name
            while name in taken:
                name, number = f"{base}-{number}", number + 1
            taken.add(name)
        names.append(name)
    return names


def _stem(path: str) -> str:
    """The last part of a path that is no pattern, without its ending: `a/b.jsonl.gz` b, `a/*.jsonl` a, `hub:x/y@main` y."""
    plain = re.sub(r"@[^:]*", "", path.removeprefix("hub:")).replace(":", "-") if path.startswith("hub:") else path
    parts = [part for part in Path(plain).expanduser().parts if not re.search(r"[*?\[]", part) and part.strip("/.")]
    name = re.sub(r"(\.(jsonl|ndjson|json|csv|tsv|parquet|arrow))?(\.gz|\.zst)?$", "", parts[-1] if parts else "data")
    return re.sub(r"[^\w.-]", "_", name) or "data"
