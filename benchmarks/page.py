"""The page docs/quickstart_by_objective.md, a function of the results.

In: entries of `benchmarks.results`, overrides and notes of `benchmarks.settings`. Out: Markdown.
Decision: nothing on the page comes from elsewhere, so that a test can compare page and results.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.results import Entry, name_of
from benchmarks.settings import NOTES, OVERRIDES, compared

_INTRO = """# The quickstart by objective

Made by `make bench-objectives` from `benchmarks/results/quickstart_by_objective.json`, which is filled by the same
command. The task of `raydpo quickstart`: one supervised model a seed, then every objective from that model, at its
documented defaults ([objectives.md](objectives.md)), one pass over 2,000 pairs in batches of 64, and greedy answers to
250 held-out prompts that a program checks.

One small task and 32 steps: this shows that an objective works with its defaults, not which one is best. Many rows are
almost alike because the scaled margins stay small, where most of these losses are nearly straight lines of one
direction, and Adam divides their scale away. For the same reason one learning rate serves losses of very different
scales. The models compared here have four heads of 40 numbers; the quickstart's has five of 32, which vLLM for CPUs
serves.
"""

_HEAD = (
    "| Objective | Parameters | Learning rate | Exact match before | after | Held-out margin, nats | "
    "Held-out accuracy | Note |\n|---|---|---|---|---|---|---|---|\n"
)

_LEGEND = """
Held-out margin: `log_ratios/margins` after the last step, absent without a reference. Held-out accuracy:
`rewards/accuracies`, likewise; without a reference it compares log-probs and not what training changed.
"""


def page(entries: list[Entry]) -> str:
    """The whole page."""
    names = list(dict.fromkeys(name_of(entry) for entry in entries))
    groups = {name: [entry for entry in entries if name_of(entry) == name] for name in names}
    missing = [f"`{name}`" for name in compared() if name not in groups]
    parts = [_INTRO, "\n", *_made(groups), "\n", _HEAD, *map(_row, groups.values()), _LEGEND, "\n", _reference(entries)]
    if missing:
        parts.append(f"\nNot measured yet: {', '.join(missing)}.\n")
    return "".join(parts)


def _made(groups: dict[str, list[Entry]]) -> list[str]:
    """When, from what and where the numbers come; one line for each different answer."""
    names: dict[tuple[str, str, str], list[str]] = {}
    for name, entries in groups.items():
        for entry in entries:
            made = entry["made"]
            listed = names.setdefault((made["date"], made["commit"], made["hardware"]), [])
            listed += [] if name in listed else [name]
    lines = []
    for (date, commit, hardware), who in sorted(names.items()):
        which = "" if len(names) == 1 else f": {', '.join(f'`{name}`' for name in who)}"
        lines.append(f"- {date}, {f'commit {commit}' if commit else 'commit not known'}, {hardware}{which}\n")
    seeds = sorted({entry["settings"]["seed"] for entries in groups.values() for entry in entries})
    return [*lines, f"- seeds: {', '.join(map(str, seeds))}; several values in a cell are in this order\n"]


def _row(entries: list[Entry]) -> str:
    name, settings = name_of(entries[0]), entries[0]["settings"]
    parameters = "<br>".join(f"`{key}` {value:g}" for key, value in settings["objective"].items() if key != "name")
    cells = [
        f"`{name}`",
        parameters,
        f"{settings['train']['learning_rate']:g}",
        _cell(entries, lambda entry: f"{entry['exact_match']['before']:.1%}"),
        _cell(entries, lambda entry: f"{entry['exact_match']['after']:.1%}"),
        _cell(entries, lambda entry: _number(entry, "log_ratios/margins", ".2f")),
        _cell(entries, lambda entry: _number(entry, "rewards/accuracies", ".1%")),
        " ".join(text for text in (OVERRIDES[name].reason if name in OVERRIDES else "", NOTES.get(name, "")) if text),
    ]
    return f"| {' | '.join(cells)} |\n"


def _cell(entries: list[Entry], text: Callable[[Entry], str]) -> str:
    values = list(map(text, entries))
    return ", ".join(values) if any(values) else ""


def _number(entry: Entry, metric: str, form: str) -> str:
    value = entry["eval"]["last"].get(metric)
    return "" if value is None else format(value, form)


def _reference(entries: list[Entry]) -> str:
    """How often the reference was scored, for all who read it."""
    readers = [entry["reference"] for entry in entries if entry["reference"]["rows"]]
    rows, scored = sum(each["rows"] for each in readers), sum(each["rows_scored"] for each in readers)
    forwards = sum(each["forwards"] for each in readers)
    return (
        f"{len(readers)} of these runs read a reference, {rows:,} rows in all; {scored:,} of them were "
        f"scored in these runs, in {forwards} forwards; the others came from the cache.\n"
    )
