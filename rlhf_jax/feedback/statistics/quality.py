"""How each annotator works, from plain rows of what was judged: gold, speed, position, repeats, same keys, shares.

A row is a `Judged`. Everything here is a pure function of rows; each figure comes with the number of judgements it
rests on and, where it is a share, with its interval. An alarm is a reason to look, not a verdict on a person.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import betaincinv, ndtri

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics.agreement import FIRST, SECOND, TIE, cohen_kappa

KINDS = ("pair", "rank", "rate")
GOLD_LEAST = 0.7
"""Gold accuracy that alarms below it: InstructGPT's labellers agree in 73 to 77 % on items that are not chosen to be clear
(arXiv 2203.02155)."""
SAME_LEAST = 0.5
"""Self-consistency that alarms below it: a coin agrees with itself half the time."""


@dataclass(frozen=True)
class Judged:
    """One judgement, as the statistics need it. UserError for an unknown kind, or a verdict that does not fit it."""

    annotator: str
    item: str
    kind: str
    """"pair", "rank" or "rate"."""
    verdict: Mapping[str, Any]
    """In the item's own order of responses, whatever the order shown: {"strength": -3..3} (below 0: the first response
    is better) or {"both_bad": True} of a pair; {"ranks": [0, 2, 1]} (0 best, equal is a tie); {"ratings": {"helpful":
    4}} of one response; {"skip": True} of anything."""
    shown: tuple[int, ...] = ()
    """shown[k]: the place, in the item's own order, of the response that stood k-th on the page; () if unknown."""
    ms: int | float | None = None
    """Milliseconds from the item's appearance to the verdict."""
    characters: int = 0
    """Length of what had to be read: prompt and responses."""
    gold: Mapping[str, Any] | None = None
    """The right verdict, of a hidden item with a known answer."""
    repeat: bool = False
    """Whether this annotator had judged the item before, and saw it again with the order swapped."""
    created: int | float = 0.0
    """Seconds since 1970, or any number that grows."""
    source_kind: str = "human"
    axis: str = "overall"
    """On what a pair or a ranking is judged; ratings name their own axes."""

    def __post_init__(self) -> None:
        fits = {"pair": {"strength", "both_bad"}, "rank": {"ranks"}, "rate": {"ratings"}}
        if self.kind not in fits:
            raise UserError(f"kind is one of {', '.join(KINDS)}, got {self.kind!r}")
        for verdict in (self.verdict, self.gold or {"skip": True}):
            if len(verdict.keys() & (fits[self.kind] | {"skip"})) != 1:
                raise UserError(f"the verdict of a {self.kind} has one of {', '.join(sorted(fits[self.kind]))}, skip")


@dataclass(frozen=True)
class Share:
    """`hits` of `n` and the interval of the share; of nothing (n = 0) share and interval are None."""

    hits: int | float
    n: int
    share: float | None
    low: float | None
    high: float | None


def wilson(hits: int | float, n: int, *, level: int | float = 0.95) -> Share:
    """A share with its Wilson score interval (1927), which is sound for few judgements and for shares near 0 or 1."""
    if n == 0:
        return Share(0, 0, None, None, None)
    z, share = float(ndtri(0.5 + level / 2)), hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at a share of 0 or 1 the end of the interval is that share; rounding would put it a hair outside
    return Share(hits, n, share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)))


def exact(hits: int, n: int, *, level: float = 0.95) -> Share:
    """A share with its exact binomial interval (Clopper and Pearson 1934), which covers at least as often as it says."""
    if n == 0:
        return Share(0, 0, None, None, None)
    tail = (1 - level) / 2
    low = float(betaincinv(hits, n - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, n - hits, 1 - tail)) if hits < n else 1.0
    return Share(hits, n, hits / n, low, high)


def by_annotator(rows: Iterable[Judged]) -> dict[str, list[Judged]]:
    """Each annotator's rows in the order of their making; annotators by name."""
    found: dict[str, list[Judged]] = {}
    for row in sorted(rows, key=lambda r: (r.annotator, r.created)):
        found.setdefault(row.annotator, []).append(row)
    return found


def preference(verdict: Mapping[str, Any]) -> int | None:
    """FIRST 1, SECOND 2 or TIE 0 of a pair; both bad prefers neither, TIE. None of a skip and of other kinds."""
    if "both_bad" in verdict:
        return TIE
    strength = verdict.get("strength")
    return None if strength is None else TIE if strength == 0 else FIRST if strength < 0 else SECOND


def same(said: Mapping[str, Any], meant: Mapping[str, Any], *, within: int | float = 1) -> bool | None:
    """Whether a verdict says what another one means; None where either is a skip.

    Pair: the same preference, however strong. Ranking: what `meant` puts strictly above something else stands above it
    in `said` too; its ties leave the order open. Ratings: every axis that `meant` rates, rated at most `within` steps
    away.
    """
    if "skip" in said or "skip" in meant:
        return None
    if "ranks" in meant:
        a, b = (np.sign(np.subtract.outer(v["ranks"], v["ranks"])) for v in (said, meant))
        return bool((a == b)[b != 0].all())
    if "ratings" in meant:
        given = said["ratings"]
        return all(axis in given and abs(given[axis] - value) <= within for axis, value in meant["ratings"].items())
    return preference(said) == preference(meant)


def gold_accuracy(rows: Iterable[Judged], *, level: float = 0.95) -> Share:
    """Share of gold items judged as their answer says, with its Wilson interval. Skips do not count."""
    right = [same(row.verdict, row.gold) for row in rows if row.gold is not None and not row.repeat]
    counted = [r for r in right if r is not None]
    return wilson(sum(counted), len(counted), level=level)


def pace(row: Judged) -> float | None:
    """Milliseconds per 100 characters read; None of a skip, or where time or length is unknown."""
    if row.ms is None or row.characters <= 0 or "skip" in row.verdict:
        return None
    return 100 * row.ms / row.characters


@dataclass(frozen=True)
class Speed:
    """How fast one annotator judges, ms per 100 characters."""

    n: int
    median: float | None
    low: float | None
    """The 5th and the 95th percentile of this annotator's own judgements: between them lie nine of ten."""
    high: float | None
    fast: Share
    """Judgements faster than the pool's 5th percentile."""


def fast_limit(rows: Iterable[Judged], *, percentile: int | float = 5) -> float | None:
    """The pool's percentile of `pace`, ms per 100 characters: what counts as fast. None without any time."""
    paces = [p for p in map(pace, rows) if p is not None]
    return float(np.percentile(paces, percentile)) if paces else None


def speed(rows: Iterable[Judged], limit: int | float | None) -> Speed:
    """Median pace of one annotator, and the share of judgements below `limit` (`fast_limit` of everyone's rows)."""
    paces = [p for p in map(pace, rows) if p is not None]
    fast = sum(p < limit for p in paces) if limit is not None else 0
    low, median, high = np.percentile(paces, (5, 50, 95)).tolist() if paces else (None, None, None)
    return Speed(len(paces), median, low, high, wilson(fast, len(paces)))


def first_shown(rows: Iterable[Judged], *, level: float = 0.95) -> Share:
    """Share of decisive pair judgements that prefer the response shown first; exact binomial interval.

    With the order drawn at random it is one half without position bias, whatever the responses; the interval excludes
    one half by chance for one annotator in 20.
    """
    sides = [(row.shown[0], preference(row.verdict)) for row in rows if row.kind == "pair" and len(row.shown) == 2]
    decisive = [(at, said) for at, said in sides if said in (FIRST, SECOND)]
    return exact(sum((said == FIRST) == (at == 0) for at, said in decisive), len(decisive), level=level)


@dataclass(frozen=True)
class Consistency:
    """Whether an annotator who sees an item again, with the order swapped, says the same."""

    same: Share
    kappa: float | None
    """Cohen's kappa of the pairs' preferences, first time against second; None where chance agreement is complete."""


def self_consistency(rows: Iterable[Judged], *, level: float = 0.95) -> Consistency:
    """Of one annotator's repeats: the share judged as the first time (Wilson interval), and kappa of the pairs.

    The first judgement of an item is the one that is no repeat. Who always takes the first shown agrees with
    themselves only on ties; who answers at random has kappa 0.
    """
    given = list(rows)
    before = {(row.annotator, row.item): row for row in given if not row.repeat}
    both = [
        (before[row.annotator, row.item], row) for row in given if row.repeat and (row.annotator, row.item) in before
    ]
    told = [same(again.verdict, once.verdict, within=0) for once, again in both]
    counted = [t for t in told if t is not None]
    labels = [(preference(a.verdict), preference(b.verdict)) for a, b in both if a.kind == "pair"]
    labels = [(a, b) for a, b in labels if a is not None and b is not None]
    kappa = cohen_kappa([a for a, _ in labels], [b for _, b in labels]) if labels else math.nan
    return Consistency(wilson(sum(counted), len(counted), level=level), None if math.isnan(kappa) else kappa)


def key(row: Judged) -> str:
    """What was pressed, in the order shown: equal for two judgements that took the same keys."""
    verdict = row.verdict
    if "strength" in verdict:
        swapped = row.shown == (1, 0)
        return f"strength {-verdict['strength'] if swapped else verdict['strength']:+d}"
    if "ranks" in verdict:
        ranks = list(verdict["ranks"])
        return f"ranks {[ranks[k] for k in row.shown] if len(row.shown) == len(ranks) else ranks}"
    if "ratings" in verdict:
        return f"ratings {sorted(verdict['ratings'].items())}"
    return "both bad" if "both_bad" in verdict else "skip"


def longest_run(rows: Sequence[Judged]) -> tuple[int, str]:
    """The longest run of one and the same key in one annotator's rows, in the order of their making; and that key.

    Of n judgements that take this key with probability p, a run of r or more has a probability of at most n p^r: of 500
    at p = 0.5, one of 16 or more happens to fewer than one honest annotator in 100.
    """
    best, run, last = (0, ""), 0, None
    for row in sorted(rows, key=lambda r: r.created):
        run = run + 1 if key(row) == last else 1
        last = key(row)
        best = max(best, (run, last), key=lambda b: b[0])
    return best


def concentration(rows: Iterable[Judged]) -> list[float]:
    """[k]: the share of all judgements that the k + 1 busiest annotators gave. (HH-RLHF: about 20 people gave 80 %,
    arXiv 2204.05862.)"""
    counts = np.sort(list(Counter(row.annotator for row in rows).values()))[::-1]
    return (np.cumsum(counts) / counts.sum()).tolist() if len(counts) else []


def top_share(rows: Iterable[Judged], k: int) -> float | None:
    """The share of all judgements that the k busiest annotators gave; None of none. Raises UserError for k below 1."""
    if k < 1:
        raise UserError(f"the busiest k annotators: k is 1 or more, got {k}")
    shares = concentration(rows)
    return shares[min(k, len(shares)) - 1] if shares else None


def alarms(
    rows: Sequence[Judged],
    limit: int | float | None,
    *,
    gold_least: float = GOLD_LEAST,
    same_least: float = SAME_LEAST,
    fast_most: float = 0.1,
    run_most: int = 15,
    least: int = 5,
) -> dict[str, str]:
    """What is out of the ordinary in one annotator's rows: {measure: what it is, with its figures}; {} if nothing is.

    Shares alarm only of `least` judgements or more, and when their whole interval is beyond the line: gold accuracy below
    `gold_least`, self-consistency below `same_least`, fast judgements above `fast_most` (twice the 5 % that are fast by
    definition), first shown on either side of one half. A run of one key alarms above `run_most`.
    """
    found = {}
    gold, again, fast, first = (
        gold_accuracy(rows),
        self_consistency(rows).same,
        speed(rows, limit).fast,
        first_shown(rows),
    )
    run, pressed = longest_run(rows)
    if gold.high is not None and gold.n >= least and gold.high < gold_least:
        found["gold_accuracy"] = f"gold accuracy {gold.share:.2f} of {gold.n}, below {gold_least:g}"
    if again.high is not None and again.n >= least and again.high < same_least:
        found["self_consistency"] = f"repeats judged alike {again.share:.2f} of {again.n}, below {same_least:g}"
    if fast.low is not None and fast.n >= least and fast.low > fast_most:
        found["speed"] = f"{fast.share:.2f} of {fast.n} judgements faster than the pool's 5th percentile"
    if first.low is not None and first.high is not None and first.n >= least and not first.low <= 0.5 <= first.high:
        found["first_shown"] = f"prefers the first shown in {first.share:.2f} of {first.n}"
    if run > run_most:
        found["longest_run"] = f"{run} times {pressed} in a row"
    return found
