"""How far people agree, and the accuracy beyond which a reward model cannot be told from one of them.

Pure functions of labels and comparisons; formulas in the docstrings. A reward model's accuracy means little without the
ceiling next to it: `annotator_ceiling`.
"""

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import Comparison, aligned_ranks, by_item

TIE, FIRST, SECOND = 0, 1, 2


def cohen_kappa(
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    *,
    weights: str = "nominal",
    categories: Sequence[Hashable] | None = None,
) -> float:
    """Agreement of two raters above chance: (p_o - p_e) / (1 - p_e), p_e from each one's label shares (Cohen 1960).

    `weights` "linear" or "quadratic" counts a disagreement by its distance along `categories`, which list the labels
    in order (Cohen 1968). NaN where both raters always give one and the same label: chance agreement is then complete
    and the ratio is 0/0. Raises UserError for unequal lengths, no labels, or labels not in `categories`.
    """
    if len(first) != len(second) or len(first) == 0:
        raise UserError(f"kappa needs two equally long, non-empty lists of labels, got {len(first)} and {len(second)}")
    powers = {"nominal": 0, "linear": 1, "quadratic": 2}
    if weights not in powers:
        raise UserError(f"weights is one of {', '.join(powers)}, got {weights!r}")
    if categories is None:
        if weights != "nominal":
            raise UserError(f"{weights} weights need the categories, in order (a label may be missing from the data)")
        categories = list(dict.fromkeys([*first, *second]))
    place = {label: k for k, label in enumerate(categories)}
    if not place.keys() >= {*first, *second}:
        raise UserError(f"labels {sorted(map(str, {*first, *second} - place.keys()))} are not among the categories")
    counts = np.zeros((len(place), len(place)))
    for one, other in zip(first, second, strict=True):
        counts[place[one], place[other]] += 1
    observed = counts / counts.sum()
    expected = np.outer(observed.sum(1), observed.sum(0))
    apart = np.abs(np.subtract.outer(np.arange(len(place)), np.arange(len(place)))).astype(np.float64)
    cost = np.where(apart > 0, apart ** powers[weights], 0.0)
    chance = float((cost * expected).sum())
    return 1 - float((cost * observed).sum()) / chance if chance > 0 else math.nan


def fleiss_kappa(counts: ArrayLike) -> float:
    """Agreement of many raters above chance (Fleiss 1971), from the number of raters per item and category.

    `counts` is [items, categories] with the same number of raters, 2 or more, in every row. NaN where only one
    category is ever used. Raises UserError for anything else.
    """
    table = np.asarray(counts, float)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all() or (table < 0).any():
        raise UserError("fleiss_kappa needs a table of counts, items by categories")
    raters = table.sum(1)
    if raters[0] < 2 or (raters != raters[0]).any():
        raise UserError("fleiss_kappa needs the same number of raters, 2 or more, for every item")
    within = ((table**2).sum(1) - raters) / (raters * (raters - 1))
    chance = float(((table.sum(0) / table.sum()) ** 2).sum())
    return (float(within.mean()) - chance) / (1 - chance) if chance < 1 else math.nan


def verdicts(comparisons: Iterable[Comparison]) -> list[dict[str, int]]:
    """What each named annotator said of each pair of responses: {annotator: TIE 0, FIRST 1 or SECOND 2 is better}.

    One entry per item and unordered pair of its responses, first and second as the item's first judgement lists them.
    Of an annotator who judged an item again the last judgement counts. Comparisons without an annotator are left out.
    """
    found = []
    for group in by_item(c for c in comparisons if c.annotator):
        ranks = {c.annotator: aligned_ranks(group[0].responses, c) for c in group}
        for i, j in combinations(range(len(group[0].responses)), 2):
            found.append({name: TIE if r[i] == r[j] else FIRST if r[i] < r[j] else SECOND for name, r in ranks.items()})
    return found


def pairwise_agreement(labels: Iterable[Mapping[str, int]]) -> tuple[float | None, int]:
    """Share of rater pairs that prefer the same response, where neither says tie; and how many such pairs there are."""
    same = total = 0
    for item in labels:
        decisive = [label for label in item.values() if label != TIE]
        for one, other in combinations(decisive, 2):
            same += one == other
            total += 1
    return (same / total if total else None), total


def leave_one_out(labels: Iterable[Mapping[str, int]]) -> tuple[float | None, int]:
    """Share of judgements equal to what most of the item's other annotators say; and how many could be compared.

    The accuracy of a person who is asked to predict the others, ties being a verdict like any other. Judgements whose
    other annotators have no single most frequent verdict are left out.
    """
    same = total = 0
    for item in labels:
        for name, label in item.items():
            others = Counter(other for rater, other in item.items() if rater != name).most_common(2)
            if others and (len(others) == 1 or others[0][1] > others[1][1]):
                same += label == others[0][0]
                total += 1
    return (same / total if total else None), total


def accuracy_bound(agreement: int | float) -> float:
    """The most that any model can score against single labels of people who agree this often: (1 + sqrt(2 A - 1)) / 2.

    If a share p of all people prefers one response of an item, two of them agree with probability p^2 + (1 - p)^2 =
    A, and the best guess hits one person's label with probability max(p, 1 - p) = (1 + sqrt(2 A - 1)) / 2. Over items
    of different p this is an upper bound, since the root is concave. 0.726 (InstructGPT, arXiv 2203.02155) gives
    0.836. A measured A below one half, which is sampling noise, gives 0.5. Raises UserError outside 0..1.
    """
    if not 0 <= agreement <= 1:
        raise UserError(f"agreement is a share between 0 and 1, got {agreement}")
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


@dataclass(frozen=True)
class Ceiling:
    """What to print next to a reward model's accuracy. None where the data cannot tell; `reason` then says why."""

    accuracy: float | None
    """One annotator, asked to predict the others: `leave_one_out`. A model that does as well is as good as a person."""
    judgements: int
    agreement: float | None
    """Two annotators prefer the same response, given that each prefers one: `pairwise_agreement`."""
    rater_pairs: int
    bound: float | None
    """`accuracy_bound(agreement)`: no model can exceed it against one person's decisive labels."""
    reason: str = ""

    def __str__(self) -> str:
        if self.accuracy is None or self.agreement is None or self.bound is None:
            return f"unknown: {self.reason}"
        return (
            f"{self.accuracy:.4f} one predicts the others ({self.judgements} judgements), "
            f"{self.agreement:.4f} two agree ({self.rater_pairs} decisive pairs of raters), "
            f"{self.bound:.4f} at most for any model"
        )


def annotator_ceiling(comparisons: Iterable[Comparison]) -> Ceiling:
    """How well people predict each other on these items: the numbers a reward model's accuracy is to be read against.

    Needs items that two or more named annotators judged; consensus ranks and single judgements leave it unknown.
    """
    given = list(comparisons)
    labels = verdicts(given)
    agreement, rater_pairs = pairwise_agreement(labels)
    alone, judgements = leave_one_out(labels)
    if not given:
        reason = "there are no comparisons"
    elif not labels:
        reason = "the data name no annotators (single or consensus judgements only)"
    elif not any(len(item) > 1 for item in labels):
        reason = "no item was judged by two annotators"
    else:
        reason = "" if agreement is not None else "no two annotators both preferred a response"
    bound = None if agreement is None else accuracy_bound(agreement)
    return Ceiling(alone, judgements, agreement, rater_pairs, bound, reason)
