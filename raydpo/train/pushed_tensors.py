"""Which tensors a push of weights consists of, by their names in memory.

Comes in: a model that trains. Goes out: one entry for each tensor, tied ones once. Decision: of a LoRA run the
factors of its adapter and modules that are trained whole, where the copy can merge them into the matrices of a folder; else
merged matrices, and what packed ones unpack to. What the copy needs else it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from raydpo.models.merged_matrix import (
    adapted_matrices,
    copied_tensors,
    described,
    factors,
    merged_matrix,
    unadapted_layers,
)
from raydpo.models.packed import as_saved, matrix_of, packed_layers
from raydpo.models.streamed_weights import kept_buffers
from raydpo.schema.shared_weights import AdaptedMatrix, factor_name


@dataclass(frozen=True)
class PushedTensor:
    """A tensor that generators get.

    name: in memory, without the adapter.
    weights: the parameters that it is made of, of which a rank may hold parts.
    merge: makes it, once they are whole.
    """

    name: str
    weights: list[Any]
    merge: Callable[[], Tensor]

    @property
    def source(self) -> Any:
        """Of what is no merged matrix: the parameter, or the buffer."""
        return self.weights[0] if self.weights else self.merge()


def pushed_tensors(model: Any) -> Iterator[PushedTensor]:
    """All weights of `model` and the buffers that it saves, or what its adapter changes, in an order that ranks share."""
    if not hasattr(model, "peft_config"):
        for name, parameter in model.named_parameters():
            yield PushedTensor(name, [parameter], parameter.detach)
        yield from (PushedTensor(name, [], value.detach) for name, value in kept_buffers(model))
        return
    for name, module, adapter, base in adapted_matrices(model):
        weights = [base, *factors(module, adapter)]
        yield PushedTensor(name, weights, partial(merged_matrix, module, adapter, base))
    for name, layer in unadapted_layers(model):
        yield PushedTensor(name, [layer.weight], partial(_unpacked, layer))
    for name, parameter in copied_tensors(model):
        yield PushedTensor(name, [parameter], parameter.detach)


def adapter_tensors(model: Any) -> Iterator[PushedTensor]:
    """What the adapter of `model` trains: factors of matrices under `factor_name`, and modules that are trained whole."""
    for name, module, adapter, _ in adapted_matrices(model):
        for place, factor in enumerate(factors(module, adapter)):
            yield PushedTensor(factor_name(name, place), [factor], factor.detach)
    for name, parameter in copied_tensors(model):
        yield PushedTensor(name, [parameter], parameter.detach)


def adapted_here(model: Any) -> tuple[AdaptedMatrix, ...]:
    """How the factors of `adapter_tensors` change the matrices of the folder that training began with."""
    return tuple(described(name, module, adapter, base) for name, module, adapter, base in adapted_matrices(model))


def travels_alone(model: Any) -> bool:
    """Whether whoever has the folder that training began with can merge the adapter of `model`: none of it is packed here."""
    return hasattr(model, "peft_config") and next(packed_layers(model), None) is None


def _unpacked(layer: Any) -> Tensor:
    return as_saved(layer, matrix_of(layer.weight))
