"""Charts of a sweep as inline SVG: estimates with their intervals, one row an arm; learning curves with bands.

They go by the page's own colours. What must be told apart differs in shape too, so that they read in grey.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from rlhf_jax.runs.chart import number, ticks

WIDTH, RIGHT, TOP, ROW, BOTTOM = 760, 16, 22, 22, 42
SHORT = 46
"""Characters of an arm's name that are shown."""

SMALL_WIDTH, SMALL_HEIGHT, LEFT, LOW, HIGH = 360, 200, 50, 38, 20

STYLE = """
svg .axis{stroke:var(--soft)}svg .guide{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 3}
svg .span{stroke:var(--c0);stroke-width:2.2}svg .dot{fill:var(--c0)}svg .base{fill:var(--ink)}
svg .span.own{stroke:var(--ink)}svg .seed{fill:none;stroke:var(--soft);stroke-width:1}
svg .name{fill:var(--ink);font-size:11.5px}svg .name.own{font-weight:700}svg .lost{font-style:italic}
.signs{font-size:.82em;color:var(--soft);margin:.1em 0 .4em;max-width:none}.estimates{max-width:860px;margin-bottom:1.4rem}
svg .band{fill:var(--c0);opacity:.22;stroke:none}svg .edge{fill:none;stroke:var(--ink);stroke-width:.9;stroke-dasharray:1.5 2.5}
svg polyline.arm{stroke:var(--c0);stroke-width:2.2}svg polyline.basis{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:6 4}
"""


class Mark(NamedTuple):
    """One row: a name, its estimate and interval (None: not drawn), its seeds; `own` is the baseline; `lost` says why not."""

    name: str
    value: int | float | None
    low: int | float | None
    high: int | float | None
    seeds: Sequence[int | float] = ()
    own: bool = False
    lost: str = ""


class Line(NamedTuple):
    """A curve [T] with its band."""

    name: str
    x: Sequence[int]
    middle: Sequence[int | float]
    low: Sequence[int | float]
    high: Sequence[int | float]


def estimates(
    title: str,
    x_label: str,
    rows: Sequence[Mark],
    *,
    signs: str,
    guide: int | float | None = None,
    ends: Sequence[int | float] = (),
) -> str:
    """One row a mark: dot (the baseline a square), interval, and a ring a seed; "" where nothing is to be drawn.

    `guide` is a value to compare with; `ends` are values that the axis must reach.
    """
    values = [v for row in rows for v in (row.value, row.low, row.high, *row.seeds) if v is not None]
    values += [*ends, *([] if guide is None or not values else [guide])]
    values = [v for v in values if math.isfinite(v)]
    if not any(row.value is not None or row.seeds for row in rows):
        return ""
    low, high = min(values), max(values)
    room = 0.0 if ends and low >= min(ends) and high <= max(ends) else (high - low) * 0.05 or abs(low) * 0.1 or 1.0
    low, high = low - room, high + room
    left = 24 + 6.3 * max(8, *(min(len(row.name), SHORT) for row in rows))
    foot, across = TOP + ROW * len(rows), WIDTH - left - RIGHT

    def place(value: int | float) -> str:
        return f"{left + (value - low) / (high - low) * across:.1f}"

    parts = []
    for tick in ticks(low, high, 6):
        parts.append(f'<line class="grid" x1="{place(tick)}" x2="{place(tick)}" y1="{TOP}" y2="{foot}"/>')
        parts.append(f'<text x="{place(tick)}" y="{foot + 15}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<line class="axis" x1="{left:.1f}" x2="{WIDTH - RIGHT}" y1="{foot}" y2="{foot}"/>')
    parts.append(f'<text x="{left + across / 2:.0f}" y="{foot + 33}" text-anchor="middle">{escape(x_label)}</text>')
    if guide is not None:
        parts.append(f'<line class="guide" x1="{place(guide)}" x2="{place(guide)}" y1="{TOP - 6}" y2="{foot}"/>')
    for k, row in enumerate(rows):
        parts += _row(row, TOP + ROW * (k + 0.5), left, place)
    told = "; ".join(f"{row.name} {number(row.value)}" for row in rows)
    return _figure(title, f"{x_label}: {told}", signs, WIDTH, foot + BOTTOM, parts, "estimates")


def _row(row: Mark, y: int | float, left: int | float, place: Callable[[int | float], str]) -> list[str]:
    own = " own" if row.own else ""
    parts = [f'<text class="name{own}" x="{left - 12:.1f}" y="{y + 4:.1f}" text-anchor="end">{_short(row.name)}</text>']
    if row.lost:
        parts.append(f'<text class="lost" x="{left + 6:.1f}" y="{y + 4:.1f}">{escape(row.lost)}</text>')
    if row.value is not None and row.low is not None and row.high is not None:
        ends = f'x1="{place(row.low)}" x2="{place(row.high)}" y1="{y:.1f}" y2="{y:.1f}"'
        parts.append(f'<line class="span{own}" {ends}/>')
    if not row.lost:
        parts += [f'<circle class="seed" cx="{place(v)}" cy="{y:.1f}" r="2.6"/>' for v in row.seeds]
    if row.value is not None and row.own:
        x = float(place(row.value)) - 4.5
        parts.append(f'<rect class="base" x="{x:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>')
    elif row.value is not None:
        parts.append(f'<circle class="dot" cx="{place(row.value)}" cy="{y:.1f}" r="4.5"/>')
    return parts


def curves(
    title: str,
    y_label: str,
    arm: Line,
    basis: Line | None,
    ends: tuple[int | float, int | float],
    x_label: str = "iteration",
) -> str:
    """An arm's curve and band (solid, filled) over the baseline's (dashed, dotted edges); `ends` of the y axis."""
    low, high = ends
    room = (high - low) * 0.06 or abs(low) * 0.1 or 1.0
    low, high = low - room, high + room
    lines = [line for line in (basis, arm) if line is not None]
    first, final = min(line.x[0] for line in lines), max(line.x[-1] for line in lines)
    across, down = SMALL_WIDTH - LEFT - 10, SMALL_HEIGHT - HIGH - LOW

    def place(x: int | float, y: int | float) -> str:
        along = 0.5 if final == first else (x - first) / (final - first)
        return f"{LEFT + along * across:.1f},{HIGH + (high - y) / (high - low) * down:.1f}"

    parts = []
    for tick in ticks(low, high, 4):
        y = float(place(first, tick).split(",")[1])
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{SMALL_WIDTH - 10}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    foot = HIGH + down
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{SMALL_WIDTH - 10}" y1="{foot}" y2="{foot}"/>')
    for tick in [t for t in ticks(first, final, 5) if float(t).is_integer()]:
        x = place(tick, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{foot + 14}" text-anchor="middle">{number(tick)}</text>')
    parts.append(f'<text x="{LEFT + across / 2:.0f}" y="{foot + 31}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="{LEFT - 44}" y="{HIGH - 9}">{escape(y_label)}</text>')
    if basis is not None:
        for edge in (basis.low, basis.high):
            parts.append(f'<polyline class="edge" points="{_points(basis.x, edge, place)}"/>')
    around = f"{_points(arm.x, arm.high, place)} {_points(arm.x[::-1], arm.low[::-1], place)}"
    parts.append(f'<polygon class="band" points="{around}"/>')
    if basis is not None:
        parts.append(f'<polyline class="basis" points="{_points(basis.x, basis.middle, place)}"/>')
    parts.append(f'<polyline class="arm" points="{_points(arm.x, arm.middle, place)}"/>')
    told = f"{y_label} by {x_label}: " + ", ".join(f"{line.name} ends at {number(line.middle[-1])}" for line in lines)
    return _figure(title, told, "", SMALL_WIDTH, SMALL_HEIGHT, parts, "")


def _points(x: Sequence[int], y: Sequence[int | float], place: Callable[[int | float, int | float], str]) -> str:
    return " ".join(place(a, b) for a, b in zip(x, y))


def _short(name: str) -> str:
    return escape(name if len(name) <= SHORT else name[: SHORT - 1] + "…")


def _figure(title: str, label: str, signs: str, width: int, height: int, parts: Sequence[str], look: str) -> str:
    return (
        f'<figure class="{look}"><figcaption><b>{escape(title)}</b></figcaption>'
        + (f'<p class="signs">{escape(signs)}</p>' if signs else "")
        + f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{title}, {label}", quote=True)}">'
        f"{''.join(parts)}</svg></figure>"
    )
