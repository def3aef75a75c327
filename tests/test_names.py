"""A name stands for one thing: no two modules of the package have one name, and no two classes."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import raydpo

PACKAGE = Path(raydpo.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path.name not in ("__init__.py", "__main__.py")]


def more_than_once(names: list[str]) -> list[str]:
    return sorted(name for name, number in Counter(names).items() if number > 1)


def classes_of(path: Path) -> list[str]:
    return [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]


def test_no_module_and_no_room_has_the_name_of_another() -> None:
    rooms = [path.parent.name for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE]
    assert len(MODULES) > 150
    assert more_than_once([*rooms, *(path.stem for path in MODULES)]) == []


def test_no_class_has_the_name_of_another() -> None:
    assert more_than_once([name for path in FILES for name in classes_of(path)]) == []


def test_no_name_of_a_room_is_both_a_module_and_what_is_looked_up_in_it() -> None:
    """`from raydpo.room import name` would give the module or the function, whichever was imported first."""
    for room in (path.parent for path in FILES if path.name == "__init__.py"):
        looked_up = {
            ast.literal_eval(key)
            for node in ast.parse((room / "__init__.py").read_text()).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("_HOME", "_HOMES")
            for key in node.value.keys
        }
        beside = {path.stem for path in room.glob("*.py")} - {"__init__"}
        assert not looked_up & beside, room.name
