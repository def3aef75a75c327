"""What the README says is there: files, make targets, verbs, the config, the Python names."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import yaml

import raydpo
from raydpo.config import Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def block(language, containing):
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return next(text for kind, text in blocks if kind == language and containing in text)


def test_the_file_tree_names_every_package_and_nothing_else():
    tree = block("", "raydpo/\n  cli.py")
    named = {name.rstrip("/") for name in re.findall(r"^  (\S+) ", tree, re.M)}
    present = {p.name for p in (ROOT / "raydpo").iterdir() if p.is_dir() or p.suffix == ".py"}
    assert named == present - {"__init__.py", "__main__.py", "__pycache__"}
    assert all((ROOT / name).is_dir() for name in re.findall(r"^(\w+)/", tree, re.M))


def test_the_make_targets_exist():
    targets = re.findall(r"^make (\w+)", block("sh", "make quickstart"), re.M)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["quickstart", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)


def test_the_config_loads_as_it_stands():
    config = Config.model_validate(yaml.safe_load(block("yaml", "# run.yaml")))
    assert config.objective.parameters == {"beta": 0.1, "label_smoothing": 0.0}
    assert config.train.learning_rate == 5e-7


def test_the_config_of_rounds_loads_as_it_stands():
    config = Config.model_validate(yaml.safe_load(block("yaml", "# rounds.yaml")))
    assert config.rounds.reference == "initial"
    assert config.judge.kind == "reward_model"


def test_the_verbs_exist():
    blocks = block("sh", "raydpo check") + block("sh", "raydpo iterate")
    lines = re.findall(r"^raydpo (.+?)(?:  +#|$)", blocks, re.M)
    for line in lines:
        words = [word for word in line.split() if "=" not in word and not word.endswith(".yaml")]
        done = subprocess.run([sys.executable, "-m", "raydpo", *words, "--help"], capture_output=True, cwd=ROOT)
        assert done.returncode == 0, line


def test_the_python_names_exist():
    for name in re.findall(r"raydpo\.(\w+)", block("python", "import raydpo") + block("python", "raydpo.iterate")):
        assert hasattr(raydpo, name), name


def test_linked_files_and_named_tests_exist():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    named = re.findall(r"`(tests/[\w/.]+)`", README)
    tour = [f"raydpo/{path}" for path in re.findall(r"`((?!examples)\w+/\w+\.py)`", README)]
    assert links
    assert all((ROOT / path).exists() for path in [*links, *named, *tour])


PAGES = [
    path for names in ("*", "docs/*", "cluster/*", "benchmarks/*", "examples/*/*") for path in ROOT.glob(f"{names}.md")
]


def test_every_config_key_that_a_page_names_exists():
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    keys = {
        (page.name, section, key)
        for page in PAGES
        for section, key in re.findall(r"`(\w+)\.(\w+)(?:: [^`]*)?`", page.read_text())
        if section in sections and key not in ("yaml", "json")
    }
    assert len(keys) > 40
    for page, section, key in sorted(keys):
        kinds = [kind for kind in (sections[section], *get_args(sections[section])) if hasattr(kind, "model_fields")]
        assert any(key in kind.model_fields for kind in kinds), f"{page}: {section}.{key}"


def test_no_value_is_left_to_be_determined():
    pages = [README, *(path.read_text() for path in ROOT.glob("examples/*/README.md"))]
    assert not [page for page in pages if re.search(r"TBD|@\w", page)]
