"""What a person sees while a run goes on: one calm progress display on a terminal, plain lines anywhere else.

In: the events of `raydpo.schema.events`, on the driver alone. Out: text on one stream, and the table at the end.
Decision: the screen never stops a run. Text is made printable first, and a stream that is gone (a closed pipe) is
given up in silence. Rates look at the last minute, so a resumed stage does not boast.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from raydpo.redaction import redacted
from raydpo.schema.events import Advanced, Event, Note, StageDone, StageStarted

WINDOW_S = 60.0
_LINE_SHARE = 0.05
"""A plain line at most each time that a stage has become so much older: they thin out in a long job."""
_SHOWN = ("rewards/margins", "rewards/accuracies", "loss")
_EVAL_ORDER = ("rewards/accuracies", "rewards/margins", "rewards/ties", "loss", "rewards/chosen", "rewards/rejected")


def printable(text: str, encoding: str | None = "utf-8") -> str:
    """`text` without control characters (terminal escapes from data) and with what `encoding` cannot say escaped."""
    clean = "".join(c if c == "\n" or c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)
    return clean.encode(encoding or "utf-8", "backslashreplace").decode(encoding or "utf-8", "replace")


def duration(seconds: float) -> str:
    """Seconds as a person says them: 8s, 2m 05s, 3h 10m."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


class StageState:
    """Progress of one stage: units done, rate over the last minute, latest metrics. `now` is a clock in seconds."""

    def __init__(self, event: StageStarted, now: float) -> None:
        self.stage, self.total, self.unit = event.stage, event.total, event.unit
        self.started_s = now
        self.done = 0
        self.metrics: dict[str, float] = {}
        self.last_line_s = now
        self._seen: deque[tuple[float, int]] = deque()

    def advance(self, event: Advanced, now: float) -> None:
        self.done = event.done
        self.metrics.update(event.metrics)
        self._seen.append((now, event.done))
        while len(self._seen) > 2 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()

    def rate(self) -> float | None:
        """Units a second, None before there is something to measure."""
        if len(self._seen) < 2:
            return None
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last > first and last_s > first_s else None

    def counts(self) -> str:
        total = f"/{self.total:,}" if self.total is not None else ""
        return f"{self.done:,}{total} {self.unit}"

    def pace(self) -> str:
        rate = self.rate()
        if rate is None:
            return ""
        return f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f}s each"

    def left(self, now: float) -> str:
        rate = self.rate()
        if rate is None or self.total is None or self.done >= self.total:
            return ""
        since = now - self._seen[-1][0]
        return f"{duration((self.total - self.done) / rate - since)} left"

    def figures(self, most: int) -> str:
        """The latest metrics in short: "margins 0.312  loss 0.691"."""
        plain = {name.removeprefix("eval/"): value for name, value in self.metrics.items()}
        order = [name for name in _SHOWN if name in plain] or list(plain)
        if most < len(order) and most == 2 and "loss" in order and "rewards/margins" in order:
            order = ["rewards/margins", "loss"]
        return "  ".join(f"{name.rpartition('/')[2]} {_figure(plain[name])}" for name in order[:most])


def _figure(value: float) -> str:
    """Four digits, of a count all."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value == int(value) else f"{value:.4g}"


class _Field(ProgressColumn):
    """One column of the display, from the state of its stage."""

    def __init__(self, text: Callable[[StageState], str], column: Column, style: str = "") -> None:
        super().__init__(table_column=column)
        self._text, self._style = text, style

    def render(self, task: Task) -> Text:
        return Text(printable(self._text(task.fields["state"])), style=self._style, overflow="ellipsis", no_wrap=True)


class Screen:
    """The callback that shows a run, and a context manager. `plain=None` decides by whether `stream` is a terminal.

    every_s: at most one plain line of progress a stage in this many seconds, and in a twentieth of its time so far.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        plain: bool | None = None,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream if stream is not None else sys.stdout
        self._every_s, self._clock = every_s, clock
        self._stages: dict[str, StageState] = {}
        self._tasks: dict[str, TaskID] = {}
        self._gone = False
        console = Console(file=self._stream, highlight=False)
        self.plain = plain if plain is not None else not console.is_terminal or console.is_dumb_terminal
        self._progress = (
            None if self.plain else Progress(*self._columns(console.width), console=console, refresh_per_second=4)
        )

    def _columns(self, width: int) -> tuple[ProgressColumn, ...]:
        def column(**more: Any) -> Column:
            return Column(no_wrap=True, **more)  # no wrap: one line a stage, whatever the width

        return (
            _Field(lambda s: s.stage, column(max_width=22), "bold"),
            BarColumn(bar_width=24 if width >= 96 else 10 if width >= 84 else 4, table_column=column()),
            _Field(StageState.counts, column()),
            _Field(StageState.pace, column(justify="right"), "cyan"),
            _Field(lambda s: s.left(self._clock()), column(justify="right")),
            _Field(lambda s: s.figures(2 if width >= 80 else 1), column(), "green"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._safely(self._stop)

    def _stop(self) -> None:
        if self._progress is not None:
            for task in self._tasks.values():
                self._progress.stop_task(task)
            self._progress.stop()

    def __call__(self, event: Event) -> None:
        self._safely(lambda: self._show(event))

    def _safely(self, act: Callable[[], None]) -> None:
        if self._gone:
            return
        try:
            act()
        except (OSError, ValueError):  # the reader of a pipe left, or the stream was closed: the run goes on
            self._gone = True

    def _show(self, event: Event) -> None:
        now = self._clock()
        match event:
            case StageStarted():
                self._start(event, now)
            case Advanced():
                self._advance(event, now)
            case StageDone():
                state = self._stages.pop(event.stage, None)
                if self._progress is not None and event.stage in self._tasks:
                    self._progress.remove_task(self._tasks.pop(event.stage))
                took = f" ({duration(now - state.started_s)})" if state is not None else ""
                self._line(f"{event.stage}: {event.text}{took}", mark="done")
            case Note():
                self._line(event.text, mark="warning" if event.level == "warning" else "")

    def _start(self, event: StageStarted, now: float) -> None:
        state = self._stages[event.stage] = StageState(event, now)
        if self._progress is None:
            if event.total != 0:
                amount = f"{event.total:,} {event.unit}" if event.total is not None else f"counting {event.unit}"
                self._line(f"{event.stage}: {amount}")
            return
        if event.stage in self._tasks:
            self._progress.remove_task(self._tasks.pop(event.stage))
        self._progress.start()
        self._tasks[event.stage] = self._progress.add_task("", total=event.total, state=state, visible=event.total != 0)

    def _advance(self, event: Advanced, now: float) -> None:
        state = self._stages.get(event.stage)
        if state is None:
            self._start(StageStarted(event.stage, None, ""), now)
            state = self._stages[event.stage]
        state.advance(event, now)
        if self._progress is not None:
            self._progress.update(self._tasks[event.stage], completed=event.done)
        elif now - state.last_line_s >= max(self._every_s, (now - state.started_s) * _LINE_SHARE):
            state.last_line_s = now
            parts = (state.counts(), state.pace(), state.left(now), state.figures(3))
            self._line(f"{state.stage}: {'  '.join(part for part in parts if part)}")

    def _line(self, text: str, mark: str = "") -> None:
        text = printable(text, getattr(self._stream, "encoding", None))
        lead = "warning: " if mark == "warning" else ""
        if self._progress is None:
            self._stream.write(f"{lead}{text}\n")
            self._stream.flush()
        else:
            styled = Text(lead, style="bold yellow") + Text(text, style="yellow" if lead else "")
            if mark == "done":
                stage, _, rest = text.partition(": ")
                styled = Text(f"{stage}: ", style="bold") + Text(rest)
            self._progress.console.print(styled)


def print_summary(summary: Mapping[str, Any], stream: TextIO | None = None) -> None:
    """Print the end of a run: before and after, what became of the data, where everything is."""
    out = stream if stream is not None else sys.stdout
    for line in ["", *summary_lines(summary)]:
        out.write(printable(redacted(line), getattr(out, "encoding", None)) + "\n")
    out.flush()


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The lines of `print_summary`, for whichever parts `summary` has."""
    lines: list[str] = []
    exact = _part(summary, "exact_match")
    if "before" in exact and "after" in exact:
        lines += _table("exact match", ("before", "after"), [("held-out prompts", exact["before"], exact["after"])])
    if "rounds" in exact:
        steps = [("supervised", exact["supervised"]), ("offline DPO", exact["offline"])]
        steps += [(f"round {index}", share) for index, share in enumerate(exact["rounds"])]
        steps.append(("offline DPO, as many pairs", exact["offline_equal_pairs"]))
        lines += ["exact match", *(f"  {name:<28}{100 * share:>8.1f}%" for name, share in steps), ""]
    if "placement" in summary:
        lines += _rounds(summary)
    if "comparison" in summary:
        lines += _sweep(summary)
    evals = _part(summary, "eval")
    first, last = _part(evals, "first"), _part(evals, "last")
    if last:
        rows = [(name, first.get(name), last[name]) for name in _eval_order(last)]
        lines += _table("held-out", ("first", "last") if first else ("", "value"), rows)
    elif evals and not first:
        rows = [(name, None, evals[name]) for name in _eval_order(evals)]
        lines += _table("held-out", ("", "value"), rows)
    data, reference, train = _part(summary, "data"), _part(summary, "reference"), _part(summary, "train")
    if "lines_read" in data:
        bad = _part(data, "quarantined")
        used = f"{data['lines_read']:,} lines read, {data.get('pairs_used', 0):,} used"
        lines.append(f"data           {used}, {sum(bad.values()):,} quarantined{':' if bad else ''}")
        worst_first = sorted(bad.items(), key=lambda item: (-item[1], item[0]))
        lines += [f"{count:>22,} {reason}" for reason, count in worst_first]
    if "rows" in reference:
        scored, forwards = reference.get("rows_scored", 0), reference.get("forwards", 0)
        lines.append(f"reference      {reference['rows']:,} rows, {scored:,} scored now in {forwards:,} forwards")
    if "steps" in train:
        lines.append(f"train          {train['steps']:,} steps")
    if "steps" in (plan := _part(summary, "plan")):
        lines.append(f"plan           {plan['steps']:,} steps of training")
    if "run_dir" in summary:
        lines.append(f"run directory  {summary['run_dir']}")
    return lines


_ROUND_COLUMNS = {
    "eval/mean_score": "score",
    "eval/win_rate": "win rate",
    "eval/win_rate_low": "low",
    "eval/win_rate_high": "high",
    "eval/kl_nats": "KL nats",
    "eval/mean_length_tokens": "tokens",
    "samples/duplicate_share": "duplicate",
    "pairs/made": "pairs",
}


def _rounds(summary: Mapping[str, Any]) -> list[str]:
    """A line for the policy before the first round and after each, and what each role did with its time."""
    initial = _part(summary, "initial")
    rows = [("before", initial)] if initial else []
    rows += [(f"round {found['index']}", found["metrics"]) for found in summary["rounds"]]
    columns = {key: head for key, head in _ROUND_COLUMNS.items() if any(key in metrics for _, metrics in rows)}
    lines = ["policy    " + "".join(f"{head:>11}" for head in columns.values())]
    for name, metrics in rows:
        cells = (f"{metrics[key]:>11.4g}" if key in metrics else " " * 11 for key in columns)
        lines.append(f"{name:<10}{''.join(cells)}".rstrip())
    for found in summary["rounds"]:
        lines += [f"stopped after round {found['index']}: {reason}" for reason in found["stopped"]]
    shares = ", ".join(f"{role} {100 * share:.0f}%" for role, share in summary["busy_share"].items())
    return [*lines, "", f"placement      {summary['placement']}; busy: {shares}"]


def _sweep(summary: Mapping[str, Any]) -> list[str]:
    """The runs of a sweep, the best first."""
    metric = str(summary["metric"])
    lines = [f"{metric:>24}  accuracy  scored  run"]
    for run in summary["runs"]:
        found, accuracy = run["eval"].get(metric), run["eval"].get("eval/rewards/accuracies")
        numbers = f"{'-' if found is None else f'{found:.4f}':>24}  {'-' if accuracy is None else f'{accuracy:.1%}':>8}"
        said = ", ".join(f"{key}={value}" for key, value in run["values"].items())
        lines.append(f"{numbers}  {run['rows_scored']:>6,}  {said}  {run['run_dir']}")
    return [*lines, "", f"comparison     {summary['comparison']}"]


def _part(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = values.get(key)
    return part if isinstance(part, Mapping) else {}


def _eval_order(metrics: Mapping[str, Any]) -> list[str]:
    """Numbers only, the ones that decide first."""
    names = [n for n, v in metrics.items() if isinstance(v, int | float) and not isinstance(v, bool)]
    rank = {name: place for place, name in enumerate(_EVAL_ORDER)}
    return sorted(names, key=lambda n: (rank.get(n.removeprefix("eval/"), len(rank)), n))


def _table(title: str, heads: tuple[str, str], rows: list[tuple[str, Any, Any]]) -> list[str]:
    percent = title == "exact match"

    def cell(value: Any) -> str:
        if not isinstance(value, int | float):
            return ""
        return f"{100 * value:.1f}%" if percent else f"{value:.4f}"

    both = bool(heads[0])
    lines = [f"{title:<24}{heads[0]:>11}{heads[1]:>11}{'change' if both else '':>14}".rstrip()]
    for name, before, after in rows:
        numbers = isinstance(before, int | float) and isinstance(after, int | float)
        change = (f"{100 * (after - before):+.1f} points" if percent else f"{after - before:+.4f}") if numbers else ""
        lines.append(f"  {name.removeprefix('eval/'):<22}{cell(before):>11}{cell(after):>11}{change:>14}".rstrip())
    return [*lines, ""]
