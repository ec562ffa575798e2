"""Line charts as inline SVG: no script, no request, and colours that follow the page's light or dark scheme."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 480, 216
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 8, 26
COLOURS = 8  # classes c0 … c7 in STYLE; more lines start again, dashed
SMOOTHED = 60
MAX_POINTS = 400  # beyond it, neighbours are averaged: a screen has no more columns to give

# Lines are told apart in grey too: each colour has its own dashes, shown in the legend.
DASHES = ("", "8 3", "2 3", "8 3 2 3", "14 4", "5 2 1 2", "1 4", "14 3 3 3")

# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/), darkened for
# white paper and lightened for a dark screen.
STYLE = """
:root{--c0:#0072b2;--c1:#c35a00;--c2:#00805c;--c3:#b0558a;--c4:#a07800;--c5:#2f8fc4;--c6:#6b6b6b;--c7:#6a51a3}
@media(prefers-color-scheme:dark){:root{--c0:#5bb0ea;--c1:#f08a3c;--c2:#3cc79f;--c3:#e08fbd;--c4:#e6c04a;--c5:#8fd0f5;
--c6:#b5b5b5;--c7:#b09fe0}}
figure{margin:0;min-width:0}figcaption{display:flex;gap:.5em;align-items:baseline;margin-bottom:.2em}
figcaption b{font-weight:600}.legend{display:flex;flex-wrap:wrap;gap:.1em 1em;min-height:1.4em;font-size:.82em}
svg{display:block;width:100%;height:auto;overflow:visible}
.legend svg{display:inline-block;width:2em;height:.5em;margin-right:.4em;vertical-align:.1em}.legend line{stroke-width:2.5}
svg text{font-size:11px;fill:var(--soft)}svg .grid{stroke:var(--line);stroke-width:1}
svg polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}
""" + "".join(f"svg .c{i}{{stroke:var(--c{i})}}svg circle.c{i}{{fill:var(--c{i})}}" for i in range(8))
STYLE += "".join(f"svg .c{i}{{stroke-dasharray:{dashes}}}" for i, dashes in enumerate(DASHES) if dashes)
STYLE += "svg .dashed{stroke-dasharray:6 4}svg .raw{stroke-width:1;opacity:.28;stroke-dasharray:none}"


class Series(NamedTuple):
    """One line: its name and its points; None (or a number that is not finite) leaves a gap."""

    name: str
    x: Sequence[int | float]
    y: Sequence[int | float | None]


def number(value: int | float | None) -> str:
    """A number for people: four significant digits, no trailing zeros; a dash for None."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:,.0f}".replace(",", "\u2009").replace("-", "−")
    if 1e-3 <= abs(value) < 1e6:
        text = f"{value:,.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace(",", "\u2009").replace("-", "−")


def ticks(low: int | float, high: int | float, count: int = 4) -> list[int | float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) from low to high."""
    if not low < high:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def lines(title: str, unit: str, series: Sequence[Series], x_label: str = "iteration") -> str:
    """One chart as HTML: title and unit, a legend where there are several lines, the curves. "" if there is no point.

    A line of more than SMOOTHED points is drawn faintly, and over it the mean of its neighbourhood.
    """
    series = [_thinned(s) for s in series if any(_finite(v) for v in s.y)]
    if not series:
        return ""
    xs = [x for s in series for x in s.x]
    ys = [float(v) for s in series for v in s.y if v is not None and _finite(v)]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    room = (y1 - y0) * 0.06 or abs(y0) * 0.1 or 1.0
    y0, y1 = y0 - (0 if y0 == 0 else room), y1 + room
    across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: int | float, y: int | float) -> str:
        along = 0.5 if x1 == x0 else (x - x0) / (x1 - x0)
        return f"{LEFT + along * across:.1f},{TOP + (y1 - y) / (y1 - y0) * down:.1f}"

    parts = []
    for tick in ticks(y0, y1):
        x, y = place(x0, tick).split(",")
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{float(y) + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    marks = [t for t in ticks(x0, x1, 5) if float(t).is_integer()]
    for tick in marks:
        x, _ = place(tick, y0).split(",")
        parts.append(f'<text x="{x}" y="{HEIGHT - 9}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT + 3}" text-anchor="end">{escape(x_label)}</text>')
    legend = []
    for i, s in enumerate(series):
        look = f"c{i % COLOURS}" + (" dashed" if i >= COLOURS else "")
        key = f'<svg viewBox="0 0 28 6" aria-hidden="true"><line class="{look}" x1="0" x2="28" y1="3" y2="3"/></svg>'
        legend.append(f"<span>{key}{escape(s.name)}</span>")
        smooth = len(s.y) > SMOOTHED
        parts += _curve(s.x, s.y, look + (" raw" if smooth else ""), place)
        if smooth:
            parts += _curve(s.x, _mean_around(s.y, len(s.y) // 24), look, place)
    last = ", ".join(f"{s.name} ends at {number(next(v for v in reversed(s.y) if _finite(v)))}" for s in series)
    label = escape(f"{title} ({unit}) by {x_label}: {last}" if unit else f"{title} by {x_label}: {last}", quote=True)
    return (
        f'<figure><figcaption><b>{escape(title)}</b> <span class="soft">{escape(unit)}</span></figcaption>'
        + (f'<div class="legend">{"".join(legend)}</div>' if len(series) > 1 else '<div class="legend"></div>')
        + f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 6}" role="img" aria-label="{label}">{"".join(parts)}</svg></figure>'
    )


def _finite(value: int | float | None) -> bool:
    return value is not None and math.isfinite(value)


def _thinned(s: Series) -> Series:
    """At most MAX_POINTS points, each the mean of its neighbours."""
    size = math.ceil(len(s.x) / MAX_POINTS)
    if size <= 1:
        return s
    groups = [range(i, min(i + size, len(s.x))) for i in range(0, len(s.x), size)]
    x = [sum(s.x[i] for i in group) / len(group) for group in groups]
    return Series(s.name, x, [_mean([s.y[i] for i in group]) for group in groups])


def _mean(values: Sequence[float | int | None]) -> int | float | None:
    real = [v for v in values if v is not None and _finite(v)]
    return sum(real) / len(real) if real else None


def _mean_around(values: Sequence[float | int | None], reach: int) -> list[int | float | None]:
    """For each point the mean of those within `reach` of it; gaps stay gaps."""
    near = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [_mean(window) if _finite(value) else None for value, window in zip(values, near)]


def _curve(
    x: Sequence[int | float],
    y: Sequence[int | float | None],
    look: str,
    place: Callable[..., str],
) -> list[str]:
    """Polylines between the gaps; a point with gaps on both sides as a dot."""
    runs: list[list[str]] = [[]]
    for a, b in zip(x, y):
        if b is not None and math.isfinite(b):
            runs[-1].append(place(a, b))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in filter(None, runs):
        if len(run) == 1:
            cx, cy = run[0].split(",")
            parts.append(f'<circle class="{look}" cx="{cx}" cy="{cy}" r="2.5"/>')
        else:
            parts.append(f'<polyline class="{look}" points="{" ".join(run)}"/>')
    return parts
