"""Pictures as SVG: bars with their spread, and lines. Written by hand, so that every machine makes the same bytes.

They bring their own background, and colours for light and for dark, whichever the reader's browser asks for.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

STYLE = """
text { font: 12px system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 14px; font-weight: 600 } .faint { fill: #656d76 }
.back { fill: #ffffff } .grid { stroke: #d8dee4 } .whisker { stroke: #1f2328; fill: none }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .faint { fill: #9198a1 } .back { fill: #0d1117 }
.grid { stroke: #30363d } .whisker { stroke: #e6edf3 }
}
""".strip()
COLOURS = ("#d1580b", "#8c959f", "#8250df", "#0969da", "#1a7f37", "#bf3989", "#9a6700", "#6e7781")  # the first: kvtier's
CHARACTER = 6.6  # px of text, on the mean
BAR, GAP, HEADING, TICK_ROOM = 13, 5, 24, 46
PLOT_WIDTH, PLOT_HEIGHT = 300, 190


class Bar(NamedTuple):
    label: str
    colour: int
    value: float
    low: float
    high: float
    text: str  # behind it


class Point(NamedTuple):
    x: float
    value: float
    low: float
    high: float


class Panel(NamedTuple):
    """A part of a picture, drawn at 0, 0."""

    width: float
    height: float
    body: list[str]


class Scale:
    """Values to pixels."""

    def __init__(self, values: Sequence[float], pixels: float, is_log: bool) -> None:
        """`pixels` below 0: upwards."""
        good = [value for value in values if value > 0] or [1.0]
        self._log, self._pixels = is_log, pixels
        if is_log:
            self.low, self.high = _beside(min(good), -1), _beside(max(good), 1)
        else:
            step = _step(max(good))
            self.low, self.high = 0.0, math.ceil(max(good) / step - 1e-9) * step

    def __call__(self, value: float) -> float:
        if not self._log:
            return value / self.high * self._pixels
        value = max(value, self.low)
        return math.log(value / self.low) / math.log(self.high / self.low) * self._pixels

    def ticks(self) -> list[float]:
        if not self._log:
            step = _step(self.high)
            return [i * step for i in range(round(self.high / step) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 200 else (1,)
        found = [digit * 10.0**decade for decade in decades for digit in steps]
        return [tick for tick in found if self.low * 0.999 <= tick <= self.high * 1.001]


def _beside(value: float, way: int) -> float:
    """The nearest 1, 2 or 5 of a decade below it, or above it."""
    decade = 10.0 ** math.floor(math.log10(value))
    steps = [digit * decade for digit in (0.5, 1, 2, 5, 10, 20)]
    return max(s for s in steps if s < value * 0.999) if way < 0 else min(s for s in steps if s > value * 1.001)


def _step(highest: float) -> float:
    """Between ticks: 1, 2 or 5 of a decade, some five of them."""
    decade = 10.0 ** math.floor(math.log10(highest / 5))
    return next(digit * decade for digit in (1, 2, 5, 10) if highest / (digit * decade) <= 6)


def number(value: float) -> str:
    """Short: 0.05, 12, 4,096, 10 M."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


# --- panels ------------------------------------------------------------------------------------------------------


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], axis: str, is_log: bool, mark: float | None = None) -> Panel:
    """One group below the other, lying. `mark`: a value with a line of its own."""
    left = 20 + CHARACTER * max(len(bar.label) for _, of in groups for bar in of)
    right = 20 + CHARACTER * max(len(bar.text) for _, of in groups for bar in of)
    values = [value for _, of in groups for bar in of for value in (bar.low, bar.value, bar.high)]
    scale = Scale([*values, *([mark] if mark else [])], 420, is_log)
    height = sum(HEADING + len(of) * (BAR + GAP) for _, of in groups)
    body = []
    for tick in scale.ticks():
        x = left + scale(tick)
        body += [_line(x, 0, x, height, "grid"), _text(x, height + 16, number(tick), "middle", "faint")]
    if mark:
        body.append(_line(left + scale(mark), 0, left + scale(mark), height, "whisker", 'stroke-dasharray="3 3"'))
    y = 0.0
    for title, of in groups:
        body.append(_text(0, y + 16, title, "start", "", 'font-weight="600"'))
        y += HEADING
        for bar in of:
            middle, end = y + BAR / 2, left + scale(bar.value)
            body.append(_text(left - 8, middle + 4, bar.label, "end"))
            body.append(f'<rect x="{left:.1f}" y="{y:.1f}" width="{max(1.0, end - left):.1f}" height="{BAR}" '
                        f'fill="{COLOURS[bar.colour % len(COLOURS)]}"/>')  # fmt: skip
            if bar.high > bar.low:
                body.append(_line(left + scale(bar.low), middle, left + scale(bar.high), middle, "whisker"))
            body.append(_text(left + scale(max(bar.value, bar.high)) + 6, middle + 4, bar.text, "start", "faint"))
            y += BAR + GAP
    body.append(_text(left + 210, height + 36, axis, "middle", "faint"))
    return Panel(left + 420 + right, height + TICK_ROOM, body)


def lines(
    title: str,
    axes: tuple[str, str],
    series: Mapping[str, Sequence[Point]],
    is_log: tuple[bool, bool] = (True, True),
    mark: float | None = None,
    colours: Sequence[int] = range(len(COLOURS)),
) -> Panel:
    """One line a series, with the spread of each point, and its colour."""
    points = [point for of in series.values() for point in of]
    across = Scale([point.x for point in points], PLOT_WIDTH, is_log[0])
    up = Scale([v for p in points for v in (p.low, p.value, p.high)] + ([mark] if mark else []), PLOT_HEIGHT, is_log[1])
    left, top = 62.0, 44.0
    bottom = top + PLOT_HEIGHT
    body = [_text(0, 14, title, "start", "", 'font-weight="600"'), _text(0, 32, axes[1], "start", "faint")]
    for tick in up.ticks():
        y = bottom - up(tick)
        body += [_line(left, y, left + PLOT_WIDTH, y, "grid"), _text(left - 6, y + 4, number(tick), "end", "faint")]
    for x in sorted({point.x for point in points}):
        body.append(_text(left + across(x), bottom + 16, number(x), "middle", "faint"))
    if mark:
        body.append(
            _line(left, bottom - up(mark), left + PLOT_WIDTH, bottom - up(mark), "whisker", 'stroke-dasharray="3 3"')
        )
    for i, (name, of) in enumerate(series.items()):
        colour, y = COLOURS[colours[i] % len(COLOURS)], bottom + 54 + 17 * i
        places = [(left + across(p.x), bottom - up(p.value), bottom - up(p.low), bottom - up(p.high)) for p in of]
        path = " ".join(f"{x:.1f},{at:.1f}" for x, at, _, _ in places)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, at, low, high in places:
            body.append(f'<circle cx="{x:.1f}" cy="{at:.1f}" r="3" fill="{colour}"/>')
            if low > high:
                body.append(f'<line x1="{x:.1f}" y1="{low:.1f}" x2="{x:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
        body.append(
            f'<line x1="{left:.1f}" y1="{y - 4}" x2="{left + 20:.1f}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>'
        )
        body.append(_text(left + 26, y, name, "start"))
    body.append(_text(left + PLOT_WIDTH / 2, bottom + 34, axes[0], "middle", "faint"))
    return Panel(left + PLOT_WIDTH + 30, bottom + 50 + 17 * len(series), body)


def picture(title: str, panels: Sequence[Panel], columns: int = 1) -> str:
    """An SVG file: the panels in rows."""
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = max(sum(panel.width for panel in row) + 20 * (len(row) - 1) for row in rows) + 32
    body, y = [_text(16, 26, title, "start", "title")], 44.0
    for row in rows:
        x = 16.0
        for panel in row:
            body += [f'<g transform="translate({x:.1f} {y:.1f})">', *panel.body, "</g>"]
            x += panel.width + 20
        y += max(panel.height for panel in row) + 16
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {y:.0f}" width="{width:.0f}" height="{y:.0f}">'
    )
    back = f'<rect class="back" width="{width:.0f}" height="{y:.0f}"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", back, *body, "</svg>", ""])


def _text(x: float, y: float, said: str, anchor: str, kind: str = "", more: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    more = f" {more}" if more else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}{more}>{escape(said)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, more: str = "") -> str:
    more = f" {more}" if more else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{more}/>'
