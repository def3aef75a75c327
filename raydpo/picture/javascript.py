"""JavaScript of a recorded graph.

Comes in: a `ScalarGraph`. Goes out: a function of the inputs that returns the results by name. Decision: an operation is
the one of torch with its rules at the edges, written once below in `RUNTIME`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from raydpo.picture.recorded import Scalar, ScalarGraph

RUNTIME = """const T = {
  sigmoid: (x) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x))),
  log_sigmoid: (x) => Math.min(0, x) - Math.log1p(Math.exp(-Math.abs(x))),
  log_sigmoid_backward: (g, x) => { const z = Math.exp(-Math.abs(x)); return g * (x < 0 ? 1 - z / (1 + z) : z / (1 + z)); },
  softplus: (x, b, limit) => (x * b > limit ? x : Math.log1p(Math.exp(x * b)) / b),
  softplus_backward: (g, x, b, limit) => (x * b > limit ? g : g * T.sigmoid(x * b)),
  clamp: (x, low, high) => (Number.isNaN(x) ? x : Math.min(Math.max(x, low ?? -Infinity), high ?? Infinity)),
  clamp_min: (x, low) => T.clamp(x, low), clamp_max: (x, high) => T.clamp(x, null, high),
  threshold_backward: (g, x, threshold) => (x <= threshold ? 0 : g),
  sigmoid_backward: (g, y) => g * (1 - y) * y, tanh_backward: (g, y) => g * (1 - y * y),
  sum: (...x) => x.reduce((a, b) => a + b, 0), mean: (...x) => T.sum(...x) / x.length,
  add: (a, b, scale = 1) => a + scale * b, sub: (a, b, scale = 1) => a - scale * b, rsub: (a, b, scale = 1) => b - scale * a,
  mul: (a, b) => a * b, div: (a, b) => a / b, neg: (a) => -a, pow: (a, b) => a ** b, reciprocal: (a) => 1 / a,
  relu: (a) => (a > 0 ? a : 0), maximum: (a, b) => Math.max(a, b), minimum: (a, b) => Math.min(a, b),
  gt: (a, b) => a > b, ge: (a, b) => a >= b, lt: (a, b) => a < b, le: (a, b) => a <= b, eq: (a, b) => a === b,
  ne: (a, b) => a !== b, logical_not: (a) => !a, bitwise_not: (a) => !a, bitwise_and: (a, b) => a && b,
  bitwise_or: (a, b) => a || b, logical_and: (a, b) => a && b, where: (c, a, b) => (c ? a : b), sgn: Math.sign,
  sign: Math.sign, abs: Math.abs, exp: Math.exp, expm1: Math.expm1, log: Math.log, log1p: Math.log1p, sqrt: Math.sqrt,
  tanh: Math.tanh,
};"""
"""torch's operations on one number. Booleans count as 0 and 1 in sums and products, as there."""


def function_of(graph: ScalarGraph) -> str:
    """`(x) => {...}`: x has the inputs by name."""
    needed = graph.needed()
    names: dict[int, str] = {}
    lines: list[str] = []
    written: dict[str, str] = {}
    for number in needed:
        node = graph.nodes[number]
        if node.op == "constant":
            names[number] = _number(node.value)
        elif node.op == "input":
            names[number] = f"x.{node.options[0]}"
        else:
            text = _call(node, names)
            if text not in written:
                written[text] = f"v{len(written)}"
                lines.append(f"const {written[text]} = {text};")
            names[number] = written[text]
    results = ", ".join(f"{name}: {names[number]}" for name, number in graph.results.items())
    return "(x) => { " + " ".join(lines) + " return { " + results + " }; }"


def _call(node: Scalar, names: Mapping[int, str]) -> str:
    given = iter([names[number] for number in node.args])
    if not node.options:
        return f"T.{node.op}({', '.join(given)})"
    places = [next(given) if option == "tensor" else _number(option) for option in node.options]
    return f"T.{node.op}({', '.join(places)})"


def _number(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return json.dumps(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return repr(float(value)) if value != int(value) else str(int(value)) if value >= 0 else f"({int(value)})"
