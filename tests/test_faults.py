"""What the pages promise of deaths and stops has a test, and the pages are those of the rows."""

import ast
from pathlib import Path

from tools import faults
from tools.fault_rows import FAULTS

ROOT = Path(__file__).parents[1]


def test_every_row_has_a_test_that_exists():
    missing = []
    for name in dict.fromkeys(name for fault in FAULTS for name in fault.tests):
        file, _, function = name.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        if function not in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
            missing.append(name)
    assert not missing
    assert all(fault.tests for fault in FAULTS)


def test_the_page_is_what_the_command_prints():
    assert faults.page() == (ROOT / "docs/faults.md").read_text(), "run: python -m tools.faults > docs/faults.md"


def test_the_table_of_the_readme_is_that_of_the_rows():
    readme = (ROOT / "README.md").read_text()
    assert faults.with_table(readme) == readme, "run: python -m tools.faults --readme README.md"


def test_a_default_is_read_from_the_config():
    assert "`train.max_failures` (3) times" in faults.readme_table()
    assert "`judge.timeout_s` (600)" in faults.readme_table()
    assert "{" not in faults.readme_table()
