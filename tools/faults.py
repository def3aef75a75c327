"""The pages that say what happens when something dies: docs/faults.md and the table of the README.

    python -m tools.faults > docs/faults.md
    python -m tools.faults --readme README.md

Comes in: the rows of `tools/fault_rows.py`, and the defaults of the config. Goes out: Markdown. Decision: a row names tests,
and the test of this module looks for each of them, so that a promise whose test is gone is found. What a test of many moments
saw is in `benchmarks/results/stops.md`, and stands on the page as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

from pydantic import BaseModel

from raydpo.config import Config
from raydpo.config.round_sections import JudgeSection
from tools.fault_rows import FAULTS

ROOT = Path(__file__).parents[1]
SEEN = ROOT / "benchmarks/results/stops.md"
_TITLE = "## What survives what\n\n"
_HEAD = """# What happens when something dies

Made by `python -m tools.faults` from `tools/fault_rows.py`, with the defaults of the config as they are; a test compares, and
finds every test that is named. The same command, in the same place, makes again what is lost, and goes on: there is nothing to
repair or to remove first unless a row says so.

Numbers come out bit for bit the same in float32 on CPUs with as many ranks; elsewhere what is summed in another order differs
in its last digits.
"""


def defaults() -> dict[str, SimpleNamespace]:
    """Sections with their defaults, for the braces of a row."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    found = {
        name: SimpleNamespace(**{key: each.default for key, each in section.model_fields.items()})
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel)
    }
    found["judge"] = SimpleNamespace(function_timeout_s=JudgeSection(kind="function", function="a:b").row_timeout_s)
    return found


def readme_table() -> str:
    """What happens, what you get, and the file of the first test."""
    values = defaults()
    lines = ["| what happens | what you get | test |", "| --- | --- | --- |"]
    for fault in FAULTS:
        file = fault.tests[0].partition("::")[0]
        cells = (fault.happens.format(**values), fault.get.format(**values), f"`tests/{file}`")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """A README whose table is the one of `readme_table`."""
    before, title, rest = readme.partition(_TITLE)
    assert title, "the README has lost the heading of its table"
    after = re.sub(r"\A(?:\|.*\n)*", "", rest)
    return before + title + readme_table() + after


def page() -> str:
    """docs/faults.md."""
    values, parts = defaults(), [_HEAD]
    for kind, faults in groupby(FAULTS, lambda fault: fault.kind):
        parts.append(
            f"\n## {kind}\n\n| what happens | what is lost | what you get | tests |\n| --- | --- | --- | --- |\n"
        )
        for fault in faults:
            tests = "<br>".join(f"`{name}`" for name in fault.tests)
            cells = [text.format(**values) for text in (fault.happens, fault.lost, fault.get)]
            parts.append(f"| {' | '.join([*cells, tests])} |\n")
    return "".join(parts) + ("\n" + SEEN.read_text() if SEEN.is_file() else "")


def main() -> None:
    parser = argparse.ArgumentParser(description="The pages that say what happens when something dies.")
    parser.add_argument("--readme", type=Path, help="write the table of this README anew, instead of printing the page")
    args = parser.parse_args()
    if args.readme is None:
        sys.stdout.write(page())
    else:
        args.readme.write_text(with_table(args.readme.read_text()))


if __name__ == "__main__":
    main()
