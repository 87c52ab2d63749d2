"""Plots as SVG: bars with their spread, and lines over time. What a page needs, and no more."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape

WIDTH = 720
LEFT, RIGHT, TOP, BOTTOM = 180, 150, 40, 44
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#475569")
STYLE = "font-family:system-ui,sans-serif;font-size:13px;fill:#334155"


def bars(title: str, unit: str, sides: Mapping[str, Sequence[float]]) -> str:
    """Return horizontal bars: the median of each side, with a line from its least to its greatest run."""
    largest = max((max(values) for values in sides.values()), default=1.0) or 1.0
    row = 34
    height = TOP + row * len(sides) + 20
    scale = (WIDTH - LEFT - RIGHT) / largest
    parts = []
    for place, (side, values) in enumerate(sides.items()):
        middle = statistics.median(values)
        y = TOP + place * row
        parts += [
            f'<text x="{LEFT - 10}" y="{y + 17}" text-anchor="end">{escape(side)}</text>',
            f'<rect x="{LEFT}" y="{y + 2}" width="{middle * scale:.1f}" height="20" fill="{COLOURS[place % 6]}"/>',
            f'<path d="M{LEFT + min(values) * scale:.1f} {y + 12}H{LEFT + max(values) * scale:.1f}" stroke="#0f172a"/>',
            f'<text x="{LEFT + max(values) * scale + 8:.1f}" y="{y + 17}">{number(middle)} {escape(unit)}</text>',
        ]
    return _svg(title, height, parts)


def lines(title: str, x: str, y: str, sides: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Return one line a side over a common axis."""
    points = [point for each in sides.values() for point in each] or [(0.0, 0.0)]
    widest = max(point[0] for point in points) or 1.0
    highest = max(point[1] for point in points) or 1.0
    height, left, right = 320, 80, 160
    across, up = (WIDTH - left - right) / widest, (height - TOP - BOTTOM) / highest
    floor = height - BOTTOM
    parts = [f'<path d="M{left} {TOP}V{floor}H{WIDTH - right}" fill="none" stroke="#94a3b8"/>']
    for quarter in range(5):
        at = floor - quarter * highest / 4 * up
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{number(quarter * highest / 4)}</text>')
        parts.append(
            f'<text x="{left + quarter * widest / 4 * across:.1f}" y="{floor + 18}" text-anchor="middle">'
            f"{number(quarter * widest / 4)}</text>"
        )
    parts.append(f'<text x="{left}" y="{TOP - 8}">{escape(y)}</text>')
    parts.append(f'<text x="{WIDTH - right}" y="{floor + 36}" text-anchor="end">{escape(x)}</text>')
    for place, (side, each) in enumerate(sides.items()):
        colour = COLOURS[place % 6]
        path = "L".join(f"{left + a * across:.1f} {floor - b * up:.1f}" for a, b in each)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<text x="{WIDTH - right + 10}" y="{TOP + 18 * place}" style="fill:{colour}">{escape(side)}</text>'
        )
    return _svg(title, height, parts)


def number(value: float) -> str:
    """Return it as a reader wants it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" role="img" style="{STYLE}">',
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="16" y="22" style="font-weight:600">{escape(title)}</text>',
            *parts,
            "</svg>\n",
        ]
    )
