"""What of each objective can be moved by hand, and what then is shown: its sliders and the function behind them.

Comes in: a row of the table of objectives. Goes out: `Picture`s. Decision: the objective itself is called, with one "token" an
answer that has the whole log-prob, and told lengths; its own metrics say loss and rewards, autograd says the gradients. AOT
compares with whoever has the same rank in the batch, so that is a slider, and its loss on the difference is called instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from raydpo.config.objective_row import ObjectiveRow, Parameter
from raydpo.config.objective_table import OBJECTIVES
from raydpo.objectives import OBJECTIVE_CLASSES, ObjectiveInput, from_log_ratios
from raydpo.picture.recorded import ScalarGraph, record

Numbers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Slider:
    """A number that can be moved.

    name: as the function has it.
    label: for people, with its unit.
    low, high, start: where it moves and begins.
    is_log: moves by factors.
    is_whole: whole numbers alone.
    """

    name: str
    label: str
    low: float
    high: float
    start: float
    is_log: bool = False
    is_whole: bool = False


@dataclass(frozen=True)
class Picture:
    """An objective, or one label of it.

    name, title: of the objective.
    variant: its label ("desirable"), or the value of a parameter that the objective branches on; else empty.
    sliders: first those of the answers, then the others.
    graph: inputs by the names of `sliders` -> loss, margin, probability, and a gradient "d_NAME" of each answer's slider.
    """

    name: str
    title: str
    variant: str
    sliders: tuple[Slider, ...]
    graph: ScalarGraph


@dataclass(frozen=True)
class ToldLengths(ObjectiveInput):
    """An input whose tokens are whole answers. lengths: [E, A] tokens that they count for."""

    lengths: Tensor | None = None

    def answer_lengths(self) -> Tensor:
        assert self.lengths is not None
        return self.lengths


_RATIO = ("log-ratio of the {} answer, nats", -40.0, 40.0)
_LOG_PROB = ("log-prob of the {} answer, nats", -200.0, -1.0)
_ANSWERS = {"pairs": {"chosen": 3.0, "rejected": -3.0}, "labels": {"answer": 3.0}, "answers": {"answer": 3.0}}
_START_NATS = {"chosen": -40.0, "rejected": -50.0, "answer": -40.0}


def pictures() -> list[Picture]:
    """Of every objective of ours, in the order of the table."""
    return [picture for row in OBJECTIVES.values() for picture in _of_row(row)]


def _of_row(row: ObjectiveRow) -> list[Picture]:
    if row.data == "labels":
        return [_picture(row, label, {"label": label == "desirable"}) for label in ("desirable", "undesirable")]
    if row.name in _STEPS:
        name, values = _STEPS[row.name]
        return [_picture(row, f"{name} = {value:g}", {name: value}) for value in values]
    return [_picture(row, "", {})]


def _picture(row: ObjectiveRow, variant: str, held: Mapping[str, float]) -> Picture:
    sliders = tuple(slider for slider in _sliders(row) if slider.name not in held)
    answers = tuple(_ANSWERS[row.data])

    def function(numbers: Numbers) -> Numbers:
        found = dict(_shown(row, numbers, held))
        wanted = [numbers[name] for name in answers]
        for name, gradient in zip(answers, torch.autograd.grad(found["loss"], wanted), strict=True):
            found[f"d_{name}"] = gradient
        return found

    at = {slider.name: slider.start for slider in sliders}
    return Picture(row.name, row.title, variant, sliders, record(function, at))


def _sliders(row: ObjectiveRow) -> list[Slider]:
    label, low, high = _RATIO if row.needs_reference else _LOG_PROB
    starts = _ANSWERS[row.data] if row.needs_reference else {name: _START_NATS[name] for name in _ANSWERS[row.data]}
    which = {"chosen": "chosen", "rejected": "rejected", "answer": "one"}
    found = [Slider(name, label.format(which[name]), low, high, start) for name, start in starts.items()]
    if row.reads != "sums":
        found += [
            Slider(f"{name}_tokens", f"tokens of the {which[name]} answer", 1, 400, 40, True, True) for name in starts
        ]
    found += [_of_parameter(name, each) for name, each in row.parameters.items()]
    return found + _BATCH_SLIDERS.get(row.name, [])


def _of_parameter(name: str, parameter: Parameter) -> Slider:
    low, high, start = parameter.low, parameter.high, parameter.default
    if high <= 1:
        return Slider(name, name, low, high - 0.01 * parameter.high_open, start)
    if low < 0:
        return Slider(name, name, -1.0, 1.0, start)
    if start:
        return Slider(name, name, start / 30, start * 30, start, is_log=True)
    return Slider(name, name, 0.0, 10.0, start)


_STEPS = {
    "exo": ("label_smoothing", (0.001, 0.01, 0.1, 0.3)),
    "alphapo": ("alpha", (0.25, 0.0, -0.25, 1.0)),
}
"""Parameters that an objective reads as plain numbers, and the values that can be chosen; the default is the first."""
_BATCH_SLIDERS = {
    "kto": [Slider("mismatched", "mean log-ratio of the batch's mismatched answers, nats", -20.0, 20.0, 1.0)],
    "bco": [
        Slider("desirable_mean", "mean log-ratio of the batch's desirable answers, nats", -40.0, 40.0, 2.0),
        Slider("undesirable_mean", "mean log-ratio of the batch's undesirable answers, nats", -40.0, 40.0, -2.0),
    ],
    "aot": [
        Slider(
            "shift", "reference margin of the pair less that of the pair it is measured against, nats", -20.0, 20.0, 2.0
        )
    ],
    "aot_unpaired": [
        Slider("other_rejected", "log-ratio of the rejected answer of equal rank, nats", -40.0, 40.0, -2.0),
        Slider("other_chosen", "log-ratio of the chosen answer of equal rank, nats", -40.0, 40.0, 2.0),
    ],
}


def _shown(row: ObjectiveRow, numbers: Numbers, held: Mapping[str, float]) -> Numbers:
    parameters: dict[str, Any] = {name: held[name] if name in held else numbers[name] for name in row.parameters}
    objective: Any = OBJECTIVE_CLASSES[row.name](**parameters)
    inputs = _inputs(row, numbers, bool(held.get("label")))
    output = _CALLS.get(row.name, _call)(objective, inputs, numbers)
    value, count = output.metrics["loss"]
    loss = output.loss_sum / count
    assert loss.shape == value.shape
    if row.data == "answers":
        return {"loss": loss}
    if row.data == "labels":
        signed = objective.beta * (numbers["answer"] - _middle(row, output, objective))
        margin = signed if held["label"] else -signed
    else:
        margin = output.metrics["rewards/margins"][0]
    return {"loss": loss, "margin": margin, "probability": torch.sigmoid(margin)}


def _middle(row: ObjectiveRow, output: Any, objective: Any) -> Tensor | float:
    """The threshold between the two labels, in nats, as the objective's metrics have it."""
    if row.name == "kto":
        return cast(Tensor, output.metrics["kl"][0])
    return cast(Tensor, output.metrics["rewards/shift"][0] / objective.beta) if row.name == "bco" else 0.0


def _inputs(row: ObjectiveRow, numbers: Numbers, is_desirable: bool) -> ToldLengths:
    names = tuple(_ANSWERS[row.data])
    nats = torch.stack([numbers[name] for name in names])
    told = [numbers.get(f"{name}_tokens", torch.ones((), dtype=torch.float64)) for name in names]
    place = torch.arange(len(names))
    inputs = ToldLengths(
        policy_nats=nats,
        reference_nats=torch.zeros(len(names), dtype=torch.float64),
        sequences=place,
        answers=place[None],
        num_sequences=len(names),
        labels=torch.tensor([is_desirable]) if row.data == "labels" else None,
        lengths=torch.stack(told)[None],
    )
    return replace(inputs, batch=_batch(row, numbers), positions=torch.zeros(1, dtype=torch.int64))


def _batch(row: ObjectiveRow, numbers: Numbers) -> Tensor | None:
    """What the objective saw of the global batch, of one row for each number that can be moved."""
    if row.name == "kto":
        return numbers["mismatched"].reshape(1, 1)
    if row.name == "bco":
        means = torch.stack([numbers["desirable_mean"], numbers["undesirable_mean"]])
        return torch.stack([means, torch.tensor([1.0, 0.0], dtype=torch.float64)], dim=1)
    return None


def _call(objective: Any, inputs: ObjectiveInput, numbers: Numbers) -> Any:
    return objective(inputs)


def _aot(objective: Any, inputs: ObjectiveInput, numbers: Numbers) -> Any:
    return from_log_ratios(inputs, objective.beta, lambda u, v: objective.losses(u - v + numbers["shift"]))


def _aot_unpaired(objective: Any, inputs: ObjectiveInput, numbers: Numbers) -> Any:
    def losses(u: Tensor, v: Tensor) -> Tensor:
        """As `AOTUnpaired` has it: the gradient of both members, and each counted twice."""
        both = objective.losses(u - numbers["other_rejected"]) + objective.losses(numbers["other_chosen"] - v)
        return cast(Tensor, both - both.detach() / 2)

    return from_log_ratios(inputs, objective.beta, losses)


_CALLS: dict[str, Callable[[Any, ObjectiveInput, Numbers], Any]] = {"aot": _aot, "aot_unpaired": _aot_unpaired}
