"""Lines in a picture (SVG), for pages that are read where no program draws. Needs nothing.

In: points by the name of their line. Out: text of an SVG file that is legible on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor

WIDTH, HEIGHT, LEFT, BOTTOM, RIGHT, TOP = 720, 380, 64, 48, 180, 20
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#a855f7", "#64748b")
Line = Sequence[tuple[float, float]]


def svg(lines: Mapping[str, Line], across: str, up: str, title: str) -> str:
    """`lines` with axes, and their names beside them. across, up: what the axes are; title: of the names."""
    xs, ys = zip(*(point for line in lines.values() for point in line), strict=True)
    low, high = floor(min(ys) / 10) * 10, ceil(max(ys) / 10) * 10

    def place(x: float, y: float) -> tuple[float, float]:
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return (
            LEFT + wide * (x - min(xs)) / (max(xs) - min(xs)),
            HEIGHT - BOTTOM - tall * (y - low) / max(high - low, 1),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13" '
        'fill="#808080" role="img">'
    ]
    for y in range(low, high + 1, 10):
        left, height = place(min(xs), y)
        parts.append(f'<path d="M{left:.1f} {height:.1f}H{WIDTH - RIGHT}" stroke="#80808040"/>')
        parts.append(f'<text x="{left - 8:.1f}" y="{height + 4:.1f}" text-anchor="end">{y}</text>')
    for x in sorted(set(xs)):
        left, height = place(x, low)
        parts.append(f'<text x="{left:.1f}" y="{height + 18:.1f}" text-anchor="middle">{x:g}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{escape(across)}</text>')
    parts.append(f'<text x="16" y="{HEIGHT - BOTTOM}" transform="rotate(-90 16 {HEIGHT - BOTTOM})">{escape(up)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT + 16}" y="{TOP + 12}">{escape(title)}</text>')
    for number, ((name, line), colour) in enumerate(zip(lines.items(), COLOURS, strict=False)):
        points = " ".join(f"{left:.1f},{height:.1f}" for left, height in (place(*point) for point in line))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        height = TOP + 34 + 20 * number
        parts.append(f'<path d="M{WIDTH - RIGHT + 16} {height - 4}h18" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 42}" y="{height}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>\n"])
