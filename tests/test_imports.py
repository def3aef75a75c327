"""What is imported when: a laptop answers --help and config errors at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import raydpo

HEAVY = {"torch", "ray", "transformers", "pyarrow", "deepspeed", "peft", "datasets", "tensorboard", "rich"}
RUN = "run: {dir: a}\nmodel: {path: b}\n"


def modules_after(code: str, cwd: Path) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    program = f"import sys, json\n{code}\njson.dump(sorted({{m.partition('.')[0] for m in sys.modules}}), sys.stderr)"
    root = str(Path(raydpo.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{program}"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import raydpo",
        "import raydpo; raydpo.Config; raydpo.load; raydpo.errors.UserError",
        "import raydpo.cli, contextlib\nwith contextlib.suppress(SystemExit): raydpo.cli.main(['--help'])",
        "import raydpo.cli\nassert raydpo.cli.main(['config', 'show', 'run.yaml', 'run.seed=1']) == 0",
        "import raydpo.cli\nassert raydpo.cli.main(['config', 'schema']) == 0",
        "import raydpo.cli\nassert raydpo.cli.main(['objectives']) == 0",
        "import raydpo.cli\nassert raydpo.cli.main(['objectives', '--json']) == 0",
        "import raydpo.cli, io\nkeep, sys.stderr = sys.stderr, io.StringIO()\n"
        "assert raydpo.cli.main(['train', 'run.yaml', 'run.seed=x']) == 2\nsys.stderr = keep",
    ],
    ids=["import", "names", "help", "show", "schema", "objectives", "objectives json", "config error"],
)
def test_nothing_heavy(tmp_path: Path, code: str) -> None:
    (tmp_path / "run.yaml").write_text(RUN)
    loaded = modules_after(code, tmp_path)
    assert "raydpo" in loaded
    assert not loaded & HEAVY


def test_the_probe_sees_heavy_modules(tmp_path: Path) -> None:
    assert "pyarrow" in modules_after("import raydpo.schema", tmp_path)


def test_public_names_are_sorted_and_there() -> None:
    assert list(raydpo.__all__) == sorted(raydpo.__all__)
    assert set(raydpo.__all__) <= set(dir(raydpo))
    for name in raydpo.__all__:
        assert getattr(raydpo, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tain'"):
        raydpo.tain  # noqa: B018


def test_the_verb_train_and_the_package_train_are_one() -> None:
    import raydpo.train.spec
    from raydpo.train import TrainSpec

    assert raydpo.train.TrainSpec is TrainSpec
    assert callable(raydpo.train)
    with pytest.raises(TypeError):
        raydpo.train()


def test_version_is_the_package_version() -> None:
    text = (Path(raydpo.__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{raydpo.__version__}"' in text
