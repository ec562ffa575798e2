"""From plain judgement rows to what agreement is measured on: for each question, what each annotator said of each unit.

Units are {annotator: value}, as in `agreement.verdicts`. Left out are skips, repeats (one person's second look is no
second opinion) and gold items (chosen to be clear, they would flatter everybody).
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics.agreement import FIRST, SECOND, TIE, cohen_kappa
from rlhf_jax.feedback.statistics.quality import Judged, preference

Units = dict[str, dict[str, int]]
PairUnits = dict[tuple[str, int, int], dict[str, int]]


def opinions(rows: Iterable[Judged]) -> list[Judged]:
    """The rows that count for agreement: no skip, no repeat, no gold."""
    return [row for row in rows if "skip" not in row.verdict and not row.repeat and row.gold is None]


def preferences(rows: Iterable[Judged]) -> PairUnits:
    """TIE 0, FIRST 1 or SECOND 2 of each two responses of an item, from pairs and rankings; (item, i, j) is a unit."""
    found: PairUnits = defaultdict(dict)
    for row in opinions(rows):
        said = preference(row.verdict)
        if said is not None:
            found[row.item, 0, 1][row.annotator] = said
        ranks = row.verdict.get("ranks", ())
        for i, j in combinations(range(len(ranks)), 2):
            found[row.item, i, j][row.annotator] = (
                TIE if ranks[i] == ranks[j] else FIRST if ranks[i] < ranks[j] else SECOND
            )
    return dict(found)


def strengths(rows: Iterable[Judged]) -> Units:
    """The signed strength of each pair's preference, -3..3; both bad has none."""
    found: Units = defaultdict(dict)
    for row in opinions(rows):
        if "strength" in row.verdict:
            found[row.item][row.annotator] = row.verdict["strength"]
    return dict(found)


def ratings(rows: Iterable[Judged]) -> dict[str, Units]:
    """By axis, the value that each annotator gave each rated item."""
    found: dict[str, Units] = defaultdict(lambda: defaultdict(dict))
    for row in opinions(rows):
        for axis, value in row.verdict.get("ratings", {}).items():
            found[axis][row.item][row.annotator] = value
    return {axis: dict(units) for axis, units in sorted(found.items())}


def counts(units: Iterable[Mapping[str, int]], categories: Sequence[int]) -> list[list[int]]:
    """The table of `agreement.fleiss_kappa`: [units, categories], of the units with the commonest number of raters.

    Fleiss' kappa needs one number of raters; of 2 or more the one that most units have is taken. [] if none has 2.
    Raises UserError for a value that is not among the categories.
    """
    given = [list(unit.values()) for unit in units if len(unit) > 1]
    unknown = {value for unit in given for value in unit} - set(categories)
    if unknown:
        raise UserError(f"the value {min(unknown)} is not among the categories {list(categories)}")
    if not given:
        return []
    raters, _ = max(Counter(map(len, given)).items(), key=lambda kv: (kv[1], kv[0]))
    return [[unit.count(category) for category in categories] for unit in given if len(unit) == raters]


class Couple(NamedTuple):
    """Two annotators and Cohen's kappa of what both judged."""

    first: str
    second: str
    n: int
    kappa: float | None
    """None where chance agreement is complete."""


def couples(
    units: Iterable[Mapping[str, int]],
    *,
    weights: str = "nominal",
    categories: Sequence[int] | None = None,
    least: int = 10,
    most: int = 200,
) -> list[Couple]:
    """Cohen's kappa of each two annotators who share `least` units or more: the `most` couples that share most."""
    shared: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for unit in units:
        for a, b in combinations(sorted(unit), 2):
            shared[a, b].append((unit[a], unit[b]))
    busiest = sorted(shared.items(), key=lambda kv: (-len(kv[1]), kv[0]))
    found = []
    for (a, b), said in busiest[:most]:
        if len(said) >= least:
            kappa = cohen_kappa([x for x, _ in said], [y for _, y in said], weights=weights, categories=categories)
            found.append(Couple(a, b, len(said), None if math.isnan(kappa) else kappa))
    return found
