"""What pyproject.toml asks for, as data.

Comes in: pyproject.toml of the working directory. Goes out: requirement texts, with or without their upper bounds.
Decision: the file is read, not the metadata of an installed raydpo, which is as old as its last installation.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+(?:\[[\w,-]+\])?)(?P<bounds>.*)")


def asked(extras: Iterable[str] = (), pyproject: Path = Path("pyproject.toml")) -> list[str]:
    """Requirement texts of the project and of `extras`. Raises KeyError for an extra that there is not."""
    project = tomllib.loads(pyproject.read_text())["project"]
    texts: list[str] = list(project["dependencies"])
    return texts + [text for extra in extras for text in project["optional-dependencies"][extra]]


def without_upper_bounds(requirement: str) -> str:
    """ "ray[default]>=2.54,<2.61" -> "ray[default]>=2.54"."""
    found = _REQUIREMENT.fullmatch(requirement)
    assert found is not None, requirement
    kept = [bound for bound in found["bounds"].split(",") if bound and not bound.startswith(("<", "=="))]
    return found["name"] + ",".join(kept)


def locked(constraints: Path = Path("constraints.txt")) -> dict[str, str]:
    """Normalised name -> version, of every line of the lock."""
    lines = (line.strip() for line in constraints.read_text().splitlines())
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {normalised(name): version for name, version in pairs}


def normalised(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
