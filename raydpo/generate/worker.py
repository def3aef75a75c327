"""One generator: takes requests one by one and holds one version of the policy.

Comes in: a `Request`. Goes out: `Generated`, `Scored` or `PolicyLoaded`, each with the version that did it and its seconds; or,
of `Health`, what the engine says of itself.
Decision: whoever asks says which version they mean, and a generator that holds another one, or half of one, refuses. The
price is that a generator that took another's place must be given the weights again before it is of use.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydpo.artifacts.elsewhere import bring
from raydpo.errors import WorkerError
from raydpo.generate.engine import Engine, EngineSpec
from raydpo.generate.make_engine import make_engine
from raydpo.schema.samples import Generate, Generated, LoadFolder, LoadWeights, Request, Score, Scored


@dataclass(frozen=True)
class PolicyLoaded:
    """A generator took in weights.

    version: of the policy that came in.
    is_whole: whether it may be used now, or parts are still to come.
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
        bring(Path(spec.model))
        self.engine: Engine = make_engine(spec)
        self._version: int | None = spec.version
        self._arriving: int | None = None

    def __call__(self, request: Request | Health) -> Generated | Scored | PolicyLoaded | dict[str, Any]:
        """Raises WorkerError for a version that is not loaded, and whatever the engine raises."""
        started_s = time.monotonic()
        match request:
            case Generate():
                version = self._whole_version()
                if request.version != version:
                    raise WorkerError(
                        f"Samples of policy version {request.version} were asked for, and this generator holds version "
                        f"{version}. They would have carried the wrong version. Load version {request.version} first."
                    )
                answers = self.engine.generate(request.prompts, request.sampling, request.seed)
                return Generated(tuple(map(tuple, answers)), version, time.monotonic() - started_s)
            case Score():
                version = self._whole_version()
                nats, top_ids, top_nats = self.engine.score(request.sequences)
                return Scored(tuple(nats), tuple(top_ids), tuple(top_nats), version)
            case LoadFolder():
                self._version, self._arriving = None, None
                bring(Path(request.folder))
                self.engine.load_folder(request.folder)
                self._version = request.version
                return PolicyLoaded(request.version, True, time.monotonic() - started_s)
            case LoadWeights():
                self._load_part(request)
                return PolicyLoaded(request.version, request.is_last, time.monotonic() - started_s)
            case Health():
                return self.engine.health()

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

    def _whole_version(self) -> int:
        if self._version is None:
            state = (
                "a load failed" if self._arriving is None else f"parts of version {self._arriving} are still to come"
            )
            raise WorkerError(
                f"This generator holds no whole policy: {state}. Its answers would be those of a mixture of two policies. "
                "Send the parts that are missing, or a whole folder."
            )
        return self._version
