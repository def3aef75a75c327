"""A shell script as commands of words, with what is literal put in for its variables.

Comes in: the text of a script. Goes out: commands, each with the line it begins at and the variables set by then.
Decision: nothing is run. Assignments, defaults of `${NAME:-x}`, arrays of words, whole-number arithmetic and loops
over one value
are read; whatever else has a `$` stays as it is written, as `Unresolved`, and is an error only where its value matters.
"""

from __future__ import annotations

import ast
import operator
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raydpo.importing.given_options import Unresolved

_ASSIGNED = re.compile(r"(?:export\s+|readonly\s+|local\s+)?([A-Za-z_]\w*)=(.*)\Z", re.S)
_BRACED = re.compile(r"\$\{([A-Za-z_]\w*|\d)(?:\[@\])?(?::?-([^{}]*))?\}|\$([A-Za-z_]\w*|\d)")
_ARITHMETIC = re.compile(r"\$\(\((.+?)\)\)|\$\(\s*expr ([^()]+)\)")
_HERE_DOCUMENT = re.compile(r"^\s*read .*?\b([A-Za-z_]\w*)\s*<<-?\s*['\"]?(\w+)['\"]?\s*$")
_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.floordiv}
_OPERATORS |= {ast.FloorDiv: operator.floordiv}
_MOST_DIGITS = 12
_JOINTS = ("&&", "||", ";", "|", "&")


@dataclass(frozen=True)
class ShellCommand:
    """words: with variables put in. line: of its first word. variables: those set before it and in front of it."""

    words: tuple[str, ...]
    line: int
    variables: Mapping[str, str]


def commands_of(text: str, given: Mapping[str, str]) -> Iterator[ShellCommand]:
    """Every command. given: variables that win over the script's own."""
    variables: dict[str, list[str]] = {}
    for line, logical in _logical_lines(text):
        here = _HERE_DOCUMENT.match(logical.partition("\n")[0])
        if here:
            variables[here[1]] = [" ".join(logical.split("\n")[1:])]
            continue
        for part in _parts(_words(logical)):
            words, own = list(part), dict(variables)
            if words[:1] == ["for"] and "in" in words[:3]:
                values = [value for word in words[3:] if word not in ("do",) for value in _put_in(word, own, given)]
                variables[words[1]] = values
                continue
            while words and (found := _ASSIGNED.match(words[0])):
                own[found[1]] = _value_words(found[2], own, given)
                words.pop(0)
            if not words or words in (["\\"], ["export"]):
                variables = own
                continue
            resolved = [value for word in words for value in _put_in(word, own, given)]
            yield ShellCommand(tuple(resolved), line, {**{n: v[0] for n, v in own.items() if len(v) == 1}, **given})


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations, arrays over several lines and here-documents joined; comments taken out."""
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        first, parts = at, []
        here = _HERE_DOCUMENT.match(lines[at])
        if here:
            at += 1
            parts = [lines[first]]
            while at < len(lines) and lines[at].strip() != here[2]:
                parts.append(_uncommented(lines[at]).rstrip().removesuffix("\\"))
                at += 1
            at += 1
            yield first + 1, "\n".join(parts)
            continue
        while at < len(lines):
            plain = _uncommented(lines[at]).rstrip()
            at += 1
            joined = " ".join([*parts, plain])
            if plain.endswith("\\"):
                parts.append(plain[:-1])
            elif parts and not plain and at < len(lines) and lines[at - 1].lstrip().startswith("#"):
                continue
            elif re.match(r"\s*\w+=\(", joined) and joined.count("(") > joined.count(")"):
                parts.append(plain)
            else:
                parts.append(plain)
                break
        if whole := " ".join(parts).strip():
            yield first + 1, whole


def _uncommented(line: str) -> str:
    """Without a comment that begins a word outside quotes."""
    quote = ""
    for place, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (place == 0 or line[place - 1].isspace()):
            return line[:place]
    return line


def _words(logical: str) -> list[str]:
    """Words with their quotes taken off; a single-quoted `$` is kept from being read as a variable."""
    held = re.sub(r"\$\([^()]*(?:\([^()]*\)[^()]*)*\)", lambda found: found[0].replace(" ", "\x01"), logical)
    held = re.sub(r"(?<==)\(([^()]*)\)", lambda found: "(" + found[1].replace(" ", "\x02") + ")", held)
    lexer = shlex.shlex(held, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return [word.replace("\x01", " ") for word in lexer]
    except ValueError:
        return held.replace("\x01", " ").split()


def _parts(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word in _JOINTS:
            if part:
                yield part
            part = []
        else:
            part.append(word)
    if part:
        yield part


def _value_words(text: str, variables: Mapping[str, list[str]], given: Mapping[str, str]) -> list[str]:
    if text.startswith("(") and text.endswith(")"):
        inner = text[1:-1].replace("\x02", " ").split()
        return [value for word in inner for value in _put_in(word, variables, given)]
    return [_one(text.replace("\x02", " "), variables, given)]


def _put_in(word: str, variables: Mapping[str, list[str]], given: Mapping[str, str]) -> list[str]:
    """The words that one word becomes: an array gives several, a variable of several words too where it stands alone."""
    alone = re.fullmatch(r"\$\{(\w+)\[@\]\}|\$\{?(\w+)\}?", word)
    if alone:
        name = alone[1] or alone[2]
        if name in given:
            return [given[name]]
        values = variables.get(name, [])
        if alone[1] and values:
            return list(values)
        if len(values) == 1 and not isinstance(values[0], Unresolved) and " " in values[0] and "--" in values[0]:
            return values[0].split()
    return [_one(word, variables, given)]


def _one(word: str, variables: Mapping[str, list[str]], given: Mapping[str, str]) -> str:
    def put(found: re.Match[str]) -> str:
        name = found[1] or found[3]
        if name in given:
            return given[name]
        values = variables.get(name, [])
        if len(values) == 1 and not isinstance(values[0], Unresolved):
            return values[0]
        return found[2] if found[2] is not None and not values else found[0]

    text = _BRACED.sub(put, word)
    text = _ARITHMETIC.sub(lambda found: _counted(found[1] or found[2], found[0], variables, given), text)
    return Unresolved(text) if "$" in text or "`" in text else text


def _counted(text: str, whole: str, variables: Mapping[str, list[str]], given: Mapping[str, str]) -> str:
    def put(found: re.Match[str]) -> str:
        values = [given[found[0]]] if found[0] in given else variables.get(found[0], [])
        return values[0] if len(values) == 1 else found[0]

    try:
        return str(_number(ast.parse(re.sub(r"\b[A-Za-z_]\w*\b", put, text.strip()), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError):
        return whole


def _number(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int) and len(str(node.value)) <= _MOST_DIGITS:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return int(_OPERATORS[type(node.op)](_number(node.left), _number(node.right)))
    raise ValueError
