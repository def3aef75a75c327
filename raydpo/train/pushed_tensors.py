"""Which tensors a push of weights consists of, by their names in memory.

Comes in: a model that trains. Goes out: one entry for each tensor, tied ones once. Decision: of a LoRA run merged matrices of
adapted layers, modules that are trained whole and what packed matrices unpack to; what the copy needs else it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from raydpo.models.merged_matrix import adapted_matrices, copied_tensors, factors, merged_matrix, unadapted_layers
from raydpo.models.packed import as_saved, matrix_of
from raydpo.models.streamed_weights import kept_buffers


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


def _unpacked(layer: Any) -> Tensor:
    return as_saved(layer, matrix_of(layer.weight))
