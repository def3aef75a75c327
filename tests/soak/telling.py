"""The command that people run, which also writes what happens into a file: python -m tests.soak.telling FILE train run.yaml.

Goes out: lines of JSON, ["advanced", stage, units done] and ["said", level, text]. Decision: whoever kills counts these and
reads no clock, so that a slow machine is disturbed as often as a fast one. A line is one write, and a kill leaves no half of
it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from raydpo import cli, screen
from raydpo.schema.events import Advanced, Event, Note


class TellingScreen(screen.Screen):
    """Shows a run, and tells of it. file: where to, opened by `main`."""

    file = -1

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if isinstance(event, Advanced):
            _write(self.file, ["advanced", event.stage, event.done])
        elif isinstance(event, Note):
            _write(self.file, ["said", event.level, event.text])


def _write(file: int, told: list[object]) -> None:
    os.write(file, (json.dumps(told) + "\n").encode())


def read_told(path: Path) -> list[list[object]]:
    """All that was written there so far."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


def main() -> int:
    TellingScreen.file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    screen.Screen = TellingScreen  # type: ignore[misc]
    return cli.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
