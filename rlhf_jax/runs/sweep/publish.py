"""A sweep in a page of documentation: its tables as Markdown, its estimates as drawings, both from summary.csv alone.

    python -m rlhf_jax.runs.sweep.publish SCRIPT SWEEP.yaml SUMMARY.csv PAGE.md

In the page, what stands between `<!-- METRIC -->` and `<!-- /METRIC -->` becomes that metric's table, under a drawing that is
written beside the page; all other words stay. Run again, it changes nothing.
"""

import argparse
import csv
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.runs import chart
from rlhf_jax.runs.chart import number
from rlhf_jax.runs.ranges import check, nearest, shown
from rlhf_jax.runs.sweep import charts, page, spec
from rlhf_jax.runs.sweep.compare import compare
from rlhf_jax.runs.sweep.refused import refused, words
from rlhf_jax.runs.sweep.results import Outcome, Results
from rlhf_jax.runs.sweep.spec import Metric, Sweep

STYLE = f"""{chart.STYLE.split("figure{")[0]}{charts.STYLE}
svg{{--ink:#1c1e21;--soft:#667;--line:#e4e6ea;--c0:#0072b2;background:#fff;font-family:system-ui,sans-serif}}
svg text{{font-size:11px;fill:var(--soft)}}svg .grid{{stroke:var(--line)}}svg .name{{fill:var(--ink);font-size:11.5px}}
"""
"""On white in either scheme: what shows the drawing may know neither."""


def from_csv(sweep: Sweep, path: str | Path) -> Results:
    """The results that a summary.csv holds, without curves. UserError for a file that is not of this sweep."""
    with refused("cannot read the summary", OSError), refused(str(path), UnicodeDecodeError, csv.Error):
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    outcomes = tuple(_outcome(row, sweep, f"{path}, row {i}") for i, row in enumerate(rows, 1))
    known: set[tuple[str, int]] = set()
    for point in outcomes:
        check(
            (point.arm, point.seed) not in known, f"{path} has two rows of {point.arm!r}, seed {point.seed}: keep one"
        )
        known.add((point.arm, point.seed))
    lost = [f"{arm!r}, seed {seed}" for arm in sweep.arms for seed in sweep.seeds if (arm, seed) not in known]
    check(not lost, f"{path} has no row of {lost and lost[0]}, which the sweep has")
    return Results("", tuple(sweep.arms), sweep.seeds, sweep.metrics, sweep.baseline, outcomes)


def _outcome(row: Mapping[str, str], sweep: Sweep, at: str) -> Outcome:
    needed = ("arm", "seed", "status", *(metric.name for metric in sweep.metrics))
    for column in needed:
        check(column in row, f"{at} has no column {column!r}; is it the summary.csv of this sweep?")
    whole = None not in row and None not in row.values()  # what DictReader makes of cells too many, and too few
    check(whole, f"{at} has not as many cells as the first line has columns")
    check(row["arm"] in sweep.arms, f"{at}: the sweep has no arm {row['arm']!r}{nearest(row['arm'], sweep.arms)}")
    check(row["seed"].isdecimal(), f"{at}: seed must be a whole number, got {shown(row['seed'])}")
    values = {
        metric.name: _number(row[metric.name], f"{at}: {metric.name}") for metric in sweep.metrics if row[metric.name]
    }
    return Outcome(row["arm"], int(row["seed"]), row["status"], values, {})


def _number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    check(math.isfinite(value), f"{name} must be a number, got {shown(text)}")
    return value


def table(found: Results, metric: Metric) -> str:
    """A metric's comparison as a Markdown table."""
    rows = page.told(compare(found, metric), found.baseline)
    heads = list(rows[0])
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else number(value)
    return text.replace("|", "\\|").replace("\u00a0", " ")


def drawing(found: Results, metric: Metric) -> str:
    """A metric's interquartile means, with intervals and seeds, as an SVG file."""
    figure = page.estimates(found, metric, compare(found, metric))
    parts = re.search(r'<svg viewBox="0 0 (\d+) (\d+)" role="img" aria-label="([^"]*)">(.*)</svg>', figure, re.S)
    assert parts is not None, "a figure holds a drawing"
    width, height, label, body = parts.groups()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{label}"><style>{STYLE}</style>{body}</svg>\n'
    )


def fill(text: str, found: Results, stem: str) -> tuple[str, dict[str, str]]:
    """The page's text with its tables, and the drawings by file name. UserError for a passage of no metric, or none at all."""
    metrics = {metric.name: metric for metric in found.metrics}
    drawings: dict[str, str] = {}

    def passage(match: re.Match[str]) -> str:
        name = match[1]
        check(name in metrics, f"<!-- {name} -->: the sweep compares no such metric{nearest(name, metrics)}")
        file = f"{stem}.{name.replace('/', '_')}.svg"
        drawings[file] = drawing(found, metrics[name])
        label = unescape(re.findall(r'aria-label="([^"]*)"', drawings[file])[0]).partition(":")[0]
        return f"<!-- {name} -->\n![{label}]({file})\n\n{table(found, metrics[name])}\n<!-- /{name} -->"

    filled = re.sub(r"<!-- (\S+) -->.*?<!-- /\1 -->", passage, text, flags=re.S)
    check(bool(drawings), "the page has no passage between <!-- METRIC --> and <!-- /METRIC --> to fill")
    return filled, drawings


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a page; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.runs.sweep.publish", description="Tables of a page.")
    for name in ("script", "sweep", "summary", "page"):
        parser.add_argument(name)
    args = parser.parse_args(argv)
    try:
        path = Path(args.page)
        found = from_csv(spec.load(args.script, args.sweep), args.summary)
        with refused(str(path), UnicodeDecodeError):
            text = path.read_text(encoding="utf-8")
        filled, drawings = fill(text, found, path.stem)
        for file, content in {path.name: filled, **drawings}.items():
            target = path.with_name(file)
            hidden = target.with_name(f".{target.name}.new")
            hidden.write_text(content, encoding="utf-8")
            os.replace(hidden, target)
        print(f"{path}: {len(drawings)} tables and drawings")
        return 0
    except (UserError, OSError) as error:
        print(f"error: {words(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
