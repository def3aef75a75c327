"""Where the time of a step went: operators with their own time to parts, shares and a table.

Comes in: pieces of time, each with the operator that spent it and who called that. Goes out: time by part, and text.
Decision: each piece belongs to exactly one part, so shares add up. An operator belongs where the outermost operator
around it belongs (the copy inside a matrix product is the product's), but not where a node of the backward pass around
it belongs: what gradient checkpointing recomputes runs below whichever node asks first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from raydpo.train.ranges import OPTIMIZER, WAITING

PARTS = ("attention", "linear layers", "head", "optimizer", "communication", "waiting", "other")
PRODUCTS = frozenset(f"aten::{name}" for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "_scaled_mm"))
"""Operators that multiply matrices and are not made of others."""
MOST_OPERATORS = 25

_WRAPPERS = frozenset(("aten::linear", "aten::matmul", "aten::mkldnn_linear", "aten::_addmm_activation"))
_NODES = re.compile(r"(Mm|Addmm|Bmm|Baddbmm|Linear|LinearFunctionForZeroStage3|MkldnnLinear)(Backward\d*)?$")
_ATTENTION = re.compile(
    r"scaled_?dot_?product|flash|(efficient|cudnn)_?attention|varlen|(?<!log)(?<!log_)softmax", re.I
)
_COLLECTIVE = re.compile(r"c10d::|gloo:|nccl|mpi:|ucc:|record_param_comms")
_OPERATOR = re.compile(r"(?!autograd::|raydpo::)\w+::\w")


@dataclass(frozen=True, eq=False)
class Op:
    """An operator, a node of the backward pass or a named range.

    name: as in the trace.
    shapes: of its inputs.
    caller: the operator that it ran in.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...] = ()
    caller: Op | None = None

    def chain(self) -> Iterator[Op]:
        """This one and its callers, innermost first."""
        op: Op | None = self
        while op is not None:
            yield op
            op = op.caller


@dataclass(frozen=True)
class TimeSlice:
    """Time that `op` itself took, without what it called: microseconds."""

    op: Op
    self_us: float


def is_collective(name: str) -> bool:
    """Whether `name` is that of a collective: an operator, a range of gloo or a kernel of NCCL."""
    return _COLLECTIVE.match(name) is not None


def is_operator(name: str) -> bool:
    return _OPERATOR.match(name) is not None


def part(op: Op, vocabulary: int) -> str:
    """The one of PARTS that `op` belongs to. vocabulary: size of the head; a product with that dimension is the head's.

    Products of two batches of matrices are attention's (eager attention and rotary embeddings; a layer has one weight).
    """
    names = [caller.name for caller in op.chain()]
    if WAITING in names:
        return "waiting"
    if any(map(is_collective, names)):
        return "communication"
    if any(name == OPTIMIZER or name.startswith("Optimizer.step") for name in names):
        return "optimizer"
    for caller in reversed(_operators(op)):
        if _ATTENTION.search(caller.name) and not caller.name.startswith("autograd::"):
            return "attention"
        if caller.name in PRODUCTS or caller.name in _WRAPPERS or _NODES.match(caller.name):
            return _kind_of_product(caller, vocabulary)
    return "other"


def _operators(op: Op) -> list[Op]:
    """`op`, and the operators that it is a part of, innermost first."""
    found: list[Op] = []
    for caller in op.chain():
        if found and not (is_operator(found[-1].name) and is_operator(caller.name)):
            break
        found.append(caller)
    return found


def _kind_of_product(op: Op, vocabulary: int) -> str:
    if op.name.startswith(("Bmm", "Baddbmm")) or sum(len(shape) >= 3 for shape in op.shapes) >= 2:
        return "attention"
    return "head" if any(vocabulary in shape for shape in op.shapes) else "linear layers"


def shares(pieces: Iterable[TimeSlice], vocabulary: int) -> dict[str, float]:
    """Part -> share of the time of all pieces, in the order of PARTS. They add up to 1."""
    times = dict.fromkeys(PARTS, 0.0)
    for piece in pieces:
        times[part(piece.op, vocabulary)] += piece.self_us
    total = sum(times.values()) or 1.0
    return {name: time / total for name, time in times.items()}


def table(pieces: Sequence[TimeSlice], vocabulary: int, num_steps: int, title: str) -> str:
    """Time by part, then the operators that took most; at most 100 columns, times in milliseconds a step."""
    total_ms = sum(piece.self_us for piece in pieces) / 1000 / num_steps
    lines = [*title.splitlines(), "", f"{'part':<16}{'ms a step':>12}{'share':>10}"]
    for name, share in shares(pieces, vocabulary).items():
        lines.append(f"{name:<16}{share * total_ms:>12.3f}{share:>10.2%}")
    lines += [f"{'all':<16}{total_ms:>12.3f}{1:>10.2%}", ""]
    lines.append(f"{'part':<16}{'ms a step':>12}{'share':>10}{'calls':>9}  operator, its own time")
    times: dict[tuple[str, str], list[float]] = {}
    for piece in pieces:
        times.setdefault((part(piece.op, vocabulary), piece.op.name), []).append(piece.self_us)
    most = sorted(times.items(), key=lambda item: -sum(item[1]))[:MOST_OPERATORS]
    for (name, operator), spent in most:
        ms = sum(spent) / 1000 / num_steps
        shown = operator if len(operator) <= 51 else f"{operator[:48]}..."
        lines.append(f"{name:<16}{ms:>12.3f}{ms / (total_ms or 1.0):>10.2%}{len(spent):>9,}  {shown}")
    return "\n".join(lines) + "\n"
