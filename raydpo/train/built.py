"""What of a trainer outlives a run: the model in its engine, how it reads sequences, and a small copy to try things on.

Comes in: a `TrainSpec`. Goes out: the built part, under a fingerprint of all that it depends on. Decision: data, order, loss,
seed and schedule are a run's and no part of it; the weights are a run's, too, and are read in place where the next one wants
others (`engine_start`). Price: what cannot be read in place or measured on a small copy is built anew each time, which is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raydpo.artifacts import digest_of
from raydpo.models.layout import Layout
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.memory import Scale, compute_once, decoder_layers
from raydpo.models.work import Work
from raydpo.train.balance import Experts
from raydpo.train.deepspeed_engine import DeepSpeedEngine
from raydpo.train.spec import TrainSpec
from raydpo.train.start import Start

OF_A_RUN = (
    *("learning_rate", "schedule", "warmup_fraction", "tokens_per_microbatch"),
    *("save", "save_every", "save_every_minutes"),
)
"""Keys of `train` that are set at each step, measured for each run, or say what of it is written. All others count, needed by
the engine or not."""


@dataclass
class Built:
    """fingerprint: of what it was built from. engine: DeepSpeed with model and optimizer. layout, work, experts, small, notes:
    as of `Start`. hindrance: why it serves no other run, as a clause; empty where it does."""

    fingerprint: str
    engine: DeepSpeedEngine
    layout: Layout
    work: Work
    experts: Experts | None
    small: tuple[Any, Scale] | None
    notes: tuple[str, ...]
    hindrance: str

    @property
    def scoring(self) -> AnswerLogProbs:
        """The module in the engine."""
        found: AnswerLogProbs = self.engine.engine.module
        return found

    def before_measuring(self) -> None:
        """Forget which layers an earlier run had recomputed."""
        if decoder_layers(self.scoring.model):
            compute_once(self.scoring.model)

    def close(self) -> None:
        """Free the model and the process group."""
        self.engine.close()


def fingerprint(spec: TrainSpec, num_ranks: int, use_gpu: bool) -> str:
    """Equal for two specs whose built parts are equal but for the weights."""
    train = spec.config.train.model_dump(mode="json", exclude=set(OF_A_RUN))
    model = spec.config.model.model_dump(mode="json", exclude={"path", "revision"})
    return digest_of([train, model, spec.dtype, spec.chunk_tokens, num_ranks, use_gpu])


def hindrance(spec: TrainSpec, start: Start) -> str:
    """Why a built part cannot serve another run, as a clause; empty where it can."""
    lora = spec.config.train.lora
    if spec.model.four_bit is not None or spec.model.base is not None:
        return "the base is packed or merged while it is loaded"
    if spec.config.train.compile:
        return "train.compile: what was compiled for one round would run in the next"
    if lora is not None and lora.dora:
        return "DoRA begins with the norms of its matrices"
    return (
        "" if start.small is not None else "the model could not be made small, and is measured whole before it is built"
    )
