"""Several judgements of an item, as pairs to learn from: by votes, one by one, or by how reliable each judge is."""

import hashlib
import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.feedback.statistics import crowd_bt, dawid_skene
from rlhf_jax.runs.functions import resolve_function

JUDGEMENTS = ("votes", "each", "dawid_skene", "crowd_bt")
"""How several judgements of one item become pairs."""

KINDS = {"plackett_luce": "rankings", "ordinal": "ratings", "regression": "ratings"}
"""What the losses of `objectives.reward` learn from that do not learn from pairs."""
BY_FIRST = {"chosen": "pairs", "scores": "rankings", "score": "ratings"}


def kind_by_name(loss: str) -> str:
    """ "pairs", "rankings" or "ratings": what a loss learns from, or a function of the user's by its first parameter."""
    if ":" not in loss:
        return KINDS.get(loss, "pairs")
    first = next(iter(inspect.signature(resolve_function(loss, "loss")).parameters), "")
    return BY_FIRST.get(first, "pairs")


def of_axes(found: Sequence[Any], axes: Sequence[str]) -> list[Any]:
    """The records on these axes, all of them where none is named. UserError for an axis that no record has."""
    there = Counter(record.axis for record in found)
    missing = [axis for axis in axes if axis not in there]
    if missing:
        listed = ", ".join(f"{axis} ({count})" for axis, count in there.items())
        raise UserError(f"axes: nobody judged {missing[0]!r}; the axes in the data are {listed}")
    return [record for record in found if record.axis in axes] if axes else list(found)


def with_margins(comparisons: Sequence[records.Comparison], margins: Sequence[float]) -> list[records.Comparison]:
    """Each comparison with the margin of its strength added: `margins[s - 1]` for strength s, evenly between whole ones, 0 for
    a tie or where no strength was given (Llama 2's margin by preference rating, arXiv 2307.09288). UserError for a strength
    beyond them."""
    if not margins:
        return list(comparisons)
    found = []
    for comparison in comparisons:
        strength = abs(comparison.strength or 0)
        if strength > len(margins):
            raise UserError(
                f"strength_margins has {len(margins)} numbers, one a strength from 1 on; {comparison.annotator or 'somebody'} "
                f"gave strength {comparison.strength}"
            )
        margin = float(np.interp(strength, range(len(margins) + 1), [0.0, *margins]))
        found.append(replace(comparison, margin=comparison.margin + margin))
    return found


def pairs(comparisons: Sequence[records.Comparison], judgements: str = "votes") -> list[records.Pair]:
    """The pairs of these comparisons, as one of JUDGEMENTS says:

    votes        one a pair of texts, its label the share of votes (`records.votes`)
    each         one a judgement
    dawid_skene  one a pair of texts, its label the probability that Dawid and Skene's model gives it, in which every judge
                 errs in their own way; ties are a third verdict (`feedback.dawid_skene`)
    crowd_bt     one a pair of texts, its label σ(s_chosen − s_rejected) of the scores that Crowd-BT gives the texts
                 (`feedback.crowd_bt`); it shares most where texts are compared with several others
    """
    if judgements == "votes":
        return records.votes(comparisons)
    if judgements == "each":
        return [pair for comparison in comparisons for pair in records.pairs(comparison)]
    rule = {"dawid_skene": by_dawid_skene, "crowd_bt": by_crowd_bt}[judgements]
    found = []
    for axis in dict.fromkeys(comparison.axis for comparison in comparisons):
        for kind in records.SOURCE_KINDS:
            group = [c for c in comparisons if c.axis == axis and c.source_kind == kind and c.weight > 0]
            if group:
                found += rule(votes_of(group))
    return found


@dataclass(frozen=True)
class Votes:
    """n verdicts on pairs of texts; the two of a pair stand in an order that no verdict has a part in."""

    pairs: list[records.Pair]
    """Each pair once, with nothing decided; its weight is the mean of its judgements'."""
    pair: np.ndarray
    """int [n]: which of them."""
    judge: np.ndarray
    """int [n]."""
    outcome: np.ndarray
    """f64 [n]: 1 where the first text was preferred, 0 where the second was, 1/2 for a tie."""
    margin: np.ndarray
    """f64 [n]."""


def votes_of(comparisons: Sequence[records.Comparison]) -> Votes:
    """Every verdict on two texts that is in these comparisons. Verdicts of a judge on one set are taken as independent."""
    names = sorted({comparison.annotator for comparison in comparisons})
    found: list[records.Pair] = []
    rows: list[tuple[int, int, float, float]] = []
    for group in records.by_item(comparisons):
        texts = sorted(group[0].responses, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
        ranks = [records.aligned_ranks(texts, comparison) for comparison in group]
        for i, j in combinations(range(len(texts)), 2):
            one = records.pairs(replace(group[0], responses=(texts[i], texts[j]), ranks=(0, 0)))[0]
            share = 2 / (len(texts) * (len(texts) - 1)) * sum(c.weight for c in group) / len(group)
            for comparison, rank in zip(group, ranks, strict=True):
                outcome = 0.5 if rank[i] == rank[j] else float(rank[i] < rank[j])
                rows.append((len(found), names.index(comparison.annotator), outcome, comparison.margin))
            found.append(replace(one, weight=share, annotator=""))
    number, judge, verdict, apart = (np.array(column) for column in zip(*rows, strict=True))
    return Votes(found, number, judge, verdict, apart)


def by_dawid_skene(votes: Votes) -> list[records.Pair]:
    """Pairs labelled by `dawid_skene.fit` with a pseudo-count of 1 in each cell of a judge's confusion."""
    classes = 3 if (votes.outcome == 0.5).any() else 2
    verdict = np.where(votes.outcome == 0.5, 2, np.where(votes.outcome == 1, 0, 1))
    found = dawid_skene.fit(votes.pair, votes.judge, verdict, classes=classes, smoothing=1.0).posterior
    equal = found[:, 2] if classes == 3 else np.zeros(len(found))
    return decided(votes, found[:, 0] / np.maximum(found[:, 0] + found[:, 1], 1e-300), equal)


def by_crowd_bt(votes: Votes) -> list[records.Pair]:
    """Pairs labelled by the scores of `crowd_bt.fit`, where a text is an item wherever it is compared."""
    places: dict[tuple[str, str], int] = {}
    ends = [
        [places.setdefault((pair.prompt_id, text), len(places)) for text in (pair.chosen, pair.rejected)]
        for pair in votes.pairs
    ]
    first, second = np.array(ends)[votes.pair].T
    data = crowd_bt.compared(
        first, second, votes.outcome, votes.judge, items=len(places), annotators=int(votes.judge.max()) + 1
    )
    scores = crowd_bt.fit(data).scores
    apart = np.array([scores[one] - scores[other] for one, other in ends])
    ties = np.bincount(votes.pair, votes.outcome == 0.5) / np.bincount(votes.pair)
    return decided(votes, 1 / (1 + np.exp(-apart)), ties)


def decided(votes: Votes, first: np.ndarray, equal: np.ndarray) -> list[records.Pair]:
    """The pairs with the better text as `chosen`, where `first` [pairs] is the probability that the first one is, ties left
    out, and `equal` [pairs] that of a tie. A margin is the mean of those who said the same."""
    agreeing = votes.outcome == (first > 0.5)[votes.pair]
    count, total = (np.bincount(votes.pair, x, len(votes.pairs)) for x in (agreeing, agreeing * votes.margin))
    means = (total / np.maximum(count, 1)).tolist()
    found = []
    for pair, p, level, mean in zip(votes.pairs, first.tolist(), equal.tolist(), means, strict=True):
        better = max(p, 1 - p)
        tie = level > (1 - level) * better or p == 0.5
        chosen, rejected = (pair.chosen, pair.rejected) if p >= 0.5 else (pair.rejected, pair.chosen)
        label, margin = (0.5, 0.0) if tie else (better, mean)
        found.append(replace(pair, chosen=chosen, rejected=rejected, tie=tie, label=label, equal=level, margin=margin))
    return found
