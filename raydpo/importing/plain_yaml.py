"""YAML of other projects: values as their readers see them, with the line of every key.

Comes in: text. Goes out: a tree of mappings whose leaves know their line. Decision: bounds of `raydpo.config.source_bounds`, a
safe loader, YAML 1.1 as PyYAML reads it (yes is true), but 5e-7 as the number that everybody means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from raydpo.config.source_bounds import nesting_problem, node_problem, text_problem
from raydpo.errors import ConfigError

_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+\Z")


class PlainLoader(yaml.SafeLoader):
    """PyYAML's, with 5e-7 as a number."""


PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+0123456789"))


@dataclass(frozen=True)
class ThereLeaf:
    """A value that is no mapping, and the line of its key."""

    value: Any
    line: int


Tree = dict[str, Any]


def read_tree(text: str, name: str) -> Tree:
    """The mapping of a YAML (or JSON) text called `name`. Leaves are `ThereLeaf`, mappings in them dicts. ConfigError."""
    problem = text_problem(text)
    loader = PlainLoader(text) if problem is None else None
    try:
        node = loader.get_single_node() if loader is not None else None
        problem = node_problem(node) if node is not None else problem
        if problem is None and loader is not None and isinstance(node, yaml.MappingNode):
            return _mapping(loader, node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or error}.") from None
    except RecursionError:
        problem = nesting_problem()
    finally:
        if loader is not None:
            loader.dispose()
    if problem is not None:
        raise ConfigError(f"{name}:{problem[0]}: {problem[1]}")
    raise ConfigError(f"{name}: it holds no mapping of options; a config of another project has keys and values.")


def _mapping(loader: PlainLoader, node: yaml.MappingNode) -> Tree:
    found: Tree = {}
    for key, value in node.value:
        name = str(loader.construct_object(key, deep=True))
        line = key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode) and value.value:
            found[name] = _mapping(loader, value)
        else:
            found[name] = ThereLeaf(loader.construct_object(value, deep=True), line)
    return found


def plain(tree: Any) -> Any:
    """A tree without lines."""
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return tree.value if isinstance(tree, ThereLeaf) else tree


def first_line(tree: Any) -> int:
    """The line at which a tree begins."""
    if isinstance(tree, dict):
        return min((first_line(value) for value in tree.values()), default=1)
    return tree.line if isinstance(tree, ThereLeaf) else 1
