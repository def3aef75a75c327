"""Run `check`, then `precompute` of objectives without a reference; say after each what was imported.

Run as `python -m tests.pipelines.light DPO.yaml SFT.yaml ...`; prints a line of JSON each.
"""

from __future__ import annotations

import json
import sys

from raydpo.config import Config
from raydpo.pipelines import check, precompute
from raydpo.schema.events import Event, Note

HEAVY = ("ray", "deepspeed", "peft", "datasets")


def main(dpo: str, *without_reference: str) -> None:
    notes: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    for verb, path in ((check, dpo), *((precompute, path) for path in without_reference)):
        notes.clear()
        summary = verb(Config.load(path), observe)
        imported = [name for name in HEAVY if name in sys.modules]
        print(json.dumps({"summary": summary, "imported": imported, "notes": notes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
