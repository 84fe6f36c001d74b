"""Line charts as inline SVG whose colours come from the page around them (`--s0`, `--s1`, ...), so that they follow its theme."""

from __future__ import annotations

from html import escape
from math import floor, isfinite, log10

Points = list[tuple[float, float]]

BUCKETS = 100
"""A longer curve is drawn as the means of so many stretches, with a band from the smallest to the largest value of each."""

TRANSIENT = 0.05
"""The first part of the steps does not set the frame: a loss that starts at 20 and ends at 2 would hide everything else."""


def line_chart(series: dict[str, Points], width: int, height: int, title: str) -> str:
    """Named curves in one frame; names and last values stand at their right ends. Values that are not finite are left out.

    ``series`` must hold at least one finite point. Colours are given by the order of the names.
    """
    drawn = {name: _buckets([p for p in points if isfinite(p[1])]) for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    ends = {name: f"{name} {short(points[-1][1], 4)}".strip() for name, points in drawn.items()}
    left, right, top, bottom = 46, 15 + 7 * max(map(len, ends.values())), 10, 24
    x0, x1, y0, y1 = _frame(drawn)

    def px(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (width - left - right)

    def py(y: float) -> float:
        return height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom)

    frame = f"{width}-{''.join(c if c.isalnum() else '-' for c in title)}"
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f'<clipPath id="{frame}"><rect x="{left}" y="{top - 4}" width="{width - left - right + 2}" '
        f'height="{height - top - bottom + 4}"/></clipPath>',
    ]
    for tick in ticks(y0, y1, 5):
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{py(tick):.1f}" y2="{py(tick):.1f}"/>')
        parts.append(f'<text x="{left - 7}" y="{py(tick) + 3.5:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in ticks(x0, x1, 4 if width < 600 else 8):
        parts.append(f'<text x="{px(tick):.1f}" y="{height - 6}" text-anchor="middle">{short(tick)}</text>')
    parts.append(f'<g clip-path="url(#{frame})">')
    names = list(series)
    for name, points in drawn.items():
        colour = f"var(--s{names.index(name) % 5})"
        if any(low < high for _, _, low, high in points):
            edge = [(x, high) for x, _, _, high in points] + [(x, low) for x, _, low, _ in reversed(points)]
            corners = " ".join(f"{px(x):.1f},{py(_clamp(y, y0, y1)):.1f}" for x, y in edge)
            parts.append(f'<polygon points="{corners}" fill="{colour}" opacity="0.13"/>')
        line = " ".join(f"{px(x):.1f},{py(_clamp(y, y0, y1)):.1f}" for x, y, *_ in points)
        if len(points) == 1:
            parts.append(f'<circle cx="{px(points[0][0]):.1f}" cy="{py(points[0][1]):.1f}" r="3" fill="{colour}"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
    parts.append("</g>")
    heights = {name: py(_clamp(points[-1][1], y0, y1)) for name, points in drawn.items()}
    for name, y in _apart(heights, 14, height - bottom).items():
        x, colour = px(drawn[name][-1][0]) + 6, f"var(--s{names.index(name) % 5})"
        parts.append(f'<text class="end" x="{x:.1f}" y="{y + 3.5:.1f}" fill="{colour}">{escape(ends[name])}</text>')
    return "".join([*parts, "</svg>"])


def short(value: float, digits: int = 3) -> str:
    """A number in few characters: 0.05, 2.31, 12.5k, 3M, 1e-05."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high], about so many."""
    raw = (high - low) / about
    power = 10 ** floor(log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first, last = -floor(-low / step + 1e-9), floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _buckets(points: Points) -> list[tuple[float, float, float, float]]:
    """(x, mean, smallest, largest) of stretches of equal length in x."""
    if len(points) <= BUCKETS:
        return [(x, y, y, y) for x, y in points]
    low, high = points[0][0], points[-1][0]
    stretches: dict[int, list] = {}
    for x, y in points:
        stretches.setdefault(min(BUCKETS - 1, int((x - low) / (high - low) * BUCKETS)), []).append((x, y))
    result = []
    for stretch in stretches.values():
        values = [y for _, y in stretch]
        result.append((stretch[-1][0], sum(values) / len(values), min(values), max(values)))
    return result


def _frame(drawn: dict[str, list]) -> tuple[float, float, float, float]:
    """Limits of x and y, never empty."""
    xs = [p[0] for points in drawn.values() for p in points]
    x0, x1 = min(xs), max(xs)
    start = x0 + TRANSIENT * (x1 - x0) if max(map(len, drawn.values())) >= 20 else x0
    settled = [p[1] for points in drawn.values() for p in points if p[0] >= start]
    y0, y1 = min(settled), max(settled)
    room = 0.06 * (y1 - y0) or 0.5 * abs(y0) or 1.0
    return x0, x1 if x1 > x0 else x0 + 1, y0 - room, y1 + room


def _clamp(y: float, low: float, high: float) -> float:
    """Far outside is drawn just outside, where the clip cuts it off."""
    margin = high - low
    return min(max(y, low - margin), high + margin)


def _apart(places: dict[str, float], gap: float, limit: float) -> dict[str, float]:
    """Labels moved until they are ``gap`` apart, none below ``limit``."""
    moved, last = {}, float("-inf")
    for name, y in sorted(places.items(), key=lambda item: item[1]):
        last = moved[name] = max(y, last + gap)
    for name in reversed(moved):
        moved[name] = min(moved[name], limit)
        limit = moved[name] - gap
    return moved
