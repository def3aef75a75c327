"""What is kept of a run: every mutant as JSON, and a page with the counts and the survivors.

Decision: timeouts are a column of their own and no part of the score; a test that only hangs has noticed something, but
nobody knows what.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.mutate.trials import Outcome

STATUSES = ("killed", "survived", "timeout")


def write(file: Path, settings: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    """`file` with the ending .json, and .md next to it. Sources are read from the working directory."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(outcomes, key=lambda outcome: (outcome.mutant.path, outcome.mutant.start, outcome.mutant.text))
    entries = [_entry(outcome) for outcome in ordered]
    counts = _counts(ordered)
    facts = {"settings": settings, "counts": counts, "mutants": entries}
    file.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    file.with_suffix(".md").write_text(_page(settings, counts, entries))


def _entry(outcome: Outcome) -> dict[str, Any]:
    original, changed = outcome.mutant.lines(Path(outcome.mutant.path).read_bytes())
    mutant = {"path": outcome.mutant.path, "line": outcome.mutant.line, "operator": outcome.mutant.operator}
    rest = {key: value for key, value in asdict(outcome).items() if key != "mutant"}
    return mutant | {"original": original, "mutated": changed} | rest


def _counts(outcomes: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    """Folder -> status -> number, and "all"."""
    found: dict[str, Counter[str]] = {}
    for outcome in outcomes:
        for name in (str(Path(outcome.mutant.path).parent), "all"):
            found.setdefault(name, Counter())[outcome.status] += 1
    return {name: {status: found[name][status] for status in STATUSES} for name in sorted(found, key=_last_all)}


def _last_all(name: str) -> tuple[bool, str]:
    return name == "all", name


def _page(settings: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]], entries: Sequence[Any]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in settings.items() if not isinstance(value, list))
    lines = ["# Mutation tests", "", f"Written by `make mutate`: {said}.", ""]
    lines += ["| package | killed | survived | timeout | killed of killed and survived |", "|---|---|---|---|---|"]
    for name, count in counts.items():
        decided = count["killed"] + count["survived"]
        share = f"{count['killed'] / decided:.1%}" if decided else "-"
        lines.append(f"| {name} | {count['killed']} | {count['survived']} | {count['timeout']} | {share} |")
    for status in ("survived", "timeout"):
        lines += ["", f"## {status.capitalize()}", ""]
        chosen = [entry for entry in entries if entry["status"] == status]
        lines += [_change(entry) for entry in chosen] or ["None."]
    return "\n".join(lines) + "\n"


def _change(entry: Mapping[str, Any]) -> str:
    unseen = "" if entry["is_executed"] else ", no test runs this line itself"
    place = f"{entry['path']}:{entry['line']} ({entry['operator']}{unseen})"
    return f"- {place}\n\n  ```diff\n  - {entry['original']}\n  + {entry['mutated']}\n  ```"
