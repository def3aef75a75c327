"""Files of other projects, written here, and what the tests of this folder ask of an import."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from raydpo.config import Config
from raydpo.errors import ConfigError
from raydpo.importing.conversion import Imported, ImportWishes, convert


def imported(folder: Path, name: str, text: str, *overrides: str, **wishes: Any) -> tuple[Imported, Config]:
    """What comes of a file, and the config that the YAML loads to: the round trip is part of every test."""
    path = written(folder, name, text)
    found = convert(path, ImportWishes(overrides=overrides, **wishes))
    out = folder / "run.yaml"
    out.write_text(found.text)
    return found, Config.load(out)


def problems(folder: Path, name: str, text: str, *overrides: str, **wishes: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refused:
        convert(written(folder, name, text), ImportWishes(overrides=overrides, **wishes))
    return refused.value.problems


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return str(path)


def fate(found: Imported, option: str) -> str:
    return next(each.fate for each in found.fates if each.option.name == option)
