"""The generators of a run: a standing pool of engines, the policy that they hold, and the proof that they hold it.

Comes in: requests, weights of the trainers or a model folder. Goes out: what engines answer, stamped with the version.
Decision: new weights go to every engine in place, from a file that trainers wrote on its node (part by part through the runtime
where there is none); an engine on another node, or one that starts later, reads the committed folder, and so do all when they
are at work as a push begins: trainers never wait for them. After either, the trainers' log-probs of a few sequences are
compared with those of each engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from raydpo import runtime
from raydpo.artifacts import shared_files, weights_digest
from raydpo.config import Config
from raydpo.driver.actors import libraries_of, worker_limits
from raydpo.driver.beside import JudgedBeside, run_beside
from raydpo.driver.ledger import Ledger
from raydpo.driver.queue_depth import QueueDepth
from raydpo.driver.yielding import yielding
from raydpo.errors import PolicyMismatchError, WorkerError
from raydpo.generate.engine import EngineSpec
from raydpo.generate.worker import Generator, Health, PolicyLoaded
from raydpo.models.agreement import compare, tolerance_of
from raydpo.schema.events import Note, Observer
from raydpo.schema.rank_events import PolicyProbe, WeightsPart
from raydpo.schema.samples import (
    DropWeights,
    Generate,
    Generated,
    LoadFolder,
    LoadWeights,
    Score,
    Scored,
    Sleep,
    TakeWeights,
    Wake,
)
from raydpo.schema.shared_weights import SharedWeights

_LOADING = -1
"""The version in the middle of a push: of no request."""


@dataclass(frozen=True)
class Policy:
    """A policy that generators can hold.

    version: rounds that it was trained for.
    folder: its model folder.
    probe: log-probs of a few sequences by its trainers, to compare generators with.
    """

    version: int
    folder: Path
    probe: PolicyProbe | None = None

    @cached_property
    def digest(self) -> str:
        """Of the weights."""
        return weights_digest(self.folder)


class Generators:
    """engine: of the initial model; the architecture of all versions. ledger: what is started and loaded is counted there.
    depth: of their queue. Close them after use."""

    def __init__(self, config: Config, engine: EngineSpec, observer: Observer, ledger: Ledger | None = None) -> None:
        section = config.generate
        self._engine, self._observer = engine, observer
        self._ledger, self.depth = ledger or Ledger(), QueueDepth()
        is_colocated = config.rounds is not None and config.rounds.placement == "colocated"
        self.shares_gpus = is_colocated and section.gpus_per_worker > 0
        # Colocated on CPUs, generators wait while trainers run: they must not hold the CPUs that trainers reserve.
        shares_cpus = is_colocated and not self.shares_gpus
        self._pool = runtime.Pool(
            "generate",
            partial(Generator, engine),
            num_workers=section.num_workers,
            cpus=0 if shares_cpus else section.cpus_per_worker,
            own_process=engine.engine != "transformers",
            preload=libraries_of(engine.engine),
            placed=self._count_start,
            depth=self.depth.seen,
            **worker_limits(section, "generate"),
        )
        self._is_greeted = False
        self._version = self._checked = engine.version  # what an engine holds when it has started
        self._unproven: set[int] = set()
        self._is_introduced = self._is_asleep = False
        self._yielding = yielding(config)
        self._ledger.yields("generate", self._yielding.how, self._yielding.why)

    def hold(self, policy: Policy) -> None:
        """Make every generator hold `policy`, from its folder unless a push brought it. Raises PolicyMismatchError."""
        self._wake()
        message = LoadFolder(str(policy.folder), policy.version)
        self._is_greeted = policy.version != self._engine.version
        self._pool.greet_with(message if self._is_greeted else None)
        if self._version != policy.version:
            answers: list[PolicyLoaded] = self._pool.tell(message)
            self._ledger.updated("generate", sum(answer.busy_s > 0 for answer in answers))  # others have it by a push
            self._version = policy.version
        if self._checked != policy.version:
            self._pool.start()
            if policy.probe is not None or policy.version != self._engine.version:  # the initial policy has no trainers
                self._check(policy)
            self._checked = policy.version
        self._introduce()

    def _count_start(self, _: object) -> None:
        """Each loads the initial model as it starts, and takes in what it is greeted with."""
        self._ledger.started("generate")
        self._ledger.loaded("generate")
        self._ledger.updated("generate", int(self._is_greeted))

    def _introduce(self) -> None:
        """Say once what samples."""
        if self._is_introduced:
            return
        self._is_introduced = True
        self._pool.start()
        found = Counter(
            "{engine} on {device} in {dtype}, threads: {threads}".format(**e) for e in self._pool.tell(Health())
        )
        for text, number in found.items():
            self._observer(Note("info", f"generators: {number}, {text}"))

    def receive(self, part: WeightsPart, version: int) -> None:
        """A part of the weights of `version`, from the trainers."""
        self._version = version if part.is_last else _LOADING
        answers = self._pool.tell(LoadWeights(part.weights, version, part.is_last, part.is_partial))
        self._ledger.updated("generate", len(answers) if part.is_last else 0)

    def take(self, shared: SharedWeights, version: int) -> None:
        """The weights of `version` in a file on the trainers' node, which is removed when all have them."""
        self._version = _LOADING
        try:
            answers: list[PolicyLoaded] = self._pool.tell(TakeWeights(shared, version))
        finally:
            is_removed = self.leave(shared)
        if not is_removed:
            self._pool.tell(DropWeights(shared))
        absent = sum(not answer.is_whole for answer in answers)
        self._ledger.updated("generate", len(answers) - absent)
        if not absent:
            self._version = version
            return
        who = "1 generator does" if absent == 1 else f"{absent} generators do"
        text = f"{who} not see {shared.path}, being on another node than the trainers: policy {version} is read from its folder"
        self._observer(Note("info", text))

    def leave(self, shared: SharedWeights) -> bool:
        """Remove the file of a push that nobody takes; False on another node: whoever makes, or loads, the next one does it."""
        return shared_files.remove(Path(shared.path), shared.key)

    def _check(self, policy: Policy) -> None:
        """Compare each generator's log-probs of a few sequences with those of the trainers."""
        probe = policy.probe
        if probe is None:
            self._say_unproven(policy)
            return
        answers: list[Scored] = self._pool.tell(probe.request)
        if not answers:  # those that took the weights may have died since, while nobody asked them anything
            self._pool.start()
            answers = self._pool.tell(probe.request)
        if not answers:
            raise WorkerError(
                f"every generator died when it was asked what policy {policy.version} says of a few sequences. If it was "
                "memory, run fewer generators; the same command goes on from here."
            )
        worst = max(_compare(probe, answer, self._engine.dtype, policy.version) for answer in answers)
        who = "1 generator holds" if len(answers) == 1 else f"{len(answers)} generators hold"
        text = f"{who} policy {policy.version}: within {worst:.2g} nats of the trainers"
        self._observer(Note("info", text))

    def _say_unproven(self, policy: Policy) -> None:
        """Once for each version."""
        if policy.version in self._unproven:
            return
        self._unproven.add(policy.version)
        self._observer(
            Note(
                "warning",
                f"policy {policy.version} was loaded from {policy.folder} and not compared with what its trainers said of some "
                "sequences: there is no probe.json, because the driver was killed between the last step and the push. An "
                "engine that computes another policy would not be found before the next push. If that matters, remove the "
                "round that made this policy and all after it, and run the same command.",
            )
        )

    def generate(
        self, requests: Sequence[Generate], beside: JudgedBeside | None = None
    ) -> Iterator[tuple[int, Generated]]:
        """(index of the request, answers), in the order they finish. beside: a judging that goes on meanwhile."""
        yield from self._pool.run(requests) if beside is None else run_beside(self._pool, requests, beside)

    def score(self, requests: Sequence[Score]) -> Iterator[tuple[int, Scored]]:
        """(index of the request, log-probs), in the order they finish."""
        yield from self._pool.run(requests)

    def make_room(self, keeps_weights: bool = True) -> None:
        """Give up GPUs that another role needs now. keeps_weights: the same policy is asked again afterwards."""
        if not self.shares_gpus or self._is_asleep:
            return
        if self._yielding.how != "sleeps":
            self._stop()
            return
        asleep: list[bool] = self._pool.tell(Sleep(keeps_weights))
        if not all(asleep):
            self._observer(
                Note("warning", "the engine of a generator cannot sleep after all; all are stopped and started")
            )
            self._stop()
            return
        self._is_asleep = bool(asleep)
        self._ledger.yielded("generate", "sleeps", len(asleep))
        self._checked = _LOADING
        if not keeps_weights:
            self._version = _LOADING

    def _stop(self) -> None:
        self._ledger.yielded("generate", "stops", 1)
        self._pool.stop()
        self._is_asleep = False
        self._version = self._checked = self._engine.version

    def _wake(self) -> None:
        """Where they sleep. Those that do not wake are stopped with all others, and others start."""
        if not self._is_asleep:
            return
        try:
            self._ledger.yielded("generate", "wakes", sum(self._pool.tell(Wake())))
        except WorkerError as error:
            self._observer(Note("warning", f"{error} Generators start anew."))
            self._stop()
        self._is_asleep = False

    def close(self) -> None:
        self._pool.close()


def _compare(probe: PolicyProbe, answer: Scored, dtype: str, version: int) -> float:
    """Largest difference in nats of a sequence. Raises PolicyMismatchError."""
    ours = [np.array(nats) for nats in probe.nats]
    theirs = [np.array(nats) for nats in answer.nats]
    found = compare(theirs, ours, tolerance_of(dtype))
    if found.problem is not None:
        row, now, then, difference, allowed = found.problem
        raise PolicyMismatchError(
            f"after the weights of policy {version} were loaded, a generator gives sequence {row} {now:.6f} nats and the "
            f"trainers gave {then:.6f}: they differ by {difference:.3g}, allowed are {allowed:.3g} in {dtype}. It would have "
            "sampled from another policy than the one that is trained, so the round was stopped. The same command loads the "
            "weights anew; if it happens again, the engine does not compute this architecture as the trainers do."
        )
    if dtype == "float32" and (apart := _greedy_differences(probe, answer)):
        raise PolicyMismatchError(
            f"after the weights of policy {version} were loaded, a generator's likeliest token differs from the trainers' at "
            f"{apart} places of the probe, though log-probs agree. It would have sampled from another policy, so the round was "
            "stopped."
        )
    return found.worst_nats


def _greedy_differences(probe: PolicyProbe, answer: Scored, tie_nats: float = 1e-4) -> int:
    """Places where the likeliest tokens differ and are no tie."""
    places = zip(probe.top_ids, answer.top_ids, probe.top_nats, answer.top_nats, strict=True)
    return sum(
        ours != theirs and abs(a - b) > tie_nats for row in places for ours, theirs, a, b in zip(*row, strict=True)
    )
