"""Charts as inline SVG: lines, points and bars, with a title for every mark and no script.

Comes in: numbers. Goes out: markup that is safe in a page: every text is escaped here. Colours are classes of the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

WIDTH, HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 450, 12, 208


@dataclass(frozen=True)
class Series:
    """A named line or cloud of points. mark: what the page colours it by, "a" to "f"."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    mark: str = "a"


@dataclass(frozen=True)
class Bar:
    """A share with its interval. note: for people who point at it."""

    label: str
    value: float
    low: float
    high: float
    note: str = ""


def short(value: float) -> str:
    """A number for an axis."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if abs(value) < 1e-3 or abs(value) >= 1e5 else f"{value:.3g}"


class _Frame:
    """Scales of a chart, and its frame with numbers."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], x_title: str) -> None:
        self.x_low, self.x_high = _spread(xs)
        self.y_low, self.y_high = _spread(ys)
        self.parts = [
            f'<rect class="frame" x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"/>'
        ]
        for share in (0.0, 0.5, 1.0):
            y, x = self.y_low + share * (self.y_high - self.y_low), self.x_low + share * (self.x_high - self.x_low)
            anchor = ("start", "middle", "end")[int(2 * share)]
            self.parts.append(f'<text x="{_LEFT - 5}" y="{self.y(y) + 4:.1f}" text-anchor="end">{short(y)}</text>')
            self.parts.append(f'<text x="{self.x(x):.1f}" y="{_BOTTOM + 15}" text-anchor="{anchor}">{short(x)}</text>')
        if self.y_low < 0 < self.y_high:
            self.parts.append(
                f'<line class="zero" x1="{_LEFT}" x2="{_RIGHT}" y1="{self.y(0):.1f}" y2="{self.y(0):.1f}"/>'
            )
        middle = (_LEFT + _RIGHT) / 2
        self.parts.append(f'<text x="{middle}" y="{_BOTTOM + 33}" text-anchor="middle">{escape(x_title)}</text>')

    def x(self, value: float) -> float:
        return _LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (_RIGHT - _LEFT)

    def y(self, value: float) -> float:
        return _BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (_BOTTOM - _TOP)


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _finite(line: Series) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]


def lines(title: str, drawn: Sequence[Series], x_title: str = "step") -> Markup | None:
    """Lines over a common axis, points where a line has few; None without a number."""
    return _drawn(title, drawn, x_title, joined=True)


def scatter(title: str, drawn: Sequence[Series], x_title: str) -> Markup | None:
    """Points; None without one."""
    return _drawn(title, drawn, x_title, joined=False)


def _drawn(title: str, drawn: Sequence[Series], x_title: str, *, joined: bool) -> Markup | None:
    kept = [(line, points) for line in drawn if (points := _finite(line))]
    if not kept:
        return None
    frame = _Frame([x for _, points in kept for x, _ in points], [y for _, points in kept for _, y in points], x_title)
    for line, points in kept:
        places = [(frame.x(x), frame.y(y)) for x, y in points]
        if joined and len(points) > 1:
            path = "".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(places))
            frame.parts.append(f'<path class="line {line.mark}" d="{path}"><title>{escape(line.name)}</title></path>')
        if not joined or len(points) < 12:
            for (x, y), (at, value) in zip(places, points, strict=True):
                said = f"{line.name}: {short(at)}, {short(value)}"
                frame.parts.append(
                    f'<circle class="dot {line.mark}" cx="{x:.1f}" cy="{y:.1f}" r="{4 if joined else 2.6}">'
                    f"<title>{escape(said)}</title></circle>"
                )
    keys = "".join(f'<span class="{line.mark}">{escape(line.name)}</span>' for line, _ in kept) if len(kept) > 1 else ""
    return _figure(title, frame.parts, keys)


def bars(title: str, drawn: Sequence[Bar]) -> Markup | None:
    """Horizontal bars of shares from 0 to 1, with intervals; None without one."""
    if not drawn:
        return None
    step = 26
    height = step * len(drawn) + 24
    parts = [f'<line class="zero" x1="{_bar_x(0.5):.1f}" x2="{_bar_x(0.5):.1f}" y1="4" y2="{height - 20}"/>']
    for number, bar in enumerate(drawn):
        y = 8 + step * number
        parts.append(f'<text x="150" y="{y + 12}" text-anchor="end">{escape(bar.label[:24])}</text>')
        parts.append(
            f'<rect class="bar" x="{_bar_x(0):.1f}" y="{y}" width="{_bar_x(bar.value) - _bar_x(0):.1f}" height="15">'
            f"<title>{escape(f'{bar.label}: {bar.value:.1%} [{bar.low:.1%}, {bar.high:.1%}] {bar.note}')}</title></rect>"
        )
        line = f'x1="{_bar_x(bar.low):.1f}" x2="{_bar_x(bar.high):.1f}" y1="{y + 7.5}" y2="{y + 7.5}"'
        parts.append(f'<line class="interval" {line}/>')
    for share in (0, 0.5, 1):
        parts.append(f'<text x="{_bar_x(share):.1f}" y="{height - 6}" text-anchor="middle">{share:.0%}</text>')
    return _figure(title, parts, "", height)


def _bar_x(share: float) -> float:
    return 160 + share * 280


def _figure(title: str, parts: Sequence[str], keys: str, height: int = HEIGHT) -> Markup:
    inside = "".join(parts)
    key = f'<div class="key">{keys}</div>' if keys else ""
    return Markup(
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{inside}</svg>{key}</figure>'
    )
