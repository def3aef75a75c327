"""Bounds of a config file, looked at before anything of it is used: size, nesting, values, digits.

Comes in: the text, then its nodes. Goes out: (line, sentence), None where all is well.
Decision: what aliases would expand to is counted without expanding it, so that a text of a few lines that stands for a billion
values costs what its lines cost. A config of thousands of data files is far below every bound.
"""

from __future__ import annotations

import yaml

_MOST_CHARS = 512 << 10
_MOST_DEPTH = 32
_MOST_VALUES = 100_000
_MOST_KEYS = 1_000
_MOST_KEY_CHARS = 200
_MOST_DIGITS = 400

Problem = tuple[int, str] | None


def text_problem(text: str) -> Problem:
    """What is wrong with the size of a text."""
    if len(text) <= _MOST_CHARS:
        return None
    return 1, (
        f"the text has {len(text):,} characters; up to {_MOST_CHARS:,} are read. Name folders or patterns such as "
        "data/*.jsonl instead of many files."
    )


def nesting_problem() -> Problem:
    """The sentence for a text that cannot even be parsed for its nesting."""
    return 1, f"values are nested too deeply; up to {_MOST_DEPTH} levels are read. Is this the config of a run?"


def node_problem(root: yaml.Node) -> Problem:
    """What is wrong with the nodes of a text, those under aliases counted each time that they are named."""
    found = _Count()
    found.visit(root, 0)
    line = root.start_mark.line + 1
    if found.is_deep:
        return nesting_problem()
    if found.values(root) > _MOST_VALUES:
        return line, (
            f"it stands for {_shown(found.values(root))} values, aliases written out; up to {_MOST_VALUES:,} are read. Write "
            "what is meant without aliases."
        )
    if found.num_keys > _MOST_KEYS:
        return line, f"it has {found.num_keys:,} keys; up to {_MOST_KEYS:,} are read. Is this the config of a run?"
    return found.worst


class _Count:
    """sizes: of each node by its id, with what aliases in it stand for. worst: the first scalar that is too long."""

    def __init__(self) -> None:
        self.num_keys, self.is_deep = 0, False
        self.worst: Problem = None
        self._sizes: dict[int, int] = {}

    def values(self, node: yaml.Node) -> int:
        return self._sizes.get(id(node), 0)

    def visit(self, node: yaml.Node, depth: int) -> None:
        """Count `node`; one that was met before, or that stands in itself, costs nothing more."""
        if id(node) in self._sizes:
            return
        self._sizes[id(node)] = 1
        self.is_deep = self.is_deep or depth > _MOST_DEPTH
        if isinstance(node, yaml.ScalarNode):
            self._scalar(node)
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = node.value
        elif isinstance(node, yaml.MappingNode):
            self.num_keys += len(node.value)
            inner = [child for pair in node.value for child in pair]
            self._keys(node)
        if not self.is_deep:
            for child in inner:
                self.visit(child, depth + 1)
            self._sizes[id(node)] = 1 + sum(map(self.values, inner))

    def _keys(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and len(key.value) > _MOST_KEY_CHARS and self.worst is None:
                self.worst = (
                    key.start_mark.line + 1,
                    f"a key of {len(key.value):,} characters, {key.value[:40]!r}...; none has more than {_MOST_KEY_CHARS}. "
                    "Is a colon or a quote missing?",
                )

    def _scalar(self, node: yaml.ScalarNode) -> None:
        if node.tag.endswith(":int") and len(node.value) > _MOST_DIGITS and self.worst is None:
            self.worst = (
                node.start_mark.line + 1,
                f"a whole number of {len(node.value):,} digits, {node.value[:20]}...; up to {_MOST_DIGITS} are read. Put it "
                "in quotes if it is text.",
            )


def _shown(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"{count:.1e}" if count < 10**300 else "more than 1e300"
