"""One generator: takes requests, several at a time where its engine can, and holds one version of the policy.

Comes in: a `Request`. Goes out: `Generated`, `Scored` or `PolicyLoaded`, each with the version that did it and its seconds; or,
of `Health`, what the engine says of itself.
Decision: whoever asks says which version they mean, and a generator that holds another one, or half of one, refuses. The
price is that a generator that took another's place must be given the weights again before it is of use.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.artifacts.elsewhere import bring
from raydpo.artifacts.shared_files import remove, sweep
from raydpo.errors import WorkerError
from raydpo.generate.engine import Engine, EngineSpec, SleepingEngine, streaming
from raydpo.generate.make_engine import make_engine
from raydpo.schema.samples import (
    DropWeights,
    Generate,
    Generated,
    LoadFolder,
    LoadWeights,
    Request,
    Sample,
    Score,
    Scored,
    Sleep,
    TakeWeights,
    Wake,
)


@dataclass(frozen=True)
class PolicyLoaded:
    """A generator took in weights.

    version: of the policy that came in.
    is_whole: whether it may be used now; otherwise parts are still to come, or the file is not on this node.
    busy_s: seconds that it took.
    """

    version: int
    is_whole: bool
    busy_s: float


@dataclass(frozen=True)
class Health:
    """Asks for `Engine.health`, whichever policy is held."""


class Generator:
    """Loads the policy once; then `generator(request)` answers. A policy whose loading failed cannot be used any more."""

    def __init__(self, spec: EngineSpec) -> None:
        sweep()  # what a push left behind that was killed
        bring(Path(spec.model))
        self.engine: Engine = make_engine(spec)
        self._version: int | None = spec.version
        self._arriving: int | None = None
        self._is_asleep = False
        self._streaming = streaming(self.engine)
        self._done: list[tuple[int, Generated | Scored]] = []
        self._in_work: set[int] = set()
        self._told_steps, self._worked_s = 0, 0.0

    @property
    def takes_several(self) -> bool:
        """Whether `take` and `ended` may be used (`runtime.TakesSeveral`)."""
        return self._streaming is not None

    def take(self, number: int, request: Generate | Score) -> None:
        """Have a request in work; log-probs are computed at once. Raises what `__call__` raises."""
        began_s = time.monotonic()
        if isinstance(request, Score) or not request.prompts:
            self._done.append((number, self(request)))  # type: ignore[arg-type]
            return
        assert self._streaming is not None
        self._check_version(request)
        if not self._in_work:
            self._told_steps, self._worked_s = self._num_steps, 0.0
        self._streaming.begin(number, request.prompts, request.sampling, request.seed)
        self._in_work.add(number)
        self._worked_s += time.monotonic() - began_s

    def ended(self, may_come_more: bool) -> list[tuple[int, Generated | Scored]]:
        """Requests that are done, as soon as there are some; also when there is room for another that may come."""
        assert self._streaming is not None
        began_s = time.monotonic()
        while self._in_work and not self._done and not (may_come_more and self._streaming.has_room):
            for number, answers in self._streaming.step():
                self._in_work.remove(number)
                self._done.append((number, self._generated(answers, self._worked_s + time.monotonic() - began_s)))
                began_s, self._worked_s = time.monotonic(), 0.0
        self._worked_s += time.monotonic() - began_s
        done, self._done = self._done, []
        return done

    def __call__(self, request: Request | Health) -> Generated | Scored | PolicyLoaded | dict[str, Any] | bool:
        """Raises WorkerError for a version that is not loaded, and whatever the engine raises."""
        started_s = time.monotonic()
        match request:
            case Generate():
                self._check_version(request)
                self._told_steps = self._num_steps
                answers = self.engine.generate(request.prompts, request.sampling, request.seed)
                return self._generated(answers, time.monotonic() - started_s)
            case Score():
                version = self._whole_version()
                nats, top_ids, top_nats = self.engine.score(request.sequences)
                return Scored(tuple(nats), tuple(top_ids), tuple(top_nats), version)
            case LoadFolder() if request.version == self._version:
                return PolicyLoaded(request.version, True, 0.0)
            case LoadFolder() | LoadWeights() | TakeWeights() if self._in_work:
                raise WorkerError(
                    f"Policy version {request.version} came while {len(self._in_work)} requests were in work; their answers "
                    "would have been those of a mixture. Let them end first."
                )
            case LoadFolder():
                self._version, self._arriving = None, None
                sweep()
                bring(Path(request.folder))
                self.engine.load_folder(request.folder)
                self._version = request.version
                return PolicyLoaded(request.version, True, time.monotonic() - started_s)
            case LoadWeights():
                self._load_part(request)
                return PolicyLoaded(request.version, request.is_last, time.monotonic() - started_s)
            case TakeWeights():
                is_whole = self._take(request)
                return PolicyLoaded(request.version, is_whole, time.monotonic() - started_s)
            case DropWeights(weights):
                return remove(Path(weights.path), weights.key)
            case Sleep():
                return self._sleep(request.keeps_weights)
            case Wake():
                return self._wake()
            case Health():
                return self.engine.health()

    @property
    def _num_steps(self) -> int:
        return int(getattr(self.engine, "num_steps", 0))

    def _generated(self, answers: Sequence[Sequence[Sample]], busy_s: float) -> Generated:
        """With the steps since the last one."""
        before, self._told_steps = self._told_steps, self._num_steps
        return Generated(tuple(map(tuple, answers)), self._whole_version(), busy_s, self._told_steps - before)

    def _check_version(self, request: Generate) -> None:
        if request.version != (version := self._whole_version()):
            raise WorkerError(
                f"Samples of policy version {request.version} were asked for, and this generator holds version "
                f"{version}. They would have carried the wrong version. Load version {request.version} first."
            )

    def _load_part(self, part: LoadWeights) -> None:
        if self._arriving not in (None, part.version):
            raise WorkerError(
                f"A part of policy version {part.version} came while parts of version {self._arriving} were still coming; the "
                "policy would have been a mixture. Finish one push before the next."
            )
        self._version, self._arriving = None, part.version
        self.engine.load_weights(part.weights)
        if part.is_last:
            self._arriving = None
            self.engine.finish_loading(part.is_partial)
            self._version = part.version

    def _take(self, request: TakeWeights) -> bool:
        """Take weights from a file in place; False where this node does not have it, and the policy stays what it was."""
        from raydpo.generate.arrived import arrived  # these import torch, and the driver knows this module
        from raydpo.generate.mapped_weights import mapped

        weights = mapped(request.weights)
        if weights is None:
            return False
        self._version, self._arriving = None, None
        for part in arrived(weights):
            self.engine.load_weights(part)
        self.engine.finish_loading(request.weights.is_partial)
        self._version = request.version
        return True

    def _sleep(self, keeps_weights: bool) -> bool:
        """Whether it sleeps now."""
        engine = self.engine
        if not isinstance(engine, SleepingEngine) or not engine.can_sleep:
            return False
        if self._in_work:
            raise WorkerError(f"{len(self._in_work)} requests were in work when this generator was to sleep.")
        if not self._is_asleep:
            if not keeps_weights:
                self._version = self._arriving = None
            engine.sleep(keeps_weights)
            self._is_asleep = True
        return True

    def _wake(self) -> bool:
        """Whether it had slept."""
        if not self._is_asleep:
            return False
        assert isinstance(self.engine, SleepingEngine)
        self.engine.wake()
        self._is_asleep = False
        return True

    def _whole_version(self) -> int:
        if self._is_asleep:
            raise WorkerError("This generator sleeps: its policy is not on the device. Wake it first.")
        if self._version is None:
            state = (
                "a load failed" if self._arriving is None else f"parts of version {self._arriving} are still to come"
            )
            raise WorkerError(
                f"This generator holds no whole policy: {state}. Its answers would be those of a mixture of two policies. "
                "Send the parts that are missing, or a whole folder."
            )
        return self._version
