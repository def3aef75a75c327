"""YAML text and `section.key=value` words into a tree of values that remember where each was written.

In: the text of a file, or one override. Out: `Entry` trees, plus the problems found on the way.
Decision: scalars follow the YAML 1.2 core schema, not PyYAML's 1.1: 5e-7 is a number, `no` and 010 are not surprises,
duplicate keys are problems. The price: own resolver and constructor of about forty lines.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from raydpo.config.entry import COMMAND_LINE, Entry
from raydpo.config.source_bounds import nesting_problem, node_problem, text_problem

_TAG = "tag:yaml.org,2002:"
_FINITE = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_FLOAT = rf"(?:{_FINITE}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
_RESOLVERS = (
    ("null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), list("tTfF")),
    ("int", re.compile(r"[-+]?[0-9]+\Z"), list("-+0123456789")),
    ("float", re.compile(_FLOAT), list("-+0123456789.")),
)
_BOOLS = {"true": True, "false": False}
_STRING_STARTS = "*&!%@`"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  PyYAML's own interface


class PlainDumper(yaml.SafeDumper):
    """A dumper that quotes whatever this module, or a YAML 1.1 reader, would not read back as the same text."""


for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _first)
    PlainDumper.add_implicit_resolver(_TAG + _name, _pattern, _first)


def read_yaml(text: str, name: str) -> tuple[Entry, list[tuple[str, str]]]:
    """Parse a whole file called `name`. Returns its tree and problems as (where, sentence).

    Text that is not YAML comes back as an empty tree and that one problem.
    """
    problems: list[tuple[str, str]] = []
    found, node = text_problem(text), None
    try:
        node = _node(text) if found is None else None
        found = node_problem(node) if node is not None else found
    except yaml.YAMLError as error:
        return Entry({}, name), [_syntax_problem(error, name)]
    except RecursionError:
        found = nesting_problem()
    if found is not None:
        return Entry({}, name), [(f"{name}:{found[0]}", found[1])]
    if node is None:
        return Entry(None, f"{name}:1"), problems
    return _entry(node, name, "", (), problems), problems


def _node(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def read_override(word: str) -> tuple[tuple[str, ...], Entry] | str:
    """Parse `section.key=value`, the value being YAML. Returns (path, entry), or the problem as a sentence."""
    key, equals, text = word.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        return f"given {word!r}; allowed: section.key=value, for example train.learning_rate=5e-7"
    if text[:1] in tuple(_STRING_STARTS):  # a glob such as *.jsonl is text here; in YAML it would be an alias
        return path, Entry(text, COMMAND_LINE, text)
    tree, problems = read_yaml(text, COMMAND_LINE)
    if problems:
        return f"{key[:200]}: {problems[0][1]} Put a value with special characters in quotes: {key}='\"...\"'."
    return path, _at(tree, COMMAND_LINE)


def _at(entry: Entry, where: str) -> Entry:
    value = entry.value
    if isinstance(value, dict):
        value = {key: _at(child, where) for key, child in value.items()}
    return Entry(value, where, entry.text)


def _syntax_problem(error: yaml.YAMLError, name: str) -> tuple[str, str]:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).splitlines()[0]
    column = f" at column {mark.column + 1}" if mark else ""
    hint = "Check the indentation, colons and quotes of this line and the one above it."
    about = f"{getattr(error, 'context', None)} {what}"
    if any(word in about for word in ("cannot start any token", "alias", "anchor", "tag", "directive")):
        hint = f"Put a value that starts with a special character ({' '.join(_STRING_STARTS)}) or a tab in quotes."
    return where, f"not valid YAML{column}: {what}. {hint}"


def _entry(node: yaml.Node, name: str, key: str, above: tuple[int, ...], problems: list[tuple[str, str]]) -> Entry:
    where = f"{name}:{node.start_mark.line + 1}"
    label = key or "the file"
    if id(node) in above:
        problems.append((where, f"{label}: an alias that contains itself; write the value out."))
        return Entry(None, where)
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return Entry(_mapping(node, name, key, above, problems), where)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return Entry([_entry(child, name, key, above, problems).plain() for child in node.value], where)
    if isinstance(node, yaml.ScalarNode):
        try:
            return Entry(_scalar(node), where, node.value)
        except ValueError:
            pass
    tag = node.tag.removeprefix(_TAG)
    problems.append((where, f"{label}: the YAML tag {tag!r} is not allowed here; write a plain value without a tag."))
    return Entry(None, where)


def _mapping(
    node: yaml.MappingNode, name: str, key: str, above: tuple[int, ...], problems: list[tuple[str, str]]
) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    first_line: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        child = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
        dotted = f"{key}.{child}" if key else child
        if child in entries:
            problems.append(
                (f"{name}:{line}", f"{dotted}: given twice, first on line {first_line[child]}. Keep one of them.")
            )
            continue
        entry = _entry(value_node, name, dotted, above, problems)
        entries[child] = Entry(entry.value, f"{name}:{line}", entry.text)
        first_line[child] = line
    return entries


def _scalar(node: yaml.ScalarNode) -> Any:
    """The Python value. ValueError for a tag outside the core schema or a text that does not fit its tag."""
    text = node.value
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return _BOOLS[text.lower()] if text.lower() in _BOOLS else _refuse()
        case "int":
            return int(text)
        case "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        case "str":
            return text
    return _refuse()


def _refuse() -> Any:
    raise ValueError
