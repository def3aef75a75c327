"""The schemas of KubeRay's objects, as a server would hold a manifest against them, and stricter: unknown fields are refused.

Comes in: a document of a manifest. Goes out: sentences on what is wrong. kuberay/ray_io_v1.json says which version it is of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

_FILE = Path(__file__).parent / "kuberay" / "ray_io_v1.json"


def problems_of(document: dict[str, Any]) -> list[str]:
    """Unknown fields, missing ones, values of other types; "path: what is wrong", sorted."""
    schemas = _closed(json.loads(_FILE.read_text()))
    assert document["apiVersion"] == "ray.io/v1", document["apiVersion"]
    schema = {"$defs": schemas["$defs"], **schemas[document["kind"]]}
    found = Draft202012Validator(schema).iter_errors(document)
    return sorted(f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found)


def _closed(schema: Any) -> Any:
    """The same with `additionalProperties: false` where properties are listed, and without what only Kubernetes reads."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed(value) for key, value in schema.items()}
    lists_all = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if lists_all and not schema.get("x-kubernetes-preserve-unknown-fields"):
        inner.setdefault("additionalProperties", False)
    return inner
