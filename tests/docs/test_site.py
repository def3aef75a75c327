"""The pages of the documentation: every command is one, every config loads, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import raydpo
from raydpo import cli
from raydpo.config import Config
from raydpo.config.reference_page import reference_page

ROOT = Path(raydpo.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SECTIONS = set(Config.model_fields)


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [text for language, text in found if language in languages]


def commands() -> Iterator[tuple[str, str]]:
    """(page, words behind `raydpo`) of every line of a shell block that calls it."""
    for page in PAGES:
        for block in blocks(page, "sh", "bash", "console"):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.match(r"^\$?\s*(?:\w+=\S+ )*raydpo (.*?)(?:\s+#.*)?$", line)
                if found:
                    yield page.name, found[1]


@pytest.mark.parametrize(
    ("page", "words"), sorted(set(commands())), ids=lambda text: re.sub(r"[^\w.]+", "-", text)[:60]
)
def test_a_command_is_understood(page: str, words: str) -> None:
    args = cli._arguments([word for word in shlex.split(words) if word not in ("|", "head", ">")][: _end(words)])
    assert callable(args.act)


def _end(words: str) -> int | None:
    split = shlex.split(words)
    marks = [split.index(mark) for mark in ("|", ">") if mark in split]
    return min(marks, default=None)


def configs() -> list[tuple[str, str]]:
    """(page, YAML) of every block that has sections of a config and names no package of the reader's own."""
    found = []
    for page in PAGES:
        for block in blocks(page, "yaml"):
            value = yaml.safe_load(block)
            if (
                isinstance(value, dict)
                and value.keys() & SECTIONS
                and "apiVersion" not in value
                and "my_pkg" not in block
            ):
                found.append((page.name, block))
    return found


def test_every_config_loads_with_what_a_run_needs() -> None:
    assert len(configs()) > 8
    for page, block in configs():
        value = yaml.safe_load(block)
        assert value.keys() <= SECTIONS, page
        whole = {"run": {"dir": "a"}, "model": {"path": "b"}, **value}
        for section in ("run", "model"):
            whole[section] = {**{"run": {"dir": "a"}, "model": {"path": "b"}}[section], **whole[section]}
        if "rounds" in value:
            whole["rounds"] = {"prompts": ["p.jsonl"], "reference": "initial", **value["rounds"]}
        Config.model_validate(whole)


def test_the_reference_of_keys_is_made_of_the_schema() -> None:
    assert (ROOT / "docs/config.md").read_text() == reference_page(), (
        "run: raydpo config schema --markdown > docs/config.md"
    )
    text = reference_page()
    for name, section in (
        ("train", "learning_rate"),
        ("rounds", "sync_every"),
        ("train.lora", "rank"),
        ("judge", "kind"),
    ):
        assert f"**`{name}.{section}`**" in text


@pytest.mark.skipif(find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    pages = {path.name for path in (tmp_path / "site").glob("*.html")}
    assert {"index.html", "tour.html", "config.html", "explorer.html"} <= pages
