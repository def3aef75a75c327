"""Where the weights of a push are: a file that every process of a node can map. Its description travels, its bytes do not.

Decision: names, shapes and places are those of the tensors in memory, whoever wrote which part; a reader copies in place. The
file begins with a key, so that a file of the same path on another node is never taken for this one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorPlace:
    """One tensor of the file.

    name: in memory; tied weights come once.
    dtype: as torch names it ("bfloat16").
    shape: of the whole tensor, row by row.
    offset_bytes: of its first element from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int


@dataclass(frozen=True)
class AdaptedMatrix:
    """How the factors of an adapter, which are in the file, change one matrix of the policy that training began with.

    name: in memory; its factors lie under `factor_name`.
    dtype: of the matrix, as torch names it.
    scaling: of the product of the factors.
    is_turned: the matrix is [inputs, outputs].
    num_experts: matrices in one tensor.
    is_transposed: of experts: each is [inputs, outputs].
    """

    name: str
    dtype: str
    scaling: float
    is_turned: bool = False
    num_experts: int = 1
    is_transposed: bool = False


def factor_name(name: str, place: int) -> str:
    """Of a factor of the matrix `name` in a file. place: 0 and 1 of the product, 2 of DoRA's magnitudes."""
    return f"{name}:{place}"


@dataclass(frozen=True)
class SharedWeights:
    """The policy's weights after the last step, in a file on the node of the trainers.

    path: of the file there.
    key: what the file begins with.
    tensors: what it holds.
    num_bytes: of the file.
    is_partial: a LoRA run writes only what its adapter changes.
    adapted: matrices whose factors are there; whoever reads them merges. Of others a LoRA run writes merged matrices.
    start: folder of the policy that `adapted` are matrices of; empty without them.
    """

    path: str
    key: str
    tensors: tuple[TensorPlace, ...]
    num_bytes: int
    is_partial: bool = False
    adapted: tuple[AdaptedMatrix, ...] = ()
    start: str = ""
