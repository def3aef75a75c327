"""What the config.json of a model folder says, read as it stands: without transformers, torch or the weights.

Comes in: a folder. Goes out: values, None for what it does not say. Decision: of a model with several parts (vision, audio)
the part that reads text is meant, and what that part leaves out is looked up around it. An adapter says what its base says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.models.adapter_files import is_adapter, num_rows
from raydpo.models.resolve import adapter_base
from raydpo.schema.json_text import read_object

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Names under which models say how many positions they have. Those that carry a state along or use ALiBi say nothing."""


def num_positions(config: Any) -> int | None:
    """Tokens of a sequence at most, by a transformers config or that of its part that reads text; None: no limit."""
    text = config.get_text_config()
    found = (getattr(text, name, None) for name in POSITIONS)
    return next((positions for positions in found if isinstance(positions, int)), None)


def config_of(key: str, folder: Path) -> dict[str, Any]:
    """config.json of the model that `key` names, of an adapter that of its base. Raises ConfigError when it cannot be read."""
    if is_adapter(folder):
        return config_of(key, adapter_base(folder, weights=False).folder)
    try:
        return read_object(folder / "config.json")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key}: {folder / 'config.json'} cannot be read: {error}. Is the model whole?") from error


def value_of(described: dict[str, Any], name: str, *more: str) -> Any:
    """What config.json says under `name` in the part that reads text, else around it, else in the parts `more`; or None."""
    places = [described.get("text_config"), described, *(described.get(part) for part in more)]
    return next((place[name] for place in places if isinstance(place, dict) and place.get(name) is not None), None)


def of_text(described: dict[str, Any], *names: str) -> int | None:
    """The first of `names` that has a whole number in the part that reads text, or else around it."""
    part = described.get("text_config")
    places = [part, described] if isinstance(part, dict) else [described]
    found = (place[name] for place in places for name in names if isinstance(place.get(name), int))
    return next(found, None)


def num_embeddings(key: str, folder: Path) -> int | None:
    """Rows of the embedding: ids from there on have none. None where the config does not say."""
    if is_adapter(folder):
        return num_rows(folder) or num_embeddings(key, adapter_base(folder, weights=False).folder)
    return of_text(config_of(key, folder), "vocab_size")
