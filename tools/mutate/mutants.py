"""From a file to its mutants: every place where an operator fits, but for texts, types, messages and decorators.

Goes out: `Mutant`s, each a span of the source with another text in its place; all other bytes of the file stay.
Decision: spans, not unparsed trees, so that the report shows the line as it would stand in the file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.mutate.operators import negated, replacements


@dataclass(frozen=True)
class Mutant:
    """A change. path: from the root of the repository; line: counted from 1; start, stop: bytes of the file."""

    path: str
    line: int
    operator: str
    start: int
    stop: int
    text: str

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    def apply(self, source: bytes) -> bytes:
        """The file with the change in it."""
        return source[: self.start] + self.text.encode() + source[self.stop :]

    def lines(self, source: bytes) -> tuple[str, str]:
        """The line as it is and as it would be."""
        return tuple(text.decode().splitlines()[self.line - 1].strip() for text in (source, self.apply(source)))  # type: ignore[return-value]


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """All mutants of a file, in the order of their places. Those that are no Python or change nothing are left out."""
    source = (root / path).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = {}
    for node, operator, text in _changes(ast.parse(source)):
        start = starts[node.lineno - 1] + node.col_offset
        stop = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator]
        mutant = Mutant(path.as_posix(), node.lineno, operator, start, stop, text)
        if _differs(source, mutant.apply(source)):
            found[(start, stop, text)] = mutant
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.stop, mutant.text))


def _differs(source: bytes, changed: bytes) -> bool:
    try:
        return ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def _changes(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str, str]]:
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        pending += _inside(node)
        if isinstance(node, ast.expr | ast.stmt):
            for operator, text in replacements(node):
                yield node, operator, text
        test = getattr(node, "test", None)
        for condition in [*getattr(node, "ifs", []), *([test] if isinstance(test, ast.expr) else [])]:
            if (change := negated(condition)) is not None:
                yield condition, *change


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """The children that may be changed."""
    match node:
        case ast.Raise() | ast.Assert() | ast.JoinedStr() | ast.Import() | ast.ImportFrom():
            return
        case ast.If(ast.Name("TYPE_CHECKING"), _, orelse):
            yield from orelse
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            yield from [*node.args.defaults, *(default for default in node.args.kw_defaults if default), *node.body]
        case ast.ClassDef():
            yield from node.body
        case ast.AnnAssign():
            yield from [node.value] if node.value else []
        case ast.Assign() if _is_name_of_types(node):
            return
        case ast.Call(ast.Name("isinstance" | "issubclass" | "cast" | "TypeVar")):
            yield from node.args[:1]
        case _:
            yield from ast.iter_child_nodes(node)


def _is_name_of_types(node: ast.Assign) -> bool:
    """`__all__`, and names of types (`Rows = Sequence[...]`), which are written like classes."""
    names = [target.id for target in node.targets if isinstance(target, ast.Name)]
    return any(name == "__all__" or (name[:1].isupper() and not name.isupper()) for name in names)
