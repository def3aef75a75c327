"""What torch computed, number by number: a graph of scalar operations, the backward pass among them.

Comes in: a function of tensors that holds a few numbers. Goes out: `Scalar`s, in the order they were computed. Decision: torch
itself is watched below autograd, so that a picture of an objective is made from its one formula and the gradient that training
takes; the price is a list of the operations that may occur, and an operation outside it is an error only if a result needs it.
A number that Python reads, for a branch or a function of `math`, would be lost to the graph, and is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_MOVE_NAMES = (
    "_to_copy _unsafe_view alias cat clone copy detach expand index index_select lift_fresh permute reshape select slice "
    "squeeze stack t transpose unbind unsqueeze view"
)
"""Operations that only put numbers elsewhere."""
_FILLED = frozenset(["zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like"])
"""Operations whose result does not depend on the numbers."""
_POINTWISE_NAMES = (
    "abs add bitwise_and bitwise_not bitwise_or clamp clamp_max clamp_min div eq exp expm1 ge gt le log log1p "
    "log_sigmoid_backward logical_and logical_not lt maximum minimum mul ne neg pow reciprocal relu rsub sgn sigmoid "
    "sigmoid_backward sign softplus softplus_backward sqrt sub tanh tanh_backward threshold_backward where"
)
"""Operations on one number at a time, as `javascript.RUNTIME` has them."""
_MOVES, _POINTWISE = frozenset(_MOVE_NAMES.split()), frozenset(_POINTWISE_NAMES.split())


@dataclass(frozen=True)
class Scalar:
    """One number.

    op: "input", "constant", "unknown", or the name of torch's operation.
    args: numbers of other nodes; of a constant none.
    value: what it was while recording.
    options: arguments that are no tensors, by place.
    """

    op: str
    args: tuple[int, ...]
    value: float | bool
    options: tuple[Any, ...] = ()


@dataclass
class ScalarGraph:
    """nodes: in the order they were computed. results: name -> node."""

    nodes: list[Scalar] = field(default_factory=list)
    results: dict[str, int] = field(default_factory=dict)

    def needed(self) -> list[int]:
        """The nodes that results need, rising. Raises ValueError where one of them is unknown."""
        wanted, todo = set[int](), [*self.results.values()]
        while todo:
            number = todo.pop()
            if number in wanted:
                continue
            wanted.add(number)
            if self.nodes[number].op == "unknown":
                raise ValueError(
                    f"torch's operation {self.nodes[number].options[0]} is not in the list of raydpo.picture"
                )
            todo += self.nodes[number].args
        return sorted(wanted)


def record(function: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], at: Mapping[str, float]) -> ScalarGraph:
    """The graph of `function`, float64 numbers by name -> numbers by name; its inputs are leaves that require gradients.

    at: where it is recorded. Raises ValueError for an operation that is not known and matters.
    """
    recorder = _ScalarRecorder()
    leaves = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in at.items()}
    for name, leaf in leaves.items():
        recorder.know(leaf, [recorder.add(Scalar("input", (), float(leaf.detach()), (name,)))])
    with recorder:
        found = function(leaves)
    recorder.graph.results = {name: int(recorder.numbers(tensor).item()) for name, tensor in found.items()}
    recorder.graph.needed()
    return recorder.graph


class _ScalarRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = ScalarGraph()
        self._numbers: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # an id is another tensor's as soon as its own is gone

    def add(self, node: Scalar) -> int:
        self.graph.nodes.append(node)
        return len(self.graph.nodes) - 1

    def know(self, tensor: Tensor, numbers: Sequence[int] | Tensor) -> None:
        self._alive.append(tensor)
        self._numbers[id(tensor)] = torch.as_tensor(numbers, dtype=torch.int64).reshape(tensor.shape)

    def numbers(self, tensor: Tensor) -> Tensor:
        """Scalar of each element: of a tensor that was not computed here, constants."""
        if id(tensor) not in self._numbers:
            values = tensor.detach().reshape(-1).tolist()
            self.know(tensor, [self.add(Scalar("constant", (), value)) for value in values])
        return self._numbers[id(tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name == "_local_scalar_dense":
            return self._read(args[0], func(*args))
        before = [self.numbers(arg) for arg in _tensors(args)] if _is_of_us(args, self._numbers) else []
        out = func(*args, **kwargs)
        if before:
            self._recorded(name, func, args, kwargs, out)
        return out

    def _read(self, tensor: Tensor, value: float | bool) -> float | bool:
        node = self.graph.nodes[int(self.numbers(tensor).reshape(()))]
        if node.op != "constant":
            what = node.options[0] if node.op == "input" else f"the result of {node.op}"
            raise ValueError(f"Python reads {what}: it cannot be moved. Record one graph for each of its values.")
        return value

    def _recorded(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        base = name.rstrip("_") or name
        if name in _MOVES:
            moved = func(*_with_numbers(args, self.numbers), **{k: v for k, v in kwargs.items() if k != "dtype"})
            for tensor, numbers in zip(_tensors([out]), _tensors([moved]), strict=True):
                self.know(tensor, numbers)
        elif base in _POINTWISE:
            self._pointwise(base, args, kwargs, out)
        elif name == "log_sigmoid_forward":
            self._pointwise("log_sigmoid", args, {}, out[0])
            self.know(out[1], [self.add(Scalar("constant", (), 0.0)) for _ in range(out[1].numel())])
        elif name in ("sum", "mean"):
            self._reduced(name, func, args, kwargs, out)
        elif name in _FILLED:
            self.know(out, [self.add(Scalar("constant", (), value)) for value in out.reshape(-1).tolist()])
        elif name in ("select_backward", "slice_backward"):
            self._put_back(name, args, out)
        elif name == "index_add":
            self._added(out, self.numbers(args[0]), (args[2],), self.numbers(args[3]))
        elif name in ("index_put", "index_put_") and args[3:]:
            self._added(out, self.numbers(args[0]), tuple(args[1]), self.numbers(args[2]))
        else:
            for tensor in _tensors([out]):
                known = all(self._is_constant(int(n)) for arg in _tensors(args) for n in self.numbers(arg).reshape(-1))
                node = (lambda value: Scalar("constant", (), value)) if known else _unknown(name)
                self.know(tensor, [self.add(node(value)) for value in tensor.detach().reshape(-1).tolist()])

    def _pointwise(self, op: str, args: Any, kwargs: Any, out: Tensor) -> None:
        given = [self.numbers(arg).expand(out.shape).reshape(-1) for arg in args if isinstance(arg, Tensor)]
        marks = tuple("tensor" if isinstance(arg, Tensor) else arg for arg in args)
        options = (*marks, *(value for key, value in sorted(kwargs.items()) if key == "alpha"))
        values = out.detach().reshape(-1).tolist()
        self.know(out, [self._node(op, [int(g[i]) for g in given], v, options) for i, v in enumerate(values)])

    def _node(self, op: str, args: Sequence[int], value: float | bool, options: tuple[Any, ...]) -> int:
        if all(map(self._is_constant, args)):
            return self.add(Scalar("constant", (), value))
        return self.add(Scalar(op, tuple(args), value, options))

    def _reduced(self, name: str, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Sums of the elements that fall on each place of the result, found by where the result's one-hot gradients go."""
        numbers = self.numbers(args[0])
        if out.numel() == 1:
            groups = [numbers.reshape(-1).tolist()]
        else:
            dims, keep = args[1], args[2] if len(args) > 2 else False
            place = torch.arange(out.numel()).reshape(out.shape)
            for dim in sorted(d % args[0].dim() for d in dims):
                place = place if keep else place.unsqueeze(dim)
            place = place.expand(args[0].shape).reshape(-1)
            groups = [numbers.reshape(-1)[place == i].tolist() for i in range(out.numel())]
        values = out.detach().reshape(-1).tolist()
        self.know(out, [self._node(name, g, v, ()) for g, v in zip(groups, values, strict=True)])

    def _put_back(self, name: str, args: Any, out: Tensor) -> None:
        """A gradient in the place that was read, zeros elsewhere."""
        zero = self.add(Scalar("constant", (), 0.0))
        numbers, (dim, *where) = torch.full(out.shape, zero), args[2:]
        if name == "select_backward":
            numbers.select(dim, *where).copy_(self.numbers(args[0]))
        else:
            start, end, step = where
            view = numbers.transpose(0, dim)[start : min(end, numbers.shape[dim]) : step].transpose(0, dim)
            view.copy_(self.numbers(args[0]))
        self.know(out, numbers)

    def _added(self, out: Tensor, base: Tensor, index: tuple[Tensor, ...], added: Tensor) -> None:
        """`added` on top of `base` at the places of `index`, one after the other."""
        numbers = base.clone()
        places = torch.arange(base.numel()).reshape(base.shape)[index].expand(added.shape).reshape(-1)
        flat = numbers.reshape(-1)
        for place, new in zip(places.tolist(), added.reshape(-1).tolist(), strict=True):
            flat[place] = self._node("sum", [int(flat[place]), new], float("nan"), ())
        self.know(out, flat)

    def _is_constant(self, number: int) -> bool:
        return self.graph.nodes[number].op == "constant"


def _unknown(name: str) -> Callable[[float | bool], Scalar]:
    return lambda value: Scalar("unknown", (), value, (name,))


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _is_of_us(args: Any, numbers: Mapping[int, Tensor]) -> bool:
    return any(id(tensor) in numbers for tensor in _tensors(args))


def _with_numbers(args: Any, numbers: Callable[[Tensor], Tensor]) -> list[Any]:
    """The arguments of a move, with the nodes in place of the values; what says where stays."""
    first, rest = args[0], list(args[1:])
    if isinstance(first, list | tuple):
        return [[numbers(tensor) for tensor in first], *rest]
    return [numbers(first), *rest]
