"""What the log of a reference cache in an object store says: which shards count, and which objects must never count again.

Comes in: entries in their order. An entry adds a shard (`shard`, `record`, `object`), adds one and lets others go (`replaces`),
names objects that are about to be removed (`removed`), or says everything that counts (`snapshot`). Goes out: the state after
the last of them. Decision: the order of the log is the only order there is, so who adds a shard and who removes objects agree
on who was first without a clock. The price is that all entries since a snapshot are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HeldShard:
    """A shard that counts.

    record: as in its commit record.
    key: of its object.
    replaces: name -> file of the shards whose rows it took over.
    """

    record: dict[str, Any]
    key: str
    replaces: dict[str, str]


@dataclass
class CacheState:
    """After some entries.

    shards: those that count, by name.
    let_go: key of an object that counted -> number of the entry from which on it does not.
    removed: keys that an entry gave up.
    replaced: files that merged shards took over.
    """

    shards: dict[str, HeldShard] = field(default_factory=dict)
    let_go: dict[str, int] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)

    def add(self, number: int, entry: Mapping[str, Any]) -> None:
        """What entry `number` says. One that cannot be read says nothing."""
        if isinstance(entry.get("snapshot"), dict):
            self._reset(entry)
            return
        self.removed |= removed_by(entry)
        with suppress(ValueError, KeyError, TypeError):
            record = dict(entry["record"])
            held = HeldShard(record, str(entry.get("object", f"shards/{record['name']}")), replaced_by(entry))
            for name, file in held.replaces.items():
                if self._holds(name, file):
                    self.let_go[self.shards.pop(name).key] = number
            self.replaced |= set(held.replaces.values())
            if (before := self.shards.get(str(entry["shard"]))) is not None:
                self.let_go[before.key] = number
            self.shards[str(entry["shard"])] = held
            self.let_go.pop(held.key, None)

    def snapshot(self) -> dict[str, Any]:
        """An entry that says the same as all before it, but for what is gone from the store."""
        shards = {name: {"record": held.record, "object": held.key} for name, held in self.shards.items()}
        return {
            "snapshot": shards,
            "let_go": {key: number for key, number in self.let_go.items() if key not in self.removed},
        }

    def _reset(self, entry: Mapping[str, Any]) -> None:
        shards, let_go = entry["snapshot"], entry.get("let_go", {})
        self.shards = {
            name: HeldShard(dict(shard["record"]), str(shard["object"]), {}) for name, shard in shards.items()
        }
        self.let_go = {str(key): int(number) for key, number in let_go.items()}
        self.removed, self.replaced = set(), set()

    def is_overtaken(self, replaces: Mapping[str, str]) -> bool:
        """Whether a shard of `replaces` (name -> file) was replaced already, and not by another one of them."""
        held = [self.shards[name] for name, file in replaces.items() if self._holds(name, file)]
        own = {file for shard in held for file in shard.replaces.values()}
        return bool(set(replaces.values()) & self.replaced - own)

    def _holds(self, name: str, file: str) -> bool:
        return name in self.shards and self.shards[name].record["name"] == file


def state_after(entries: Iterable[tuple[int, Mapping[str, Any]]]) -> CacheState:
    """The state after numbered entries, from the first one or a snapshot on."""
    state = CacheState()
    for number, entry in entries:
        state.add(number, entry)
    return state


def removed_by(entry: Mapping[str, Any]) -> set[str]:
    """Keys that an entry gives up."""
    keys = entry.get("removed")
    return set(map(str, keys)) if isinstance(keys, list) else set()


def replaced_by(entry: Mapping[str, Any]) -> dict[str, str]:
    """name -> file of the shards that an entry lets go."""
    shards = entry.get("replaces")
    return {str(name): str(file) for name, file in shards.items()} if isinstance(shards, dict) else {}
