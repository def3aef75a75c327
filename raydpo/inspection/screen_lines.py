"""An inspection for a terminal of 100 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from raydpo.data.bad_rows import REASONS
from raydpo.inspection.look import Inspection
from raydpo.inspection.pair_facts import Proportion

_WIDTH = 100


def screen_lines(found: Inspection) -> Iterator[str]:
    """Lines to print."""
    facts, report = found.facts, found.report
    yield from _titled("what was read")
    for name, layout in report.formats.items():
        yield f"  {_short(name):<44} {layout}"
    for name, columns in report.columns_not_read.items():
        yield f"  {_short(name):<44} not read: {', '.join(columns)}"
    yield f"  lines {report.lines_read:,}, pairs {facts.pairs:,}, prompts {facts.prompts:,}, held out {facts.eval_pairs:,}"
    for reason, count in report.quarantined.items():
        yield f"  left out {count:>9,}  {reason}: {REASONS[reason]}"
    if report.control_tokens_found:
        yield f"  {report.control_tokens_found:,} control tokens are spelled out in texts, and are read as text"
    if not facts.pairs:
        yield from _advised(found)
        return
    yield from _titled(f"lengths in {found.unit}")
    yield f"  {'':<10}" + "".join(f"{name:>10}" for name in ("mean", "p50", "p95", "p99", "max"))
    for name, spread in facts.lengths.items():
        yield f"  {name:<10}" + "".join(f"{value:>10,.0f}" for value in spread.values())
    over = ", ".join(f"{limit:,}: {share.value:.1%}" for limit, share in facts.over_limit.items() if share.count)
    yield f"  longer than  {over or 'none of the usual limits'}"
    yield from _titled("pairs")
    yield f"  the longer answer is chosen     {_share(facts.longer_chosen)}"
    yield f"  answers too alike (over 90 %)   {_share(facts.alike)}, median overlap of words {facts.overlap:.0%}"
    leaked = f"held-out prompts in train {facts.eval_in_train:,}"
    yield f"  repeated {facts.repeated:,}, contradicted {facts.contradicted:,}, {leaked}"
    yield from _advised(found)


def _advised(found: Inspection) -> Iterator[str]:
    yield from _titled("what to do")
    for each in found.advice:
        mark = "!" if each.level == "warning" else "-"
        yield from textwrap.wrap(f"{mark} {each.text}", _WIDTH - 2, initial_indent="  ", subsequent_indent="    ")
        yield from (f"      {key}" for key in each.keys)
    if not found.advice:
        yield "  nothing stands out"
    if found.unit == "bytes":
        yield "  Lengths are in bytes of UTF-8: name a model with --model for tokens and its chat template."


def _titled(title: str) -> Iterator[str]:
    yield from ("", title, "-" * len(title))


def _share(share: Proportion) -> str:
    low, high = share.interval
    return f"{share.value:6.1%} [{low:.1%}, {high:.1%}] of {share.total:,}"


def _short(name: str) -> str:
    return name if len(name) <= 44 else "..." + name[-41:]
