"""What the runs of a sweep logged: one value a metric and a curve for every point, and summary.csv of all of them."""

import csv
import io
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.runs.lines import read_lines
from rlhf_jax.runs.ranges import nearest
from rlhf_jax.runs.sweep import state
from rlhf_jax.runs.sweep.plan import Job
from rlhf_jax.runs.sweep.spec import Metric

Curve = dict[int, float | None]
"""{iteration: value}; None where it was not finite."""


class Outcome(NamedTuple):
    """One point: how it ended, and what it logged."""

    arm: str
    seed: int
    status: str
    """"done", "failed", or what it waits for."""
    values: Mapping[str, float | None]
    """By metric; None where a value was not finite, no entry where nothing was logged."""
    curves: Mapping[str, Curve]
    error: str = ""
    id: str = ""
    folder: str = ""
    seconds: int | float | None = None


class Results(NamedTuple):
    """All points of a sweep, and how they are to be compared."""

    title: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    metrics: tuple[Metric, ...]
    baseline: str
    outcomes: tuple[Outcome, ...]
    notes: tuple[str, ...] = ()
    source: str = ""
    """What was asked for, as text."""


def read(job: Job, metrics: Sequence[Metric], status: str = "") -> Outcome:
    """A point from its files. `status` is what a sweep that ran it knows; without one the markers tell."""
    assert job.seed is not None, "a stage is no outcome"
    done, failed = state.done(job), state.failure(job)
    status = "done" if done else status or ("failed" if failed else "waiting")
    error = str(failed["error"]) if failed and not done and status == "failed" else ""
    rows = rows_of(job) if done else []
    curves = {metric.name: curve(rows, metric.name) for metric in metrics}
    curves = {name: points for name, points in curves.items() if points}
    values = {metric.name: last(curves[metric.name], metric.over) for metric in metrics if metric.name in curves}
    seconds = (done or failed or {}).get("seconds")
    return Outcome(job.arm, job.seed, status, values, curves, error, job.id, str(job.folder), seconds)


def rows_of(job: Job) -> list[dict[str, Any]]:
    """The lines of the run's metrics.jsonl; [] without the file."""
    path = job.folder / "metrics.jsonl"
    return read_lines(path) if path.exists() else []


def curve(rows: Iterable[Mapping[str, Any]], metric: str) -> Curve:
    """The metric by iteration, of those lines that have it."""
    found = {row["iteration"]: row[metric] for row in rows if metric in row}
    return {at: float(v) if _finite(v) else None for at, v in sorted(found.items())}


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)  # other people's scripts may write NaN


def last(points: Curve, over: int | float) -> float | None:
    """Mean of the last `over` (a share above 0, at most 1) of the points, rounded, one at least; None where one is."""
    real = list(points.values())
    tail = real[-max(1, round(over * len(real))) :]
    finite = [value for value in tail if value is not None]
    return statistics.fmean(finite) if len(finite) == len(tail) else None


def check_metrics(jobs: Sequence[Job], metrics: Sequence[Metric]) -> None:
    """UserError for a metric that none of the finished points has, unless it is optional; nothing while none is finished."""
    finished = [job for job in jobs if not job.stage and state.done(job)]
    if not finished:
        return
    names = dict.fromkeys(name for job in finished for row in rows_of(job) for name in row if name != "iteration")
    for metric in metrics:
        if metric.name not in names and not metric.optional:
            raise UserError(
                f"metrics: no finished run has {metric.name!r}{nearest(metric.name, names, 0.0)}"
                + (f" They have {', '.join(list(names)[:12])}{' …' if len(names) > 12 else ''}" if names else "")
            )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table as CSV (numbers in full, nothing for None), whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.new")
    hidden.write_text(text.getvalue(), encoding="utf-8", errors="replace")
    os.replace(hidden, path)


def summary(found: Results) -> list[dict[str, Any]]:
    """Rows of summary.csv: one a point, in the order of arms and seeds."""
    place = {arm: i for i, arm in enumerate(found.arms)}
    rows = []
    for point in sorted(found.outcomes, key=lambda point: (place[point.arm], point.seed)):
        row: dict[str, Any] = {"arm": point.arm, "seed": point.seed, "status": point.status, "id": point.id}
        row |= {metric.name: point.values.get(metric.name) for metric in found.metrics}
        rows.append(row | {"seconds": point.seconds, "folder": point.folder, "error": point.error})
    return rows
