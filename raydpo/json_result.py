"""The result of a verb as a line of JSON, for programs.

Comes in: a summary. Goes out: one line on stdout. Decision: strict JSON that any parser reads, and no secret of the
environment; rows of data stay as they are. The price is that a number that is not finite becomes null.
"""

from __future__ import annotations

import json
import math
from typing import Any

from raydpo.redaction import redacted_values


def print_json(result: Any) -> None:
    """One line of strict JSON: a number that is not finite becomes null, a secret of the environment its name. Rows stay."""
    if isinstance(result, dict):
        result = {key: value if key == "rows" else redacted_values(value) for key, value in result.items()}
    print(json.dumps(_strict(result), allow_nan=False, default=str), flush=True)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
