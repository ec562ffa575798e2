"""The labelling report as a page: sections, each a function from the summary to HTML ("" where there is nothing to say).

Annotators' names are other people's text: every text goes through `html.escape`.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from rlhf_jax.feedback.statistics.quality import GOLD_LEAST, SAME_LEAST
from rlhf_jax.runs import chart, label_charts
from rlhf_jax.runs.chart import Series, number
from rlhf_jax.runs.label_charts import Dot, dots
from rlhf_jax.runs.page import duration, table
from rlhf_jax.runs.report import document, section

Facts = Mapping[str, Any]

TOP = (1, 5, 20)
DAY = 86400


def html(found: Facts, *, title: str = "How the labelling goes") -> str:
    """The whole page of a `label_report.summary`."""
    sections = [
        section("To look at", alarms(found)),
        section("Agreement", agreement(found)),
        section("Annotators", annotators(found)),
        section("One by one", people(found)),
        section("Over time", course(found)),
        section("How to read it", GUIDE),
    ]
    return document(title, head(found) + "".join(sections), style=label_charts.STYLE)


GUIDE = (
    "<p><b>Krippendorff’s α</b> and the <b>κ</b>’s are 1 where people agree fully and 0 where they agree as often as chance. "
    "α takes any number of people and gaps; Fleiss’ κ the units with one number of people, the commonest; Cohen’s κ two "
    "people at a time (here the mean over couples; of scales, weighted by the squared distance). Gold items, repeats and "
    "skips do not count for agreement.</p>"
    "<p><b>At most</b> is what any model can score against one person’s decisive labels, given how often two agree.</p>"
    "<p><b>Crowd-BT’s η</b> is estimated without gold: 1 votes as the crowd does, ½ at random, 0 the opposite. "
    "<b>Dawid–Skene’s accuracy</b> is the estimated probability that a vote (first, second, tie) is right.</p>"
    "<p>Intervals are at 95 %: Wilson’s for shares, the exact binomial one for the first shown. Of 20 annotators without "
    "any position bias one is told to have some. An alarm is a reason to look, not a verdict on a person.</p>"
)


def head(found: Facts) -> str:
    """What there is, in two lines, and what of it is not human."""
    progress = found["progress"]
    told = [
        f"{_many(found['judgements'], 'judgement')} of {_many(found['items'], 'item')} "
        f"by {_many(len(found['annotators']), 'annotator')}",
        ", ".join(f"{number(n)} {escape(kind)}" for kind, n in found["kinds"].items()),
        f"{number(found['skipped'])} skipped",
        f"{number(found['both_bad'])} both bad",
        f"{number(found['gold'])} gold",
        _many(found["repeats"], "repeat"),
    ]
    html = f'<p class="soft">{" · ".join(filter(None, told))}</p>'
    if progress and progress["wanted"]:
        share = progress["given"] / progress["wanted"]
        html += (
            f"<p>{number(progress['given'])} of {number(progress['wanted'])} judgements wanted: {_percent(share)}.</p>"
        )
    made_up = {kind: n for kind, n in found["source_kinds"].items() if kind != "human"}
    if made_up:
        kinds = ", ".join(f"{number(n)} {escape(kind)}" for kind, n in made_up.items())
        html += f'<p class="note">Not by people: {kinds} of {_many(found["judgements"], "judgement")}.</p>'
    return html


def alarms(found: Facts) -> str:
    """Who to look at, and why."""
    if not found["annotators"]:
        return "<p>There are no judgements yet.</p>"
    rows = [
        {"annotator": a["annotator"], "why": "; ".join(a["alarms"].values())}
        for a in found["annotators"]
        if a["alarms"]
    ]
    return table(rows) if rows else "<p>Nothing is out of the ordinary.</p>"


def agreement(found: Facts) -> str:
    """A table, one row a question; the ceiling; and the couples folded away."""
    rows = []
    for q in found["agreement"]:
        rows.append(
            {"question": q["question"], "units": q["units"]}
            | {f"α {level}": q["alpha"].get(level) for level in ("nominal", "ordinal", "interval")}
            | {"Cohen’s κ": q["cohen"], "Fleiss’ κ": q["fleiss"], "of units": q["fleiss_units"] or None}
        )
    reasons = [f"{q['question']}: {q['reason']}" for q in found["agreement"] if q["reason"]]
    html = table(rows) + "".join(f'<p class="soft">{escape(reason)}.</p>' for reason in reasons)
    for q in found["agreement"]:
        if q.get("two_agree") is not None:
            html += (
                f"<p>{escape(q['question'].capitalize())}: two annotators who both prefer a response prefer the same one in "
                f"{_percent(q['two_agree'], 1)} of {number(q['rater_pairs'])} cases, so a model scores at most "
                f"{_percent(q['bound'], 1)} against one person."
            )
            if q["one_predicts_others"] is not None:
                html += (
                    f" One person predicts the others’ majority in {_percent(q['one_predicts_others'], 1)} "
                    f"of {number(q['judgements'])} cases."
                )
            html += "</p>"
    if found["couples"]:
        couples = [
            {"annotator": c["first"], "and": c["second"], "pairs": c["n"], "κ": c["kappa"]} for c in found["couples"]
        ]
        html += f"<details><summary>{len(couples)} couples of annotators</summary>{table(couples)}</details>"
    return html


def annotators(found: Facts) -> str:
    """The charts."""
    people = found["annotators"]
    share = label_charts.linear(0, 1)
    gold = [_dot(a, "gold_accuracy", (a["reliability"] or {}).get("eta")) for a in people]
    first = [_dot(a, "first_shown") for a in people]
    again = [_dot(a, "self_consistency") for a in people]
    signs = "● estimate — 95 % interval ■ alarm"
    paces = [v / 1000 for a in people for v in (a["speed"]["low"], a["speed"]["high"]) if v]
    seconds = "seconds per 100 characters (log scale)"
    limit = None if found["fast_limit"] is None else (found["fast_limit"] / 1000, "5th percentile")
    histogram = found["pace_histogram"]
    charts = [
        dots(
            *("Right on gold", "share of gold items judged right", _sorted(gold), share),
            guide=(GOLD_LEAST, "alarm below"),
            signs=f"{signs} ○ Crowd-BT’s η",
        ),
        dots(
            *("Prefers what is shown first", "share of decisive pairs", _sorted(first), share),
            guide=(0.5, "no bias"),
            signs=signs,
        ),
        dots(
            *("Says the same again", "share of swapped repeats judged alike", _sorted(again), share),
            guide=(SAME_LEAST, "a coin"),
            signs=signs,
        ),
        dots(
            *("Pace", seconds, _sorted([_pace(a) for a in people]), label_charts.logarithmic(paces)),
            guide=limit,
            signs="● median — nine of ten judgements ■ alarm",
        ),
        label_charts.histogram(
            *("Pace of all judgements", seconds, [edge / 1000 for edge in histogram["edges"]], histogram["counts"]),
            guide=limit,
        ),
        _concentration(found["concentration"]),
    ]
    return f'<div class="charts">{"".join(charts)}</div>' if any(charts) else ""


def _dot(a: Facts, key: str, other: float | None = None) -> Dot:
    got = a[key]["same"] if key == "self_consistency" else a[key]
    return Dot(a["annotator"], got["share"], got["low"], got["high"], key in a["alarms"], other)


def _pace(a: Facts) -> Dot:
    low, median, high = (None if v is None else v / 1000 for v in (a["speed"][k] for k in ("low", "median", "high")))
    return Dot(a["annotator"], median, low, high, "speed" in a["alarms"])


def _sorted(rows: Sequence[Dot]) -> list[Dot]:
    """Alarms first, then from the lowest value up."""
    return sorted(rows, key=lambda row: (not row.alarm, row.value is None, row.value or 0.0, row.name))


def _concentration(shares: Sequence[float]) -> str:
    if len(shares) < 2:
        return ""
    step = math.ceil(len(shares) / chart.SMOOTHED * 1.1)  # few enough points that none are averaged
    count = [*range(0, len(shares), step), len(shares)]
    series = [
        Series("judgements", count, [shares[k - 1] if k else 0.0 for k in count]),
        Series("if all gave as many", count, [k / len(shares) for k in count]),
    ]
    drawn = chart.lines("Who gave the judgements", "share of all judgements", series, "busiest annotators")
    tops = [f"the busiest {k} gave {_percent(shares[k - 1])}" for k in TOP if k < len(shares)]
    drawn = drawn.replace('class="c1"', 'class="c1 dashed"')  # told apart in grey too
    return drawn.replace("</figure>", f'<p class="signs">{escape("; ".join(tops).capitalize())}.</p></figure>')


def people(found: Facts) -> str:
    """Every annotator's figures as a table."""
    rows = []
    for a in found["annotators"]:
        trust = a["reliability"] or {}
        pace = a["speed"]["median"]
        rows.append(
            {"annotator": a["annotator"], "judgements": a["judgements"]}
            | ({"kind": a["source_kind"]} if set(found["source_kinds"]) != {"human"} else {})
            | {"right on gold": _share(a["gold_accuracy"]), "η": _round(trust.get("eta"))}
            | {"Dawid–Skene": _round(trust.get("accuracy")), "first shown": _share(a["first_shown"])}
            | {"said again": _share(a["self_consistency"]["same"]), "κ again": _round(a["self_consistency"]["kappa"])}
            | {"s / 100 characters": None if pace is None else round(pace / 1000, 2)}
            | {"longest run": a["longest_run"]["length"], "skipped": a["skipped"]}
        )
    waiting = found.get("without_judgements", ())
    listed = ", ".join(escape(name) for name in waiting)
    return table(rows) + (f'<p class="soft">No judgement yet from {listed}.</p>' if waiting else "")


def _many(count: int, thing: str) -> str:
    return f"{number(count)} {thing}{'' if count == 1 else 's'}"


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _share(share: Facts) -> str:
    if share["share"] is None:
        return "–"
    return f"{share['share']:.2f} of {share['n']} ({share['low']:.2f}\u2060–\u2060{share['high']:.2f})".replace(
        " ", "\u00a0"
    )


def _percent(share: float, digits: int = 0) -> str:
    return f"{100 * share:.{digits}f}\u00a0%"


def course(found: Facts) -> str:
    """How the judgements came in."""
    points = found["timeline"]
    if len(points) < 2 or points[-1][0] <= points[0][0]:
        return ""
    start, end = points[0][0], points[-1][0]
    unit, size = (
        ("days", DAY) if end - start > 3 * DAY else ("hours", 3600) if end - start > 3 * 3600 else ("minutes", 60)
    )
    series = [Series("judgements", [(t - start) / size for t, _ in points], [n for _, n in points])]
    since = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%d %H:%M UTC")
    html = chart.lines("Judgements so far", "judgements", series, f"{unit} since {since}")
    return f'<div class="charts">{html}</div><p class="soft">{duration(end - start)} from the first to the last.</p>'
