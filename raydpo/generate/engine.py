"""What every engine that samples can do, and what one is made from.

Comes in: an `EngineSpec`. Goes out: an `Engine`, the door `generate.engine`: a class that is made from the spec in its
actor. Two are ours, `transformers_engine` and `vllm_engine`.
Decision: an engine holds one copy of the policy for as long as it lives, and new weights go into that copy in place. The
price is that between two parts of new weights it holds no policy at all; `Generator` refuses to use it then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from raydpo.config.vllm_section import VllmSection
from raydpo.schema.samples import Sample, Sampling

Scores = tuple[list[tuple[float, ...]], list[tuple[int, ...]], list[tuple[float, ...]]]
"""nats, top_ids, top_nats, as in `raydpo.schema.samples.Scored`."""


@dataclass(frozen=True)
class EngineSpec:
    """How an engine is made.

    model: folder with safetensors, tokenizer and generation config.
    engine: a name as in `generate.engine`.
    dtype: compute dtype.
    use_gpu: whether it has a GPU.
    max_length: tokens of a prompt with its answer at most; None: the positions of the model.
    threads: of its process.
    version: of the policy in `model`.
    tokens_per_batch: padded tokens, answers at their longest, of one batch of the transformers engine. It decides
        which answers are sampled together, so with another number the same seed gives other answers.
    gpu_share: the part of its GPU that is this engine's; others have the rest.
    parallel: (tensor, pipeline) parallel size of vLLM: their product are its devices.
    vllm: how vLLM is started.
    takes_weights: whether new weights will come; a model that judges gets none, and its folder may hold what none
        would fit.
    end_ids: tokens that end an answer beside those that the model's files name.
    """

    model: str
    engine: str = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    use_gpu: bool = False
    max_length: int | None = None
    threads: int = 1
    version: int = 0
    tokens_per_batch: int = 16384
    gpu_share: float = 1.0
    parallel: tuple[int, int] = (1, 1)
    vllm: VllmSection = field(default_factory=VllmSection)
    takes_weights: bool = True
    end_ids: tuple[int, ...] = ()


class Engine(Protocol):
    """One copy of a policy. Prompts and answers are token ids of its tokenizer."""

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> list[list[Sample]]:
        """`sampling.num_answers` answers to each prompt. The same arguments give the same answers on the same machine.

        Raises DataError that names every prompt that is empty, too long or not of this vocabulary.
        """
        ...

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Scores:
        """Teacher-forced log-probs, float32 nats, at temperature 1, of the answer in each (prompt ids, answer ids).

        Raises DataError as `generate` does.
        """
        ...

    def load_folder(self, path: str) -> None:
        """Take all weights from a folder of the same architecture that transformers can load, in place.

        Main memory holds a second copy of the model meanwhile. Raises ConfigError when the folder cannot be loaded, and
        WorkerError that names the weights that do not fit.
        """
        ...

    def load_weights(self, weights: Mapping[str, Any]) -> None:
        """Take these weights (name in memory -> CPU tensor); more may follow, `finish_loading` comes last.

        Raises WorkerError that names the weights that do not fit, before any of them was taken.
        """
        ...

    def finish_loading(self, is_partial: bool = False) -> None:
        """After the last part. Raises WorkerError that names the weights that came in no part, unless it was partial."""
        ...

    def health(self) -> dict[str, Any]:
        """Where and in what the policy computes (engine, device, dtype, threads), and, as `probe_nats`, a log-prob of a fixed
        probe."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """What an engine has in addition that samples for several requests at a time. One without it gets them one by one."""

    @property
    def num_steps(self) -> int:
        """Forwards so far."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another request would be worked on at once."""
        ...

    def begin(self, number: int, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> None:
        """Have a request in work, with the arguments and errors of `generate`. number: of none in work."""
        ...

    def step(self) -> list[tuple[int, list[list[Sample]]]]:
        """Work for a moment: numbers and answers of the requests that are done."""
        ...


@runtime_checkable
class SleepingEngine(Protocol):
    """What an engine has in addition whose memory on the device can be given up and taken again in its process."""

    @property
    def can_sleep(self) -> bool:
        """Whether `sleep` really frees the device here."""
        ...

    def sleep(self, keeps_weights: bool) -> None:
        """Free the device, while nothing is in work. keeps_weights: in main memory; otherwise a load follows `wake`."""
        ...

    def wake(self) -> None:
        """Take the device's memory again. Raises WorkerError when not all of it is there."""
        ...


def streaming(engine: Engine) -> StreamingEngine | None:
    """The engine, if it samples for several requests at a time; None also where its class has `generate` of its own and `begin`
    of an ancestor, whose samples would be others."""
    if not isinstance(engine, StreamingEngine):
        return None
    kinds = type(engine).__mro__
    begin, generate = (
        next((place for place, kind in enumerate(kinds) if name in vars(kind)), 0) for name in ("begin", "generate")
    )
    return engine if begin <= generate else None


PROBE = (((0, 1), (2, 3, 4)),)
"""A sequence that every vocabulary has. Engines with the same weights give it the same log-prob, up to rounding."""


def probe_nats(engine: Engine) -> float:
    """Summed log-prob of the probe; what a forward gives, so a sign that the engine works."""
    return sum(engine.score(PROBE)[0][0])
