"""The model that a run published, for who names the run and means its model.

Comes in: a folder that somebody named. Goes out: the model folder. Decision: a merged model before an adapter, because
everybody can read it; of rounds the newest policy that their summary names.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.errors import IntegrityError
from raydpo.schema.json_text import read_object


def published_model(place: Path) -> Path | None:
    """`place` itself where it is a model, else what a run published there; None where it is neither."""
    if (place / "config.json").is_file():
        return place
    for folder in (place / "model_merged", place / "model"):
        if folder.is_dir():
            return folder
    if not ((place / "rounds.json").is_file() and (place / "summary.json").is_file()):
        return None
    try:
        return Path(read_object(place / "summary.json")["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{place / 'summary.json'} does not say which model came out ({error})") from error
