"""The steps of a Dockerfile, one after the other, in a fresh Debian: what can be tried of an image where no Docker runs.

    python -m tools.image_steps cluster/images/cpu.Dockerfile --folder /var/tmp/image

Comes in: the Dockerfile, and a folder on a disk with some GB. Goes out: each step as it is taken, and the first that fails.
Decision: the base is Debian bookworm by debootstrap with a virtual environment of its own Python in /usr/local, which stands in
for python:3.11-slim-bookworm; it is made once and copied for each run. Steps run as root or as the image's user, in namespaces
of their own for mounts and processes. Nothing of this machine is seen in there but its pip settings, certificates and proxies,
and what --bind names.
Price: it needs root; layers, caches and the real base image are not tried.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KNOWN = ("FROM", "RUN", "ENV", "WORKDIR", "COPY", "ARG", "USER")
PACKAGES = "ca-certificates,python3,python3-venv"
BASE = "python:3.11-slim-bookworm"
_PATH = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"
_SETTINGS = (
    "/etc/resolv.conf",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pip.conf",
    "/etc/xdg/pip",
    "/root/.config/pip",
)
_WITHIN = ["unshare", "--mount", "--pid", "--fork", "sh", "-ec"]
_ENTER = (
    'root=$1; shift; mount -t proc none "$root/proc"; '
    'for each in $BOUND; do mount --bind "$each" "$root$each"; done; exec "$@"'
)


@dataclass(frozen=True)
class Instruction:
    """An instruction of a Dockerfile. number: of its first line."""

    kind: str
    text: str
    number: int


def instructions(text: str) -> list[Instruction]:
    """What a Dockerfile says, with lines joined and comments left out. Raises ValueError for what is not known here."""
    found, parts, first = list[Instruction](), list[str](), 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not line.strip():
            continue
        first = first if parts else number
        parts.append(line.rstrip().removesuffix("\\").strip())
        if line.rstrip().endswith("\\"):
            continue
        kind, _, rest = " ".join(parts).partition(" ")
        if kind not in KNOWN:
            raise ValueError(f"line {first}: {kind} is not known; {', '.join(KNOWN)} are")
        found.append(Instruction(kind, rest.strip(), first))
        parts = []
    if parts:
        raise ValueError(f"line {first}: an instruction without an end")
    return found


class Root:
    """A folder that steps see as /. context: the folder that is copied from. bound: folders of this machine."""

    def __init__(self, root: Path, context: Path, bound: Sequence[str], arguments: Mapping[str, str]) -> None:
        self._root, self._context, self._bound, self._arguments = root, context, bound, arguments
        kept = {name: value for name, value in os.environ.items() if re.match(r"(?i)PIP_|.*_PROXY$", name)}
        self._variables = {"PATH": _PATH, **kept}
        self._build = dict[str, str]()
        self._folder, self._user = "/", "root"
        for each in bound:
            (root / each.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def take(self, step: Instruction) -> int:
        """The exit code of a step."""
        match step.kind:
            case "RUN":
                return self.run(step.text)
            case "ENV":
                self._variables |= _pairs(step.text)
            case "ARG":
                name, _, value = step.text.partition("=")
                self._build[name] = self._arguments.get(name, value.strip('"'))
            case "WORKDIR":
                self._folder = step.text
                (self._root / step.text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "USER":
                self._user = step.text
            case "COPY":
                *names, target = step.text.split()
                self._copy(names, self._root / self._folder.lstrip("/") / target)
            case "FROM" if step.text != BASE:
                print(f"{BASE} stands in for {step.text}")
        return 0

    def run(self, command: str) -> int:
        """The exit code of a shell command, in the folder and as the user of now."""
        home = "/root" if self._user == "root" else "/home/ray"
        variables = {**self._variables, **self._build, "HOME": home}
        variables = {name: re.sub(r"\$PATH\b", _PATH, value) for name, value in variables.items()}
        settings = [f"{name}={value}" for name, value in variables.items()]
        group = "root" if self._user == "root" else "users"
        enter = ["chroot", f"--userspec={self._user}:{group}", str(self._root), "env", "-i", *settings]
        shell = ["sh", "-c", f"cd {shlex.quote(self._folder)} && {command}"]
        environment = {**os.environ, "BOUND": " ".join(self._bound)}
        return subprocess.run([*_WITHIN, _ENTER, "sh", str(self._root), *enter, *shell], env=environment).returncode

    def _copy(self, names: Sequence[str], target: Path) -> None:
        for name in names:
            source = self._context / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
            else:
                shutil.copy(source, target)


def _pairs(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (each.partition("=") for each in shlex.split(text))}


def make_base(folder: Path) -> Path:
    """Debian with Python and pip, made once."""
    base = folder / "base"
    if not (base / "usr/local/bin/pip").exists():
        shutil.rmtree(base, ignore_errors=True)
        debootstrap = os.environ.get("DEBOOTSTRAP", "debootstrap").split()
        options = ["--variant=minbase", f"--include={PACKAGES}", "bookworm"]
        subprocess.run([*debootstrap, *options, str(base)], check=True)
        subprocess.run(["chroot", str(base), "python3", "-m", "venv", "/usr/local"], check=True)
    return base


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="where the roots are made")
    parser.add_argument(
        "--bind", action="append", default=[], help="a folder of this machine that steps see, with wheels"
    )
    parser.add_argument("--build-arg", action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--then", action="append", default=[], help="a command that the image's user gives at the end")
    given = parser.parse_args()
    steps = instructions(given.dockerfile.read_text())
    root = given.folder / "root"
    base = make_base(given.folder)
    shutil.rmtree(root, ignore_errors=True)
    subprocess.run(["cp", "-a", str(base), str(root)], check=True)
    for name in filter(os.path.exists, _SETTINGS):
        place = root / name.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-rL", name, str(place.parent)], check=True)
    inside = Root(root, Path.cwd(), given.bind, dict(each.split("=", 1) for each in given.build_arg))
    for number, step in enumerate([*steps, *(Instruction("RUN", command, 0) for command in given.then)], start=1):
        print(f"{number}. {step.kind} {step.text}", flush=True)
        if code := inside.take(step):
            print(f"step {number} ended with {code}")
            return 1
    print(f"{len(steps)} steps and {len(given.then)} commands went through")
    return 0


if __name__ == "__main__":
    sys.exit(main())
