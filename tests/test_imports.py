"""What is imported when: a laptop answers --help and config errors at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import raydpo
from raydpo.config.render import dump
from tests.pipelines.toy import Toy, config, make_toy

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


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"))


def test_the_probe_sees_heavy_modules(tmp_path: Path) -> None:
    assert "pyarrow" in modules_after("import raydpo.schema.rows", tmp_path)


TORCH = {"torch", "ray", "deepspeed", "peft"}

OF_THE_TOKENIZER_LIBRARY = {"torch"}
"""What transformers imports to open a tokenizer (in 5.19 `transformers.generation.logits_process` asks for torch)."""

CHECK = """
import contextlib, io, json, sys
first = {}
class Recorder:
    def find_spec(self, name, path=None, target=None):
        frame = sys._getframe(1)
        while "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        first.setdefault(name, frame.f_globals.get("__name__", ""))
sys.meta_path.insert(0, Recorder())
import raydpo.cli
with contextlib.redirect_stdout(io.StringIO()):
    assert raydpo.cli.main(["check", "run.yaml"]) == 0
def room(value):
    return str(getattr(value, "__module__", None) or getattr(value, "__name__", "")).partition(".")[0]
ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "raydpo"}
held = {name: sorted({room(value) for value in vars(module).values()}) for name, module in ours.items()}
importers = {name: first.get(name, "") for name in HEAVY if name in sys.modules}
json.dump({"held": held, "importers": importers}, sys.stderr)
"""


def check_in_a_fresh_process(folder: Path) -> dict[str, Any]:
    """What each module of raydpo holds (names of packages), and who imported a heavy package first."""
    root = str(Path(raydpo.__file__).parents[1])
    program = f"HEAVY = {sorted(HEAVY)!r}\nimport sys; sys.path.insert(0, {root!r})\n{CHECK}"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("with_rounds", [False, True], ids=["data", "rounds"])
def test_a_check_imports_no_torch_of_its_own(toy: Toy, tmp_path: Path, with_rounds: bool) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "sort 12 34"}\n' * 3)
    rounds = {
        "rounds.prompts": [str(tmp_path / "prompts.jsonl")],
        "rounds.reference": "initial",
        "judge.kind": "json",
        "generate.engine": "vllm",
        "generate.max_new_tokens": 8,
    }
    (tmp_path / "run.yaml").write_text(dump(config(toy, tmp_path / "run", rounds if with_rounds else {})))
    found = check_in_a_fresh_process(tmp_path)
    assert {"raydpo.data.tokenizer", "raydpo.rounds.preflight"} <= found["held"].keys()
    assert {name for name, held in found["held"].items() if TORCH & set(held)} == set()
    importers = {name: by for name, by in found["importers"].items() if name in TORCH}
    assert importers.keys() <= OF_THE_TOKENIZER_LIBRARY
    assert all(by.partition(".")[0] == "transformers" for by in importers.values()), importers


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
