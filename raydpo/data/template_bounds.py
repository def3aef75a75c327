"""The sandbox that chat templates run in, with a bound on what one operation may make.

Comes in: nothing; `bound_templates` puts the sandbox where transformers compiles its templates. Goes out: TooMuch, raised by
the operation.
Decision: `'x' * 20000000000`, `9 ** 9 ** 9` and text that doubles in a loop are single operations that nothing can
interrupt, so each is asked for its size before it is made. Price: an operator or a filter of a template is a call of Python,
a fifth of the time of a rendering; and that a module of transformers gets another class in the place of its own.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from jinja2.compiler import CodeGenerator
from jinja2.nodes import Concat
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_CHARS = 4 << 20
"""Of what one operation makes, beside what is in the conversation."""
_MOST_REPEATED = 1 << 16
_MOST_ARGUMENT = 1 << 16
_MOST_BITS = 4096
_WIDTH = re.compile(r"[0-9]{5,}|\*")
"""A width or a precision in a format that no template needs."""


class TooMuch(Exception):
    """An operation would make more than a template may."""


class _Room(threading.local):
    """text: the conversation that this thread renders."""

    text: Any = None


_room = _Room()


def make_room(text: Any) -> None:
    """Let operations of this thread make `MOST_CHARS` more than twice the text of `text`, lists and dicts of it."""
    _room.text = text


def check_size(num_chars: int) -> None:
    """Raise TooMuch for more characters or items than there is room for."""
    if num_chars > MOST_CHARS and num_chars > (room := MOST_CHARS + 2 * _num_chars(_room.text)):
        raise TooMuch(f"an operation would make {num_chars:,} characters or items; up to {room:,} may be made")


def _num_chars(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_num_chars, inner))


def _joined(pieces: Iterable[str]) -> str:
    found = list(pieces)
    if (total := sum(map(len, found))) > MOST_CHARS:
        check_size(total)
    return "".join(found)


class _Code(CodeGenerator):
    def visit_Concat(self, node: Concat, frame: Any) -> None:
        """`a ~ b` by the environment's own `concat`, which is bounded; the original joins without asking."""
        self.write("concat(map(str, (")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")))")


class _Filters(dict[str, Any]):
    """Filters, each asked for its arguments; also those that are put in later."""

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        super().__setitem__(name, _asked(name, function))

    def __init__(self, filters: dict[str, Any]) -> None:
        super().__init__()
        for name, function in filters.items():
            self[name] = function


def _asked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    is_join = name == "join"

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 1 or kwargs or is_join:
            _check_arguments(name, args, kwargs)
        return function(*args, **kwargs)

    return call


def _check_arguments(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse widths, counts and replacements that make more than there is room for."""
    for value in (*args[1:], *kwargs.values()):
        if isinstance(value, int) and abs(value) > _MOST_ARGUMENT:
            raise TooMuch(f"{name} with the number {str(value)[:20]}; up to {_MOST_ARGUMENT:,} may be given")
    texts = [value for value in args if isinstance(value, str)]
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[-3:]
        check_size(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "format" and texts and _WIDTH.search(texts[0]):
        raise TooMuch("a format with a width of five digits or one that is asked for")
    elif name == "join":
        check_size(sum(len(item) for item in _items(args) if isinstance(item, str)))


def _items(args: tuple[Any, ...]) -> Iterable[Any]:
    return next((value for value in args if isinstance(value, list | tuple)), ())


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The immutable sandbox, whose operations are asked for their size first."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _Code
    concat = staticmethod(_joined)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filters = _Filters(self.filters)
        self.globals.pop("lipsum", None)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            if type(left) is str and type(right) is str:
                if len(left) + len(right) > MOST_CHARS:
                    check_size(len(left) + len(right))
                return left + right
            if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
                check_size(len(left) + len(right))
        elif operator == "%":
            if isinstance(left, str) and _WIDTH.search(left):
                raise TooMuch("a format with a width of five digits or one that is asked for")
        else:
            _check_product(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(__obj, "__name__", "")
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str | list | tuple):
            _check_arguments(name, (owner, *args), kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        owner = getattr(value, "__self__", None)
        if (
            isinstance(owner, str)
            and getattr(value, "__name__", "") in ("format", "format_map")
            and _WIDTH.search(owner)
        ):
            raise TooMuch("a format with a width of five digits or one that is asked for")
        return super().wrap_str_format(value)


def _check_product(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (abs(right) if operator == "**" else 1) + right.bit_length() * (operator == "*")
        if bits > _MOST_BITS:
            raise TooMuch(f"a whole number of {bits:,} bits; up to {_MOST_BITS:,} may be made")
        return
    for many, count in ((left, right), (right, left)):
        if isinstance(many, str | list | tuple) and isinstance(count, int) and len(many) * count > _MOST_REPEATED:
            raise TooMuch(f"{len(many):,} characters or items {count:,} times; up to {_MOST_REPEATED:,} may be made")


def bound_templates() -> None:
    """Have transformers compile chat templates for the bounded sandbox from now on."""
    from transformers.utils import chat_template_utils

    chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
