"""The loss of a run: one term or a weighted sum of several, each divided by its own count over the global batch.

In: the checked terms of the config. Out: a scalar to go backward from, and sums and counts for the metrics.
MPO (Wang et al. 2024, arXiv 2411.10442) is such a sum: 0.8 dpo + 0.2 bco_pair + 1 sft.
Decision: metrics are those of the first term; of the others, only their loss is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from raydpo.objectives import make_objective
from raydpo.objectives.modifiers import modified
from raydpo.objectives.seam import BatchObjective, Objective, ObjectiveInput, ObjectiveOutput

Observations = Mapping[str, Tensor]
"""Kind of pass over the global batch -> what it saw, [B, k] float64."""


class Row(Protocol):
    """What a loss must know of an objective; `raydpo.config.ObjectiveRow` says it."""

    @property
    def needs_reference(self) -> bool: ...
    @property
    def batch(self) -> Literal["none", "answers", "mismatched"]: ...


class TermSpec(Protocol):
    """One checked term; `raydpo.config.objective_row.Term`."""

    @property
    def name(self) -> str: ...
    @property
    def row(self) -> Row: ...
    @property
    def weight(self) -> float: ...
    @property
    def parameters(self) -> Mapping[str, float]: ...
    @property
    def modifiers(self) -> Mapping[str, float | bool]: ...
    @property
    def outside(self) -> Any: ...


@dataclass(frozen=True)
class _Bound:
    spec: TermSpec
    objective: Objective

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def kind(self) -> str:
        return self.spec.row.batch


def _made(term: TermSpec) -> Objective:
    """The objective of a term: ours by its name, or one of another package."""
    if term.outside is None:
        return make_objective(term.name, term.parameters)
    made: Objective = term.outside(**term.parameters)
    return made


class Loss:
    """Terms bound to their objectives. `batch_kinds`: what has to be observed before the loss can be had."""

    def __init__(self, terms: Iterable[TermSpec]) -> None:
        self._terms = [_Bound(term, _made(term)) for term in terms]
        self.needs_reference = any(term.spec.row.needs_reference for term in self._terms)
        self.needs_collisions = any(term.spec.modifiers.get("wpo", False) for term in self._terms)
        self.batch_kinds = tuple(dict.fromkeys(term.kind for term in self._terms if term.kind != "none"))

    def counts(self, num_examples: int, num_tokens: int) -> list[int]:
        """Denominator of each term for a global batch. num_tokens: of the first answer of each example."""
        return [num_examples if term.objective.unit == "examples" else num_tokens for term in self._terms]

    def unseen(self, kind: str, num_examples: int, device: torch.device | str) -> Tensor:
        """Where a pass of `kind` records what it sees: [num_examples, k] float64 zeros, so that ranks can be added."""
        width = sum(cast(Any, term.objective).num_values for term in self._of(kind))
        return torch.zeros((num_examples, width), dtype=torch.float64, device=device)

    def observe(self, kind: str, inputs: ObjectiveInput) -> Tensor:
        """What the terms must know of each example: [E, k]."""
        objectives = [(cast(BatchObjective, term.objective), term) for term in self._of(kind)]
        seen = [objective.observe(modified(inputs, term.spec.modifiers)) for objective, term in objectives]
        return torch.cat(seen, dim=1)

    def __call__(self, inputs: ObjectiveInput, counts: Iterable[int], seen: Observations) -> ObjectiveOutput:
        """The share of this micro-batch in the loss of the global batch, divided already. Metrics are sums and counts."""
        loss: Tensor | float = 0.0
        metrics: dict[str, tuple[Tensor, int | Tensor]] = {}
        columns = dict.fromkeys(seen, 0)
        for term, count in zip(self._terms, counts, strict=True):
            given = modified(inputs, term.spec.modifiers)
            if term.kind != "none":
                first, number = columns[term.kind], cast(Any, term.objective).num_values
                given = replace(given, batch=seen[term.kind][:, first : first + number])
                columns[term.kind] += number
            output = term.objective(given)
            loss = loss + term.spec.weight / count * output.loss_sum
            metrics = metrics or dict(output.metrics)
            if not self._is_plain:
                metrics[f"loss/{term.name}"] = output.metrics["loss"]
        if not self._is_plain:
            del metrics["loss"]
        assert isinstance(loss, Tensor)
        return ObjectiveOutput(loss, metrics)

    def total(self, metrics: dict[str, float], prefix: str = "") -> dict[str, float]:
        """Means of a sum of terms with `loss`, the weighted sum of theirs, added."""
        if self._is_plain:
            return metrics
        parts = [(term.spec.weight, metrics.get(f"{prefix}loss/{term.name}")) for term in self._terms]
        known = [weight * mean for weight, mean in parts if mean is not None]
        return {**metrics, f"{prefix}loss": sum(known)} if len(known) == len(parts) else metrics

    @property
    def _is_plain(self) -> bool:
        return len(self._terms) == 1 and self._terms[0].spec.weight == 1

    def _of(self, kind: str) -> list[_Bound]:
        return [term for term in self._terms if term.kind == kind]
