"""What may be changed in an expression or statement: from a node to the texts that may stand in its place.

Decision: a change must be one that a test of behaviour can see. Texts, types and messages are left alone; so is what would
raise at once (a minus between lists), because a mutant that cannot run says nothing of the tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_PAIRS = (
    ("min", "max"),
    ("any", "all"),
    ("amin", "amax"),
    ("argmin", "argmax"),
    ("minimum", "maximum"),
    ("floor", "ceil"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("cumsum", "cumprod"),
)
NAMES = dict(_PAIRS) | {second: first for first, second in _PAIRS}
"""Functions and methods that have a counterpart."""
_NOT_SUBTRACTED = (ast.List, ast.ListComp, ast.Tuple, ast.JoinedStr)


def replacements(node: ast.AST) -> Iterator[tuple[str, str]]:
    """(name of the operator, text in place of `node`)."""
    match node:
        case ast.Compare(left, [operator], [right]):
            other = COMPARISONS[type(operator)]()
            yield "comparison", f"({ast.unparse(ast.Compare(left, [other], [right]))})"
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC and _is_number(left, right):
            yield "arithmetic", f"({ast.unparse(ast.BinOp(left, ARITHMETIC[type(operator)](), right))})"
        case ast.AugAssign(target, operator, value) if type(operator) in ARITHMETIC and _is_number(value):
            yield "arithmetic", ast.unparse(ast.AugAssign(target, ARITHMETIC[type(operator)](), value))
        case ast.BoolOp(operator, values):
            other_bool = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield "and-or", f"({ast.unparse(ast.BoolOp(other_bool, values))})"
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield "sign or not removed", f"({ast.unparse(operand)})"
        case ast.Constant(value):
            yield from _constant(value)
        case ast.Call():
            yield from _call(node)
        case _:
            yield from _statement(node)


def _constant(value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, bool):
        yield "constant", str(not value)
    elif isinstance(value, int | float):
        yield "constant", repr(value + 1)
        yield "constant", f"({value - 1!r})"


def _call(node: ast.Call) -> Iterator[tuple[str, str]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in NAMES:
        is_method = isinstance(node.func, ast.Attribute)
        other = ast.Attribute(node.func.value, NAMES[name]) if is_method else ast.Name(NAMES[name])  # type: ignore[attr-defined]
        yield "counterpart", ast.unparse(ast.Call(other, node.args, node.keywords))
    for place, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            fewer = [*node.keywords[:place], *node.keywords[place + 1 :]]
            yield "argument dropped", ast.unparse(ast.Call(node.func, node.args, fewer))
    if len(node.args) > 1 and not any(isinstance(arg, ast.Starred) for arg in node.args):
        yield "argument dropped", ast.unparse(ast.Call(node.func, node.args[:-1], node.keywords))


def _statement(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.Return(value) if value is not None and not _is_none(value):
            yield "return None", "return None"
        case ast.Break():
            yield "break-continue", "continue"
        case ast.Continue():
            yield "break-continue", "break"
        case ast.Expr(ast.Call()):
            yield "call removed", "pass"


def negated(test: ast.expr) -> tuple[str, str] | None:
    """A condition turned round (of `if`, `while`, a comprehension); None where another operator does the same."""
    if isinstance(test, ast.Compare | ast.UnaryOp | ast.Constant):
        return None
    return "condition negated", f"(not ({ast.unparse(test)}))"


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_number(*nodes: ast.expr) -> bool:
    """Whether nothing says that it is text or a list."""
    texts = (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes) for node in nodes)
    return not any(texts) and not any(isinstance(node, _NOT_SUBTRACTED) for node in nodes)
