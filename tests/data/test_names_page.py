"""docs/data.md says what the program reads by."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import get_args

import pytest

from raydpo.cli import main
from raydpo.config.meanings import MEANINGS, Meaning
from raydpo.data.aliases import OTHERS, PAIRS, PROMPTS
from raydpo.data.column_names import KINDS, kind_of_column
from raydpo.data.names_page import page

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats", "--markdown"]) == 0
    assert capsys.readouterr().out == page() == PAGE.read_text(), "raydpo formats --markdown > docs/data.md"


def test_a_name_stands_in_one_kind_and_in_small_letters() -> None:
    counted = Counter(name for kind in KINDS for name in kind.names)
    assert [name for name, number in counted.items() if number > 1 or name != name.lower()] == []
    assert all(kind.meaning is None or kind.meaning in MEANINGS for kind in KINDS)
    assert set(MEANINGS) == set(get_args(Meaning))


def test_names_that_stand_for_others_stop_a_run_where_nothing_reads_them() -> None:
    names = [*PROMPTS, *(name for names in OTHERS.values() for name in names)]
    assert all((kind := kind_of_column(name.upper())) is not None and kind.stops for name in names)
    votes = {alias.needs[-1] for alias in PAIRS if alias.convert is not None and len(alias.needs) == 3}
    assert all((kind := kind_of_column(name)) is not None and kind.stops for name in votes)


def test_the_table_for_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["formats"]) == 0
    shown = capsys.readouterr().out
    assert "standard        plain text" in shown
    assert "system_prompt" in shown
    assert main(["formats", "--json"]) == 0
    assert '"labelled"' in capsys.readouterr().out
