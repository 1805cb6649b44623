"""The benchmark's chart: horizontal bars as SVG, written by hand, for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 760, 130, 60, 84, 58, 20

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 }
.quiet { fill: #59636e }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.cold { fill: #8fb8de }
.steady { fill: #1f6feb }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .quiet { fill: #9198a1 } .grid { stroke: #3d444d }
  .cold { fill: #3b5f85 } .steady { fill: #58a6ff }
}"""

Bar = tuple[str, float, float]  # name, cold and steady ms


def draw(bars: Sequence[Bar], pairs: int, candles: int) -> str:
    """The chart of CPU per pair and refresh, a row for each program."""
    step = _step(max(value for _, *values in bars for value in values))
    most = step * (int(max(value for _, *values in bars for value in values) / step) + 1)
    bottom = TOP + ROW * len(bars)
    inside = [*_head(pairs, candles), *_axis(most, step, bottom), *_rows(bars, most)]
    label = f"CPU per pair and refresh, {pairs} pairs: " + "; ".join(
        f"{name} cold {cold:.1f} ms, steady {steady:.1f} ms" for name, cold, steady in bars
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 50}" width="{WIDTH}"'
            f' height="{bottom + 50}" role="img" aria-label="{escape(label)}">',
            f"<style>\n{STYLE}\n</style>",
            *inside,
            "</svg>\n",
        ]
    )


def _step(most: float) -> float:
    """A round distance of grid lines, about six of them."""
    return next(step for step in (0.5, 1, 2, 5, 10, 20, 50, 100, 1e9) if most / step <= 7)


def _x(value: float, most: float) -> float:
    return LEFT + value / most * (WIDTH - LEFT - RIGHT)


def _head(pairs: int, candles: int) -> Iterator[str]:
    title = f"CPU per pair and refresh: {pairs} pairs, {candles} candles of 15m each"
    yield f'<text class="title" x="16" y="28">{title}</text>'
    for x, name, text in (
        (16, "cold", "cold: all candles fetched and stored"),
        (290, "steady", "steady: what a later refresh costs"),
    ):
        yield f'<rect class="{name}" x="{x}" y="45" width="12" height="12" rx="2"/>'
        yield f'<text x="{x + 18}" y="56">{text}</text>'


def _axis(most: float, step: float, bottom: int) -> Iterator[str]:
    for number in range(round(most / step) + 1):
        x = _x(number * step, most)
        yield f'<line class="grid" x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>'
        yield (
            f'<text class="quiet" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number * step:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield (
        f'<text class="quiet" x="{middle}" y="{bottom + 40}" text-anchor="middle">'
        "CPU, ms per pair (user + system, whole process; less is better)</text>"
    )


def _rows(bars: Sequence[Bar], most: float) -> Iterator[str]:
    for number, (name, *values) in enumerate(bars):
        y = TOP + number * ROW
        yield f'<text x="{LEFT - 10}" y="{y + BAR + 4}" text-anchor="end">{escape(name)}</text>'
        for kind, value in zip(("cold", "steady"), values, strict=True):
            end = _x(value, most)
            yield f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR}" rx="2"/>'
            yield f'<text x="{end + 6:.1f}" y="{y + 15}">{value:.1f}</text>'
            y += BAR + 2


def draw_delays(rows: Sequence[tuple[int, str, float, float]]) -> str:
    """The chart of close to readable, a row for each number of pairs and way, with p50 and p99 in seconds.

    The scale is logarithmic: it reaches from a hundredth of a second to minutes.
    """
    bottom, left = TOP + 34 * len(rows), 150
    room = WIDTH - left - 90

    def place(seconds: float) -> float:
        return left + room * (math.log10(min(max(seconds, 0.01), 1000)) + 2) / 5

    label = "Seconds from a candle's close to readable in Redis: " + "; ".join(
        f"{pairs} pairs {way} p50 {p50:.2f} s, p99 {p99:.2f} s" for pairs, way, p50, p99 in rows
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" width="{WIDTH}"'
        f' height="{bottom + 40}" role="img" aria-label="{escape(label)}">',
        f"<style>\n{STYLE}\n</style>",
        '<text class="title" x="16" y="28">From close to readable in Redis, seconds (p50 to p99)</text>',
        '<text class="quiet" x="16" y="50">simulated exchange on the same machine; logarithmic scale</text>',
    ]
    for seconds in (0.01, 0.1, 1, 10, 100, 1000):
        at = place(seconds)
        lines.append(f'<line class="grid" x1="{at:.1f}" y1="{TOP - 14}" x2="{at:.1f}" y2="{bottom}"/>')
        lines.append(
            f'<text class="quiet" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{seconds:g}</text>'
        )
    for number, (pairs, way, p50, p99) in enumerate(rows):
        y = TOP + 34 * number
        width = max(3.0, place(p99) - place(p50))
        css = "steady" if way == "live" else "cold"
        lines.append(f'<text x="16" y="{y + 15}">{pairs} pairs, {way}</text>')
        lines.append(
            f'<rect class="{css}" x="{place(p50):.1f}" y="{y}" width="{width:.1f}" height="20" rx="3"/>'
        )
        lines.append(
            f'<text class="quiet" x="{place(p99) + 8:.1f}" y="{y + 15}">{p50:.2f} to {p99:.2f}</text>'
        )
    return "\n".join([*lines, "</svg>\n"])
