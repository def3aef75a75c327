"""A config as text: YAML that loads back to the same config, with or without origins; and its JSON schema.

In: a `Config`, or nothing for the schema. Out: text and plain dicts.
Decision: one key a line and lists in brackets, so that every value has room for a comment that says where it is from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from raydpo.config.objective_check import readable
from raydpo.config.objective_table import OBJECTIVES
from raydpo.config.outside import PATTERN
from raydpo.config.sections import Config
from raydpo.config.source import PlainDumper
from raydpo.redaction import redacted_values

_PLUS = "further terms of the loss, each an objective with its weight and options"


def dump(config: Config, origins: Mapping[str, str] | None = None) -> str:
    """The whole config as YAML, defaults included, without secrets of the environment. With `origins` each line ends in a
    comment: where it is from."""
    values = redacted_values(config.model_dump(mode="json"))
    if origins is None:
        return "".join(f"{text}\n" for text, _ in _lines(values, "", 0))
    return commented(values, origins)


def commented(values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """Sections as YAML, with a comment behind each dotted key of `origins`."""
    lines = list(_lines(values, "", 0))
    width = min(max(len(text) for text, key in lines if key in origins), 60)
    return "".join(f"{text:<{width}}  # {origins[key]}\n" if key in origins else f"{text}\n" for text, key in lines)


def _lines(values: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        key = prefix + name
        if isinstance(value, dict) and value:
            yield f"{'  ' * depth}{name}:", ""
            yield from _lines(value, f"{key}.", depth + 1)
        else:
            yield f"{'  ' * depth}{name}: {_flow(value)}", key


def _flow(value: Any) -> str:
    readable = "".join(
        map(str, value if isinstance(value, list) else [value])
    ).isprintable()  # else escape: NEL, BOM, ...
    text = yaml.dump(value, Dumper=PlainDumper, default_flow_style=True, width=float("inf"), allow_unicode=readable)
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("\n")


def schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of the YAML file, for editors. Objectives and their parameters are from the table."""
    result = Config.model_json_schema()
    result["$defs"]["ObjectiveSection"] = _objective_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **result}


def _objective_schema() -> dict[str, Any]:
    rows = []
    for row in OBJECTIVES.values():
        properties: dict[str, Any] = {"name": {"const": row.name, "description": row.title}}
        properties |= {name: option.schema() for name, option in readable(row).items()}
        properties["plus"] = {"type": "array", "items": {"type": ["object", "string"]}, "description": _PLUS}
        required = [] if row.name == "dpo" else ["name"]
        rows.append(
            {
                "title": row.name,
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            }
        )
    outside = {"type": "string", "pattern": PATTERN}
    rows.append(
        {
            "title": "an objective of another package, with the options that it declares",
            "type": "object",
            "properties": {"name": outside},
            "required": ["name"],
        }
    )
    short = {"title": "name alone", "anyOf": [{"enum": sorted(OBJECTIVES)}, outside]}
    return {"description": "An objective and its parameters.", "anyOf": [*rows, short]}
