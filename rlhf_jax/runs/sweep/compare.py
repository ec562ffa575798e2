"""Arms compared metric by metric: interquartile means, probability of improvement, differences paired by seed.

An arm of which a seed failed, or ended with a value that is not finite, has no average: the seeds that are left would
flatter it. It says so instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.evaluation import aggregates, intervals
from rlhf_jax.runs.sweep.results import Outcome, Results
from rlhf_jax.runs.sweep.spec import Metric

Estimate = tuple[float, float | None, float | None]
"""Value and interval; no interval of a single seed."""


class Row(NamedTuple):
    """One arm under one metric."""

    metric: str
    arm: str
    values: Mapping[int, float]
    """By seed."""
    iqm: Estimate | None
    improvement: Estimate | None
    """Probability that a run of this arm is better than one of the baseline's; None for the baseline itself."""
    gain: Estimate | None
    """Mean difference to the baseline's run of the same seed, Student's t interval."""
    pairs: int
    note: str
    """What is missing, in words; "" where nothing is."""


def compare(found: Results, metric: Metric) -> list[Row]:
    """One row an arm, in their order."""
    points = {(point.arm, point.seed): point for point in found.outcomes}
    sides = {arm: _side(found, points, arm, metric.name) for arm in found.arms}
    base, base_note = sides.get(found.baseline, ({}, ""))
    rows = []
    for arm, (values, note) in sides.items():
        whole = bool(values) and not note.startswith("no average")
        against = whole and arm != found.baseline and bool(base) and not base_note.startswith("no average")
        common = [seed for seed in values if seed in base] if against else []
        gain = None
        if len(common) > 1:
            gain = intervals.paired([values[seed] - base[seed] for seed in common])
        rows.append(
            Row(
                metric.name,
                arm,
                values,
                _iqm(list(values.values())) if whole else None,
                _improvement(list(values.values()), list(base.values()), metric.better) if against else None,
                gain,
                len(common),
                note,
            )
        )
    return rows


def _side(
    found: Results, points: Mapping[tuple[str, int], Outcome], arm: str, metric: str
) -> tuple[dict[int, float], str]:
    """An arm's values by seed, and what of them is missing."""
    values: dict[int, float] = {}
    lost: dict[str, list[int]] = {}
    for seed in found.seeds:
        point = points[arm, seed]
        value = point.values.get(metric)
        if point.status in ("failed", "blocked"):
            lost.setdefault("failed", []).append(seed)
        elif point.status != "done":
            lost.setdefault("not run yet", []).append(seed)
        elif metric not in point.values:
            lost.setdefault("not logged", []).append(seed)
        elif value is None:
            lost.setdefault("not finite", []).append(seed)
        else:
            values[seed] = value
    told = "; ".join(f"{what}: seed {', '.join(map(str, seeds))}" for what, seeds in lost.items())
    return values, f"no average: {told}" if set(lost) - {"not run yet"} else told


def _iqm(values: Sequence[float]) -> Estimate:
    return aggregates.iqm_interval(values) if len(values) > 1 else (aggregates.iqm(values), None, None)


def _improvement(values: Sequence[float], base: Sequence[float], better: str) -> Estimate | None:
    if len(values) < 2 or len(base) < 2:
        return None
    return aggregates.improvement(*((values, base) if better == "higher" else (base, values)))


class Band(NamedTuple):
    """An arm's learning curve: interquartile mean over seeds at each iteration, and its band."""

    arm: str
    iterations: Sequence[int]
    middle: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    seeds: int


MAX_POINTS = 100


def bands(found: Results, metric: Metric) -> list[Band]:
    """The curves of all arms with at least two finished seeds. Only iterations that every such seed has, and of more than
    MAX_POINTS the means of neighbours. An arm with a value that is not finite, or a failed seed, has none."""
    made = []
    points = {(point.arm, point.seed): point for point in found.outcomes}
    for arm in found.arms:
        curves = [
            point.curves[metric.name]
            for point in found.outcomes
            if point.arm == arm and point.status == "done" and metric.name in point.curves
        ]
        if len(curves) < 2 or _side(found, points, arm, metric.name)[1].startswith("no average"):
            continue
        at = sorted(set.intersection(*(set(curve) for curve in curves)))
        array = np.array([[curve[i] for i in at] for curve in curves], np.float64)
        if not at or not np.isfinite(array).all():
            continue
        groups = np.array_split(np.arange(len(at)), min(len(at), MAX_POINTS))
        array = np.stack([array[:, group].mean(axis=1) for group in groups], axis=1)
        middle, low, high = aggregates.band(array)
        shown = [round(float(np.mean([at[i] for i in group]))) for group in groups]
        made.append(Band(arm, shown, middle.tolist(), low.tolist(), high.tolist(), len(curves)))
    return made


def table(found: Results) -> list[dict[str, Any]]:
    """Rows of comparison.csv: every metric and arm, with all numbers in full."""
    told = []
    for metric in found.metrics:
        for row in compare(found, metric):
            cells: dict[str, Any] = {"metric": row.metric, "arm": row.arm, "seeds": len(row.values)}
            for name, estimate in (("iqm", row.iqm), ("improvement", row.improvement), ("gain", row.gain)):
                value, low, high = estimate or (None, None, None)
                cells |= {name: value, f"{name}_low": low, f"{name}_high": high}
            told.append(cells | {"pairs": row.pairs, "note": row.note})
    return told
