"""The import hook that puts a mutant in the place of a module, in this process and in those that it starts.

Comes in: MUTANT_VARIABLE in the environment, a file whose first line is a module's name and the rest its source.
Decision: the variable is inherited, and a `sitecustomize` next to that file runs this one in every Python process below; so
a test that kills processes sees the mutant in them. Only the standard library is used: it runs before anything else.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType

MUTANT_VARIABLE = "MUTANT_OF_RAYDPO"


class _Source(importlib.machinery.SourceFileLoader):
    """Loads a module from another text than its file's; no bytecode is read or written."""

    mutant_source = b""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutant_source, self.path, "exec", dont_inherit=True)


class Finder:
    """First on sys.meta_path; answers for one module."""

    def __init__(self, module: str, source: bytes) -> None:
        self.module, self.source = module, source

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.origin is None:
            return None
        loader = _Source(name, spec.origin)
        loader.mutant_source = self.source
        spec.loader = loader
        return spec


def install() -> None:
    """Put the hook in place if the environment names a mutant."""
    file = os.environ.get(MUTANT_VARIABLE)
    if file:
        module, _, source = Path(file).read_bytes().partition(b"\n")
        sys.meta_path.insert(0, Finder(module.decode(), source))


def prepare(folder: Path, module: str, source: bytes) -> dict[str, str]:
    """Write what `install` reads into `folder`; returns the environment of the process that is to have the mutant."""
    file = folder / "mutant"
    file.write_bytes(module.encode() + b"\n" + source)
    here = Path(__file__).resolve()
    (folder / "sitecustomize.py").write_text(f"import runpy\nrunpy.run_path({str(here)!r})['install']()\n")
    inherited = os.environ.get("PYTHONPATH", "")
    return {MUTANT_VARIABLE: str(file), "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), inherited]))}
