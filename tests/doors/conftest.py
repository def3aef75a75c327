"""The examples of docs/extend.md as a package outside raydpo, a session without Ray, and a tiny model."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raydpo
from raydpo.runtime import session
from tests.pipelines.toy import Toy, make_toy, read_pairs

PAGE = (Path(raydpo.__file__).parents[1] / "docs/extend.md").read_text()


@pytest.fixture(scope="package")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Module of `my_pkg` -> its text, as the page has it; importable."""
    root = tmp_path_factory.mktemp("outside")
    (root / "my_pkg").mkdir()
    (root / "my_pkg/__init__.py").write_text("")
    found = {}
    for text in re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M):
        (name,) = re.findall(r"\A# my_pkg/(\w+)\.py$", text, re.M)
        (root / f"my_pkg/{name}.py").write_text(text)
        found[name] = text
    sys.path.insert(0, str(root))
    yield found
    sys.path.remove(str(root))


@pytest.fixture(scope="package")
def machine(examples: dict[str, str]) -> Iterator[None]:
    """What `run.runtime: local` opens by itself, with four CPUs whatever the machine has."""
    with session(kind="local", local_cpus=4):
        yield


@pytest.fixture(scope="package")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Its files hold rankings, which no format of ours reads."""
    toy = make_toy(tmp_path_factory.mktemp("toy"))
    for path in (toy.train, toy.eval):
        rows = [{"question": row["prompt"], "ranking": [row["chosen"], row["rejected"]]} for row in read_pairs(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return toy
