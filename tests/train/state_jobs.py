"""What ranks are asked to do with a training state: save it, go on from one, and say what they hold.

The state is told by DeepSpeed's own functions, which gather, and by torch's optimizer: nothing here asks the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import deepspeed
import numpy as np
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from raydpo.errors import RaydpoError
from raydpo.train import TrainSpec
from raydpo.train.trainer import Trainer, build_trainer
from tests.train.gang import Place

State = dict[str, np.ndarray]
"""float32: "name/master", "name/exp_avg", "name/exp_avg_sq" and "name/step"."""


class Visit(NamedTuple):
    """One stay in a cell.

    loaded: the state after loading; empty at a start. loss: of the step after it.
    saved: the state that was saved after that step. next_loss: of the step that follows.
    """

    loaded: State
    loss: float
    saved: State
    next_loss: float


def visit(place: Place, spec: TrainSpec, step: int, source: Path | None, target: Path) -> Visit:
    """Go on from `source` at `step` (None: from the model), make a step, save to `target`, make one more."""
    trainer = build_trainer(place, spec)
    loaded: State = {}
    if source is not None:
        trainer.engine.load(source)
        loaded = state_of(trainer)
    _, metrics = trainer.update(step)
    saved = state_of(trainer)
    trainer.engine.snapshot().write(target)
    _, after = trainer.update(step + 1)
    return Visit(loaded, metrics["loss"], saved, after["loss"])


def load_each(place: Place, spec: TrainSpec, step: int, sources: Sequence[Path]) -> list[tuple[State, float]]:
    """(state, loss of the step after it) of one saved state after the other, in one engine."""
    trainer = build_trainer(place, spec)
    found = []
    for source in sources:
        trainer.engine.load(source)
        found.append((state_of(trainer), trainer.update(step)[1]["loss"]))
    return found


def refusal(place: Place, spec: TrainSpec, sources: Sequence[Path]) -> str:
    """What a rank says when it is to go on from its own of `sources`."""
    trainer = build_trainer(place, spec)
    try:
        trainer.engine.load(sources[place.rank])
    except RaydpoError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def state_of(trainer: Trainer) -> State:
    """What all ranks hold together. Fails where the weights that forwards read are not those of the float32 copy."""
    engine, stage = trainer.engine.engine, trainer.engine.stage
    zero = engine.optimizer
    if stage in (1, 2):
        zero._lazy_init_hp_params_optimizer_state()
    steps = {float(state["step"]) for state in (zero if stage == 0 else zero.optimizer).state.values()}
    (step,) = steps
    found: State = {}
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        for kind, value in _values(zero, stage, parameter).items():
            found[f"{name}/{kind}"] = value.detach().float().cpu().numpy().copy()
        found[f"{name}/step"] = np.float32(step)
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            weights = parameter.detach().float().numpy()
            master = torch.from_numpy(found[f"{name}/master"]).to(parameter.dtype).float().numpy()
            assert np.array_equal(weights, master), f"{name}: weights are not those of the float32 copy"
    return found


def _values(zero: Any, stage: int, parameter: Any) -> dict[str, Any]:
    kinds = ("exp_avg", "exp_avg_sq")
    if stage == 0:
        return {"master": parameter} | {kind: zero.state[parameter][kind] for kind in kinds}
    moments = {kind: safe_get_full_optimizer_state(parameter, kind) for kind in kinds}
    return {"master": safe_get_full_fp32_param(parameter)} | moments
