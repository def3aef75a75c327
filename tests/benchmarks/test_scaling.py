"""docs/scaling.md says what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.scaling import TEXTS, table

ROOT = Path(__file__).parents[2]


def test_the_page_has_the_newest_coefficients() -> None:
    newest = max((ROOT / "benchmarks" / "results").glob("scaling_*.json"), key=lambda path: path.stem[-10:])
    file = json.loads(newest.read_text())
    assert file["results"].keys() == TEXTS.keys()
    assert table(file) in (ROOT / "docs" / "scaling.md").read_text()
