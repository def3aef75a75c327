"""The gates and the tests on the newest versions of everything, and what broke.

Comes in: pyproject.toml, whose upper bounds are left out here, and arguments for pytest. Goes out: on the screen, the
versions that are not those of constraints.txt, the gates and tests that failed; exit status 1 when any did.
Decision: an environment of its own (.venv-newest) which is upgraded at every run, so the tested one stays as it is.
Only the standard library is used: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from tools.requirements import asked, locked, normalised, without_upper_bounds

GATES = (
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["lint-imports"],
    ["codespell"],
)


def main() -> int:
    """Install, check, test, report."""
    parser = argparse.ArgumentParser(prog="make newest")
    parser.add_argument("--venv", type=Path, default=Path(".venv-newest"))
    parser.add_argument("--extras", default="dev", help="of pyproject.toml, with commas")
    parser.add_argument("--torch", default="torch", help="what is installed first")
    parser.add_argument("tests", nargs="*", help="arguments for pytest; none: all tests")
    args = parser.parse_args()
    python = str(args.venv / "bin" / "python")
    install(args.venv, python, args.torch, args.extras.split(","))
    broken = [" ".join(gate) for gate in GATES if not succeeds([str(args.venv / "bin" / gate[0]), *gate[1:]])]
    broken += failed_tests(python, args.venv / "newest.xml", args.tests)
    moved = differences(installed(python), locked())
    print(f"\n{len(moved)} versions are not those of constraints.txt:")
    print("\n".join(f"  {line}" for line in moved))
    print("".join(f"\nbeyond pyproject.toml: {line}" for line in beyond_bounds(python)))
    print(f"\nbroken: {len(broken)}" + "".join(f"\n  {what}" for what in broken))
    return int(bool(broken))


def install(venv: Path, python: str, torch: str, extras: list[str]) -> None:
    """The newest of everything that pip finds together. Raises CalledProcessError when it finds nothing."""
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy", "eager"]
    wanted = [without_upper_bounds(text) for text in asked(extras)]
    for packages in (["pip"], [torch], wanted, ["--no-deps", "trl"]):
        subprocess.run([*pip, *packages], check=True)
    removed = [python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision", "torchaudio", "torchcodec"]
    subprocess.run(removed, check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-e", "."], check=True)


def succeeds(command: list[str]) -> bool:
    """Run `command` with its output on the screen."""
    print(f"\n$ {' '.join(command)}", flush=True)
    return subprocess.run(command).returncode == 0


def failed_tests(python: str, report: Path, arguments: list[str]) -> list[str]:
    """Names of the tests that failed; one sentence when pytest could not run them."""
    report.unlink(missing_ok=True)
    if succeeds([python, "-m", "pytest", f"--junitxml={report}", *arguments]):
        return []
    failed = failures(report) if report.exists() else []
    return failed or ["pytest ended with an error and names no test"]


def failures(report: Path) -> list[str]:
    """ "tests.data.test_read::test_name" of every test that failed or could not run, from a JUnit file."""
    cases = ElementTree.parse(report).iter("testcase")
    bad = (case for case in cases if case.find("failure") is not None or case.find("error") is not None)
    return [f"{case.get('classname')}::{case.get('name')}" for case in bad]


def installed(python: str) -> dict[str, str]:
    """Normalised name -> version in the environment of `python`."""
    listing = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    return {normalised(each["name"]): each["version"] for each in json.loads(listing.stdout)}


def beyond_bounds(python: str) -> list[str]:
    """What pip says of raydpo's own requirements; not of others', some of whose packages are removed on purpose."""
    said = subprocess.run([python, "-m", "pip", "check"], capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if line.startswith("raydpo ")]


def differences(here: dict[str, str], lock: dict[str, str]) -> list[str]:
    """ "name 1.0 -> 1.1" of every package that is both in `here` and in `lock`, but for local versions (+cpu)."""
    both = sorted(here.keys() & lock.keys())
    return [f"{name} {lock[name]} -> {here[name]}" for name in both if here[name].partition("+")[0] != lock[name]]


if __name__ == "__main__":
    sys.exit(main())
