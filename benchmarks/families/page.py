"""docs/families.md from the results of the trials: one row a family, in words of the program where something does not work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("layout", "step 0", "resume", "export", "LoRA", "vLLM")
_HEAD = """# Families of models

`make families` builds a tiny random model of each family with transformers {transformers} (two layers, heads of 32) and trains
three steps of DPO in float32 on one CPU process. **Layout**: answers share their prompt in one stream, or rows are padded
and why. **Step 0**: the held-out loss before the first step is ln 2 to 1e-5. **Resume**: stopped after the first step and gone
on with, the weights are those of an unbroken run to the last bit. **Export**: `model/` loaded again has the trainer's held-out
loss to 1e-5. **LoRA**: step 0 is ln 2 and the run ends, merge included. **vLLM**: vLLM {vllm} for CPUs loads the export and
answers; `-`: there is no export to load. Random weights prove the wiring of a family, not that training it is worthwhile.

{counts}

| family | {columns} |
| --- |{rules}
"""


def page(results: Mapping[str, Mapping[str, Any]], versions: Mapping[str, str]) -> str:
    """The page, families in alphabetical order."""
    head = _HEAD.format(
        **versions,
        counts=_counts(results),
        columns=" | ".join(COLUMNS),
        rules=" --- |" * len(COLUMNS),
    )
    rows = [_row(family, results[family]) for family in sorted(results)]
    return head + "".join(rows)


def _counts(results: Mapping[str, Mapping[str, Any]]) -> str:
    parts = [f"{len(results)} families"]
    for column in COLUMNS[1:]:
        tried = [said for each in results.values() if (said := str(each.get(column, "-"))) != "-"]
        yes = sum(said.startswith("yes") for said in tried)
        parts.append(f"{column}: {yes} of {len(tried)}")
    return ". ".join(parts) + "."


def _row(family: str, answer: Mapping[str, Any]) -> str:
    cells = [_cell(str(answer.get(column, "-"))) for column in COLUMNS]
    if answer.get("model") != "yes":
        cells[0] = _cell(f"no model: {answer.get('model')}")
    return f"| {family} | {' | '.join(cells)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") or "-"
