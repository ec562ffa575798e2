"""A sweep as one HTML page that needs nothing else, in the look of the other reports, and as a table of plain text."""

import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.runs.chart import number
from rlhf_jax.runs.page import PLOTS
from rlhf_jax.runs.page import table as html_table
from rlhf_jax.runs.report import document, section
from rlhf_jax.runs.sweep import charts
from rlhf_jax.runs.sweep.charts import Line, Mark
from rlhf_jax.runs.sweep.compare import Band, Estimate, Row, bands, compare, table
from rlhf_jax.runs.sweep.results import Results, summary, write_csv
from rlhf_jax.runs.sweep.spec import Metric

GUIDE = (
    "<p><b>Interquartile mean</b>: the mean over seeds without the lowest and the highest quarter (of 5 seeds, without one "
    "at either end). <b>Probability of improvement</b>: how often a run of the arm is better than a run of the baseline, "
    "over all pairs of their seeds; a tie counts half, and ½ is no difference. Both, and their stratified bootstrap "
    "intervals (percentiles, each arm’s seeds redrawn on their own), are those of arXiv 2108.13264.</p>"
    "<p><b>Paired difference</b>: the mean of arm minus baseline under the same seed, with Student’s t interval. With few "
    "seeds trust it most: below about ten, bootstrap intervals are too narrow, as no draw goes beyond the runs there were."
    "</p><p>All intervals are at 95 %, each on its own: of twenty arms without any effect, one is told to have one.</p>"
    "<p>An arm of which a seed failed, or ended with a number that is not finite, has no average: the seeds that are left "
    "would flatter it.</p>"
)


def write(found: Results, folder: str | Path) -> Path:
    """Write summary.csv (a row a point), comparison.csv (a row a metric and arm) and report.html; the path of the last."""
    folder = Path(folder)
    try:
        write_csv(folder / "summary.csv", summary(found))
        write_csv(folder / "comparison.csv", table(found))
        path, hidden = folder / "report.html", folder / ".report.html.new"
        hidden.write_text(html(found), encoding="utf-8", errors="replace")
        os.replace(hidden, path)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    return path


def html(found: Results) -> str:
    """The whole page."""
    parts = [section("Failures", failures(found))]
    parts += [section(name(metric), metric_html(found, metric)) for metric in found.metrics]
    parts += [
        section("Every point", every(found)),
        section("How to read it", GUIDE),
        section("What ran", asked(found)),
    ]
    return document(found.title, head(found) + "".join(parts), style=charts.STYLE)


def head(found: Results) -> str:
    """How much there is, in one line, and what was noted."""
    counts: dict[str, int] = {}
    for point in found.outcomes:
        counts[point.status] = counts.get(point.status, 0) + 1
    words = f"{len(found.arms)} arms × {len(found.seeds)} seeds: " + ", ".join(f"{n} {s}" for s, n in counts.items())
    baseline = f" · baseline: {escape(found.baseline)}" if found.baseline else ""
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    return f'<p class="soft">{escape(words)}{baseline}</p>{notes}'


def failures(found: Results) -> str:
    """Every point that failed, and why; "" where none has."""
    lost = [point for point in found.outcomes if point.status in ("failed", "blocked")]
    rows = [
        {"arm": p.arm, "seed": str(p.seed)} | ({"id": p.id} if p.id else {}) | {"error": p.error or p.status}
        for p in lost
    ]
    return f'<p class="note">{len(rows)} of {len(found.outcomes)} points failed.</p>{html_table(rows)}' if rows else ""


def name(metric: Metric) -> str:
    """The metric's title: that of the reports where they know it, else its own name."""
    for title, _, pattern in PLOTS:
        if re.fullmatch(pattern, metric.name):
            return f"{title}: {metric.name}"
    return metric.name


def label(metric: Metric) -> str:
    """What an axis says: the metric, and what it is counted in where that is known."""
    known = next((unit for _, unit, pattern in PLOTS if re.fullmatch(pattern, metric.name)), "")
    unit = metric.unit or known
    return metric.name + (f" ({unit})" if unit else "")


def metric_html(found: Results, metric: Metric) -> str:
    """Estimates, probabilities, table and curves of one metric."""
    rows = compare(found, metric)
    parts = [estimates(found, metric, rows)]
    chances = [_mark(row.arm, row.improvement) for row in rows if row.improvement]
    parts.append(
        charts.estimates(
            f"Probability of improvement over {found.baseline}",
            f"probability that {metric.name} is {metric.better}",
            chances,
            signs="● estimate — 95 % interval ┆ no difference",
            guide=0.5,
            ends=(0.0, 1.0),
        )
    )
    gains = [_mark(row.arm, row.gain) for row in rows if row.gain]
    parts.append(
        charts.estimates(
            f"Difference to {found.baseline}, paired by seed",
            f"difference of {label(metric)}",
            gains,
            signs="● mean — 95 % interval (Student’s t) ┆ no difference",
            guide=0.0,
        )
    )
    return "".join(parts) + html_table(told(rows, found.baseline)) + learning(found, metric)


def estimates(found: Results, metric: Metric, rows: Sequence[Row]) -> str:
    """The chart of interquartile means with their intervals and seeds."""
    base = next((row.iqm[0] for row in rows if row.arm == found.baseline and row.iqm), None)
    marks = [_mark(row.arm, row.iqm, list(row.values.values()), row.arm == found.baseline, _lost(row)) for row in rows]
    signs = f"● interquartile mean over seeds, of the last {number(100 * metric.over)} % of each run"
    signs += " — 95 % interval ○ one seed"
    signs += " ■ baseline ┆ its mean" if found.baseline else ""
    return charts.estimates("Interquartile mean", label(metric), marks, signs=signs, guide=base)


def told(rows: Sequence[Row], baseline: str) -> list[dict[str, Any]]:
    """The rows of a metric's table, for people; a column `note` only where something is missing."""
    noted = any(row.note for row in rows)
    return [cells(row, baseline) | ({"note": row.note} if noted else {}) for row in rows]


def _mark(arm: str, estimate: Estimate | None, seeds: Sequence[float] = (), own: bool = False, lost: str = "") -> Mark:
    value, low, high = estimate or (None, None, None)
    return Mark(arm, value, low, high, seeds, own, lost)


def _lost(row: Row) -> str:
    return row.note if row.note.startswith("no average") or not row.values else ""


def learning(found: Results, metric: Metric) -> str:
    """A small chart an arm, all on one scale, each with the baseline's curve behind it."""
    drawn = [band for band in bands(found, metric) if len(band.iterations) > 1]
    if not drawn:
        return ""
    basis = next((_line(band) for band in drawn if band.arm == found.baseline), None)
    ends = min(min(band.low) for band in drawn), max(max(band.high) for band in drawn)
    arms = [band for band in drawn if band.arm != found.baseline] or drawn
    figures = "".join(charts.curves(band.arm, label(metric), _line(band), basis, ends) for band in arms)
    words = "Interquartile mean over seeds, shaded its 95 % interval at each iteration."
    words += " Dashed: the baseline, dotted its interval." if basis else ""
    return f'<h3>Learning curves</h3><p class="soft">{words}</p><div class="charts">{figures}</div>'


def _line(band: Band) -> Line:
    return Line(band.arm, band.iterations, band.middle, band.low, band.high)


def cells(row: Row, baseline: str) -> dict[str, Any]:
    """One row of a table, for people."""
    shown: dict[str, Any] = {"arm": row.arm, "seeds": len(row.values), "IQM": row.iqm[0] if row.iqm else None}
    shown["95 % interval"] = _interval(row.iqm)
    if baseline:
        own = row.arm == baseline
        shown["P(improvement)"] = "baseline" if own else _with_interval(row.improvement)
        shown["paired difference"] = "" if own else _with_interval(row.gain, "+")
    return shown


def text(found: Results) -> str:
    """The tables as plain text."""
    parts = []
    for metric in found.metrics:
        rows = [{k: _plain(v) for k, v in row.items()} for row in told(compare(found, metric), found.baseline)]
        parts.append(f"{label(metric)}\n{columns(rows)}")
    lost = [point for point in found.outcomes if point.status in ("failed", "blocked")]
    if lost:
        listed = "\n".join(f"  {p.arm}, seed {p.seed}  {p.id}  {p.error or p.status}" for p in lost)
        parts.append(f"{len(lost)} of {len(found.outcomes)} points failed\n{listed}")
    return "\n\n".join(parts)


def columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of text in columns, the first to the left, the others to the right."""
    heads = list(rows[0])
    wide = {head: max(len(head), *(len(row[head]) for row in rows)) for head in heads}
    lines = [{head: head for head in heads}, *rows]

    def put(head: str, cell: str) -> str:
        return cell.ljust(wide[head]) if head in (heads[0], "note") else cell.rjust(wide[head])

    return "\n".join("  " + "  ".join(put(head, line[head]) for head in heads).rstrip() for line in lines)


def every(found: Results) -> str:
    """A row a point, folded away where there are many."""
    rows = [{k: v for k, v in row.items() if k not in ("folder", "error")} for row in summary(found)]
    rows = [row | {"seed": str(row["seed"])} for row in rows]
    shown = html_table(rows)
    return shown if len(rows) <= 12 else f"<details><summary>{len(rows)} points</summary>{shown}</details>"


def asked(found: Results) -> str:
    """What was asked for."""
    return f"<pre>{escape(found.source.rstrip())}</pre>" if found.source else ""


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate[1] is None:
        return "–"
    return f"[{number(estimate[1])},\u00a0{number(estimate[2])}]"


def _with_interval(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "–"
    plus = sign if estimate[0] > 0 else ""
    return f"{plus}{number(estimate[0])}\u00a0{_interval(estimate)}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else number(value)
