"""How the labelling goes: agreement, and each annotator's work, as JSON and as one HTML page that needs nothing else.

    python -m rlhf_jax.runs.label_report judgements.sqlite                 into judgements.report.json and .html beside it
    python -m rlhf_jax.runs.label_report judgements.sqlite --names         with people's names instead of pseudonyms

Every number is that of a function of `feedback.quality`, `feedback.agreement*` or `feedback.annotators` on the same rows.
"""

import argparse
import json
import math
import os
import sqlite3
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import quality
from rlhf_jax.feedback.statistics.agreement import (
    FIRST,
    SECOND,
    TIE,
    accuracy_bound,
    fleiss_kappa,
    leave_one_out,
    pairwise_agreement,
)
from rlhf_jax.feedback.statistics.alpha import krippendorff_alpha
from rlhf_jax.feedback.statistics.annotators import Reliability, reliability
from rlhf_jax.feedback.statistics.quality import Judged
from rlhf_jax.feedback.statistics.rows import PairUnits, Units, counts, couples, preferences, ratings, strengths
from rlhf_jax.feedback.store import open_store
from rlhf_jax.feedback.store.read import annotators, judged
from rlhf_jax.runs import label_page

LEAST_SHARED = 10
"""Of fewer pairs that others judged too, an annotator's reliability is not told."""


def summary(
    rows: Sequence[Judged], *, progress: Mapping[str, int] | None = None, invited: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything the report says, as plain JSON values; what the rows cannot tell is None, with a reason where it is one.

    `progress` is {"given", "wanted"}: judgements of ordinary items so far and in all; `invited` are all who have a link.
    Shares are {hits, n, share, low, high}, times seconds since 1970, paces ms per 100 characters.
    """
    people = quality.by_annotator(rows)
    limit = quality.fast_limit(rows)
    pairs = preferences(rows)
    trusted = reliability(pairs)
    shares = quality.concentration(rows)
    return {
        "judgements": len(rows),
        "items": len({row.item for row in rows}),
        "kinds": dict(Counter(row.kind for row in rows)),
        "source_kinds": dict(Counter(row.source_kind for row in rows)),
        "skipped": sum("skip" in row.verdict for row in rows),
        "both_bad": sum("both_bad" in row.verdict for row in rows),
        "gold": sum(row.gold is not None for row in rows),
        "repeats": sum(row.repeat for row in rows),
        "timeline": timeline([row.created for row in rows]),
        "progress": dict(progress) if progress is not None else None,
        "agreement": _agreement(rows),
        "couples": [couple._asdict() for couple in couples(pairs.values(), categories=(TIE, FIRST, SECOND))],
        "gold_accuracy": asdict(quality.gold_accuracy(rows)),
        "first_shown": asdict(quality.first_shown(rows)),
        "self_consistency": asdict(quality.self_consistency(rows)),
        "fast_limit": limit,
        "pace_histogram": pace_histogram([pace for pace in map(quality.pace, rows) if pace is not None]),
        "concentration": shares,
        "annotators": [_annotator(name, given, limit, trusted.get(name)) for name, given in people.items()],
        "without_judgements": [name for name in invited if name not in people],
    }


def timeline(created: Sequence[int | float], *, points: int = 50) -> list[tuple[float, int]]:
    """(time, judgements until then), at most about `points` of them."""
    times = sorted(created)
    step = max(1, math.ceil(len(times) / points))
    at = [*range(step - 1, len(times) - 1, step), len(times) - 1] if times else []
    return [(float(times[k]), k + 1) for k in at]


def pace_histogram(paces: Sequence[float], *, bins: int = 30) -> dict[str, list[Any]]:
    """How many judgements were how fast: `edges` [bins + 1], ms per 100 characters, evenly apart in their logarithm, and
    `counts` [bins]. Both empty without any time above 0."""
    real = [pace for pace in paces if pace > 0]
    if not real:
        return {"edges": [], "counts": []}
    edges = np.geomspace(min(real) * 0.9, max(real) * 1.1, bins + 1)
    return {"edges": edges.tolist(), "counts": np.histogram(real, edges)[0].tolist()}


def _annotator(name: str, rows: Sequence[Judged], limit: float | None, trust: Reliability | None) -> dict[str, Any]:
    run, pressed = quality.longest_run(rows)
    told = trust if trust is not None and trust.shared >= LEAST_SHARED else None
    return {
        "annotator": name,
        "source_kind": rows[0].source_kind,
        "judgements": len(rows),
        "skipped": sum("skip" in row.verdict for row in rows),
        "gold_accuracy": asdict(quality.gold_accuracy(rows)),
        "speed": asdict(quality.speed(rows, limit)),
        "first_shown": asdict(quality.first_shown(rows)),
        "self_consistency": asdict(quality.self_consistency(rows)),
        "longest_run": {"length": run, "key": pressed},
        "reliability": None if told is None else asdict(told),
        "alarms": quality.alarms(rows, limit),
    }


def _agreement(rows: Sequence[Judged]) -> list[dict[str, Any]]:
    """One entry a question: on each axis which response is better, and by how much; then each rating."""
    found = []
    for axis in dict.fromkeys(row.axis for row in rows):
        judged_on = [row for row in rows if row.axis == axis]
        on = "" if axis == "overall" else f" ({axis})"
        if pairs := preferences(judged_on):
            both, rater_pairs = pairwise_agreement(pairs.values())
            alone, judgements = leave_one_out(pairs.values())
            found.append(
                _question(f"which is better{on}", pairs, ("nominal",), (TIE, FIRST, SECOND))
                | {
                    "two_agree": both,
                    "rater_pairs": rater_pairs,
                    "bound": None if both is None else accuracy_bound(both),
                }
                | {"one_predicts_others": alone, "judgements": judgements}
            )
        if told := strengths(judged_on):
            found.append(_question(f"by how much, −3..3{on}", told, ("ordinal", "interval"), range(-3, 4)))
    for axis, units in ratings(rows).items():
        values = [value for unit in units.values() for value in unit.values()]
        found.append(_question(f"rating: {axis}", units, ("ordinal", "interval"), range(min(values), max(values) + 1)))
    return found


def _question(name: str, units: Units | PairUnits, levels: Sequence[str], categories: Sequence[int]) -> dict[str, Any]:
    alphas = {level: krippendorff_alpha((unit.values() for unit in units.values()), level=level) for level in levels}
    table = counts(units.values(), categories)
    weights = "nominal" if levels == ("nominal",) else "quadratic"
    kappas = [c for c in couples(units.values(), weights=weights, categories=categories) if c.kappa is not None]
    one = alphas[levels[0]]
    return {
        "question": name,
        "units": one.units,
        "values": one.values,
        "alpha": {level: _number(alpha.value) for level, alpha in alphas.items()},
        "reason": one.reason,
        "fleiss": _number(fleiss_kappa(table)) if table else None,
        "fleiss_units": len(table),
        "cohen": sum(c.n * (c.kappa or 0.0) for c in kappas) / sum(c.n for c in kappas) if kappas else None,
        "cohen_weights": weights,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def of_store(con: sqlite3.Connection, *, names: bool = False) -> dict[str, Any]:
    """`summary` of what stands in a store; with `names` people's names instead of their pseudonyms."""
    rows = judged(con)
    known = {person["id"]: person["name"] if names else person["id"] for person in annotators(con)}
    rows = [replace(row, annotator=known[row.annotator]) for row in rows]
    wanted = con.execute("SELECT coalesce(sum(target_n), 0) FROM item WHERE gold IS NULL").fetchone()[0]
    given = sum(row.gold is None and not row.repeat and "skip" not in row.verdict for row in rows)
    return summary(rows, progress={"given": given, "wanted": int(wanted)}, invited=list(known.values()))


def page_of_store(con: sqlite3.Connection, *, names: bool = False) -> str:
    """The HTML page of `of_store`."""
    return label_page.html(of_store(con, names=names))


def write(found: Mapping[str, Any], stem: str | Path) -> tuple[Path, Path]:
    """Write a summary as STEM.report.json and STEM.report.html, and return their paths. UserError where that fails."""
    texts = {
        "json": json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "html": label_page.html(found),
    }
    paths = []
    for kind, text in texts.items():
        path = Path(f"{stem}.report.{kind}")
        try:
            hidden = path.with_name(f".{path.name}.new")
            hidden.write_text(text, encoding="utf-8", errors="replace")
            os.replace(hidden, path)
        except OSError as error:
            raise UserError(f"cannot write the report {path}: {error.strerror}") from None
        paths.append(path)
    return paths[0], paths[1]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line: a store, and where to write."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.runs.label_report", description="How the labelling goes.")
    parser.add_argument("store", help="the file of judgements")
    parser.add_argument("--out", help="path of the report without its .report.html (default: the store's)")
    parser.add_argument("--names", action="store_true", help="people's names instead of their pseudonyms")
    args = parser.parse_args(argv)
    try:
        with closing(open_store(args.store, create=False)) as con:
            found = of_store(con, names=args.names)
        for path in write(found, args.out or str(Path(args.store).with_suffix(""))):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
