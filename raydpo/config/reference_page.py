"""The page docs/config.md: every key with its type, default and meaning.

Goes out: text, made of the JSON schema that editors read, so that the page cannot say anything else.
`raydpo config schema --markdown > docs/config.md` writes it anew; a test compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from raydpo.config.render import schema

_HEAD = """# Configuration

Every key of the YAML file. Made by `raydpo config schema --markdown`; `raydpo config show run.yaml` prints the values of a run
and where each is from, and `raydpo config schema` the JSON schema for an editor. A value on the command line
(`train.learning_rate=5e-7`) wins over the file. A key that does not exist is an error that names the nearest one.
"""
_ORDER = ("run", "model", "data", "objective", "reference", "train", "evaluate", "generate", "judge", "rounds")


def reference_page() -> str:
    """Markdown."""
    found = schema()
    definitions = found["$defs"]
    parts = [_HEAD]
    for name in _ORDER:
        section = _definition(found["properties"][name], definitions)
        if name == "objective":
            parts.append("## objective\n\nIts keys are those of the objective: see [Objectives](objectives.md).\n")
        else:
            parts.append("\n".join(_section(name, section, definitions)))
    others = {key: value for key, value in found["properties"].items() if key not in _ORDER}
    parts.append(
        "## Beside the sections\n\n" + "\n".join(line for each in others.items() for line in _key("", *each)) + "\n"
    )
    return "\n".join(parts)


def _definition(prop: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    for each in (prop, *prop.get("anyOf", ()), *prop.get("allOf", ())):
        if "$ref" in each:
            found: Mapping[str, Any] = definitions[each["$ref"].rpartition("/")[2]]
            return found
    return {}


def _section(name: str, section: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {name}\n"
    nested = []
    required = section.get("required", ())
    for key, prop in section["properties"].items():
        inner = _definition(prop, definitions)
        if inner.get("properties"):
            nested.append((f"{name}.{key}", inner))
        yield from _key(f"{name}.", key, prop, is_required=key in required)
    yield ""
    for inner_name, inner in nested:
        yield from _section(inner_name, inner, definitions)


def _key(prefix: str, key: str, prop: Mapping[str, Any], *, is_required: bool = False) -> Iterator[str]:
    default = "required" if is_required else f"default `{_shown(prop.get('default'))}`"
    text = " ".join(prop.get("description", "").split())
    yield f"- **`{prefix}{key}`** ({', '.join(filter(None, (_kind(prop), default)))})" + (f": {text}" if text else "")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict) and len(value) > 3:
        return "see below"
    return json.dumps(value) if not isinstance(value, str) else value


def _kind(prop: Mapping[str, Any]) -> str:
    """Type and bounds in words."""
    kinds = [each for each in prop.get("anyOf", (prop,)) if each.get("type") != "null"]
    return " or ".join(dict.fromkeys(filter(None, map(_one_kind, kinds))))


def _one_kind(prop: Mapping[str, Any]) -> str:
    if "enum" in prop or "const" in prop:
        return " \\| ".join(f"`{value}`" for value in prop.get("enum", [prop.get("const")]))
    kind = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "array": "list",
    }.get(prop.get("type", ""), "section" if "$ref" in prop else "")
    marks = (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
    return kind + "".join(f" {mark} {prop[name]:,}" for name, mark in marks if isinstance(prop.get(name), int | float))
