"""One run, or several compared, as one HTML file.

Comes in: run directories. Goes out: a file without a network address. Decision: the template escapes every text, because pairs
hold whatever people wrote; secrets of the environment are taken out of what is shown.
"""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from raydpo.artifacts.durable import write_bytes
from raydpo.picture.page import page as picture_page
from raydpo.redaction import redacted, redacted_values
from raydpo.run_report import charts
from raydpo.run_report.charts import Series
from raydpo.run_report.comparing import differing, frontier, measured, overlaid
from raydpo.run_report.pair_views import by_confidence, by_length, by_source, clouds, most_and_least
from raydpo.run_report.run_facts import RunFacts, read_run
from raydpo.run_report.run_verdict import verdict_on
from raydpo.run_report.token_texts import TokenTexts

_PACKAGES = ("raydpo", "torch", "transformers", "deepspeed", "ray", "peft", "vllm")
_CURVES = (
    ("loss", ("loss",)),
    ("share of pairs won", ("rewards/accuracies",)),
    ("margin of rewards", ("rewards/margins",)),
    ("log-ratio of chosen and rejected answers, nats", ("log_ratios/chosen", "log_ratios/rejected")),
    ("log-prob of chosen and rejected answers, nats", ("logps/chosen", "logps/rejected")),
    ("norm of the gradient", ("grad_norm",)),
    ("learning rate", ("learning_rate",)),
)
_SECONDS = ("sample", "judge", "reference", "train", "evaluate", "waiting")


def write(run_dirs: Sequence[Path | str], out: Path | str | None = None, command: str = "") -> Path:
    """Write the report of one run (by default `report.html` in it) or a comparison of several: its path.

    command: what made the run; default: how it would be made again. Raises ConfigError for a folder that is no run's.
    """
    runs = [read_run(Path(folder)) for folder in run_dirs]
    path = Path(out) if out is not None else runs[0].dir / "report.html" if len(runs) == 1 else Path("comparison.html")
    text = _one(runs[0], command) if len(runs) == 1 else _several(runs)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode("utf-8", "backslashreplace"))
    return path


def _rendered(name: str, **values: Any) -> str:
    source = files("raydpo.run_report")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["short"] = charts.short
    environment.globals["zip"] = zip
    head = source.joinpath("page.css").read_text(encoding="utf-8")
    template = environment.from_string(source.joinpath(name).read_text(encoding="utf-8"))
    return template.render(style=Markup(head), **values)


def _one(run: RunFacts, command: str) -> str:
    pairs, first_last = run.pairs, run.evaluations
    most, least = most_and_least(pairs, TokenTexts.of_run(run.dir, run.config)) if pairs else ([], [])
    ratios, gaps = clouds(pairs)
    of_pairs = [
        charts.scatter("log-ratio of rejected against chosen answers, nats", ratios, "chosen"),
        charts.scatter(
            "margin against length, nats", gaps, "tokens of the chosen answer less those of the rejected one"
        ),
        charts.bars("share won by difference of lengths", by_length(pairs)),
        charts.bars("share won by what the reference said before", by_confidence(pairs)),
        charts.bars("share won by source", by_source(pairs)),
    ]
    return _rendered(
        "one.html",
        run=run,
        verdict=verdict_on(run),
        metrics=_before_after(*first_last),
        curves=list(filter(None, (_curve(run, *each) for each in _CURVES))) + _round_curves(run),
        pair_charts=list(filter(None, of_pairs)),
        most=most,
        least=least,
        samples=_samples(run),
        facts=_facts(run),
        rounds=_rounds(run),
        picture=picture_page([run.objective]),
        config=redacted(yaml.safe_dump(redacted_values(dict(run.config)), sort_keys=False, allow_unicode=True)),
        command=redacted(command or _again(run)),
        environment=_environment(),
    )


def _several(runs: Sequence[RunFacts]) -> str:
    return _rendered(
        "several.html",
        runs=runs,
        verdicts=[verdict_on(run) for run in runs],
        settings=differing(runs),
        table=measured(runs),
        curves=list(filter(None, overlaid(runs))),
        frontier=frontier(runs),
        environment=_environment(),
    )


def _curve(run: RunFacts, title: str, names: Sequence[str]) -> Markup | None:
    drawn = []
    for number, name in enumerate(names):
        label = name.rpartition("/")[2] if len(names) > 1 else ""
        for prefix, said, mark in (("", "training", "ab"[number]), ("eval/", "held out", "cd"[number])):
            steps, values = run.series(prefix + name)
            if values:
                drawn.append(Series(f"{label} {said}".strip(), steps, values, mark))
    return charts.lines(title, drawn)


def _round_curves(run: RunFacts) -> list[Markup]:
    found = []
    for title, name in (
        ("win rate against the initial policy", "eval/win_rate"),
        ("mean score of held-out answers", "eval/mean_score"),
        ("mean score of samples", "samples/mean_score"),
        ("KL divergence to the initial policy, nats", "eval/kl_nats"),
        ("pairs made", "pairs/made"),
    ):
        points = [(each["index"], each["metrics"][name]) for each in run.rounds if name in each.get("metrics", {})]
        if points:
            drawn = charts.lines(
                title, [Series(name, [at for at, _ in points], [value for _, value in points])], "round"
            )
            found += [drawn] if drawn is not None else []
    return found


def _before_after(first: Mapping[str, float], last: Mapping[str, float]) -> list[tuple[str, float | None, float]]:
    return [(name, first.get(name), value) for name, value in last.items()]


def _samples(run: RunFacts) -> list[Mapping[str, str]]:
    """Answers before and after, where the run sampled some (the quickstart does)."""
    found = run.summary.get("example")
    return [found] if isinstance(found, dict) else []


def _facts(run: RunFacts) -> list[tuple[str, str]]:
    """Data, cache and training in words."""
    data, reference, train = (run.summary.get(key) or {} for key in ("data", "reference", "train"))
    found = []
    if data:
        left_out = sum(data.get("quarantined", {}).values())
        found.append(("lines read", f"{data.get('lines_read', 0):,}, left out {left_out:,}"))
        found += [(f"left out: {reason}", f"{count:,}") for reason, count in data.get("quarantined", {}).items()]
        found.append(("pairs", f"{data.get('train_pairs', 0):,} trained on, {data.get('eval_pairs', 0):,} held out"))
        found.append(("held-out prompts that are trained on", f"{data.get('eval_prompts_in_train', 0):,}"))
        for name, spread in data.get("lengths", {}).items():
            text = ", ".join(f"{key} {value:,.0f}" for key, value in spread.items())
            found.append((name.replace("_", " "), text))
    if isinstance(reference, dict) and "rows" in reference:
        rows, scored = reference["rows"], reference.get("rows_scored", 0)
        share = f", {1 - scored / rows:.0%} were in the cache" if rows else ""
        found.append(("reference rows", f"{rows:,}, scored in this run {scored:,}{share}"))
    if train:
        found.append(
            (
                "steps",
                f"{train.get('steps', 0):,} ({train.get('reason', '')}), skipped {train.get('skipped_steps', 0):,}",
            )
        )
    _, rates = run.series("tokens_per_s")
    if rates:
        found.append(
            ("tokens a second", f"{sorted(rates)[len(rates) // 2]:,.0f} (median of the steps that were logged)")
        )
    return found


def _again(run: RunFacts) -> str:
    return shlex.join(["raydpo", "iterate" if run.rounds else "train", str(run.dir / "config.yaml")])


def _rounds(run: RunFacts) -> list[Mapping[str, Any]]:
    return [
        {
            "index": each.get("index"),
            "seconds": {name: each.get("loop", {}).get(f"{name}_s") for name in _SECONDS},
            "pairs": each.get("metrics", {}).get("pairs/made"),
            "win_rate": each.get("metrics", {}).get("eval/win_rate"),
        }
        for each in run.rounds
    ]


def _environment() -> list[tuple[str, str]]:
    found = [("Python", platform.python_version()), ("machine", f"{platform.machine()}, {platform.system()}")]
    for name in _PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """How this process was called, if by `raydpo`."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return shlex.join(["raydpo", *sys.argv[1:]]) if name in ("raydpo", "__main__.py") else ""
