"""Chat templates of real families: what is trained is what apply_chat_template writes, or the row says why not."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools import templates
from tools.templates import Cell

ROOT = Path(__file__).resolve().parents[2]
PLAIN = ("plain", "multi-turn", "system")


@cache
def found() -> dict[str, dict[str, Cell]]:
    pytest.importorskip("trl", reason="the templates are read from TRL's wheel")
    return templates.table()


needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="the page has the templates of vLLM's wheel, too")


@needs_vllm
def test_the_page_is_what_the_command_prints() -> None:
    page = templates.page(found())
    assert page == (ROOT / "docs/templates.md").read_text(), "run: python -m tools.templates > docs/templates.md"


@needs_vllm
def test_vllms_templates_are_read_where_it_is_installed() -> None:
    assert len([family for family in found() if family.startswith("vllm/")]) >= 5


def test_no_cell_is_silent() -> None:
    """Used and equal but for the end or BOS, or left out with the piece or the template's own words."""
    assert len(found()) >= 30
    for family, row in found().items():
        assert set(row) == set(templates.CONVERSATIONS)
        for name, cell in row.items():
            assert cell.is_used == (not cell.reason), (family, name)
            assert cell.difference in ("", "end", "BOS", "BOS and end"), (family, name, cell.difference)
            assert cell.is_used or cell.reason.split(":")[0] in (
                "template_dropped",
                "template_error",
                "prefix_mismatch",
            )


def test_what_a_template_writes_whole_is_used() -> None:
    cells = [cell for row in found().values() for name, cell in row.items() if name in PLAIN and cell.is_whole]
    assert len(cells) >= 90
    assert sum(cell.is_used for cell in cells) >= 0.95 * len(cells)


def test_what_a_template_leaves_out_is_left_out() -> None:
    dropped = [(family, name) for family, row in found().items() for name, cell in row.items() if not cell.is_whole]
    assert dropped
    assert not [where for where in dropped if found()[where[0]][where[1]].is_used]
