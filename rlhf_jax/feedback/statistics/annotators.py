"""What annotators' reliability does to the data: votes that weigh as much as they can be trusted.

`dawid_skene` and `crowd_bt` give pairs with soft labels and each annotator's reliability, `weighed` comparisons whose weight
follows it. All of them work on records.Comparison lists with several annotators an item, and use no gold. Rankings are taken as
their pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import SOURCE_KINDS, Comparison, Pair, aligned_ranks, by_item
from rlhf_jax.feedback.statistics import crowd_bt_pairs as crowd
from rlhf_jax.feedback.statistics import dawid_skene as skene
from rlhf_jax.feedback.statistics.agreement import FIRST, SECOND, TIE

OUTCOME = np.array([0.5, 1.0, 0.0])
"""The outcome of each label: the share of a vote for the first response."""
MIRRORED = np.array([TIE, SECOND, FIRST])
"""The label of the same judgement when the two responses are listed the other way round."""


@dataclass(frozen=True)
class Votes:
    """n votes on P pairs of responses by K annotators, as arrays."""

    pair: NDArray[np.int_]
    """[n]: 0..P-1."""
    annotator: NDArray[np.int_]
    """[n]: 0..K-1."""
    label: NDArray[np.int_]
    """[n]: TIE 0, FIRST 1 or SECOND 2 is better, first and second as the item's first judgement lists them."""
    names: tuple[str, ...]
    """[K]: the annotators. Those without a name are one, called ""."""
    groups: tuple[tuple[Comparison, ...], ...]
    """[P]: the judgements of the pair's item."""
    places: tuple[tuple[int, int], ...]
    """[P]: which two responses of the first judgement of the group."""


def votes(comparisons: Sequence[Comparison]) -> Votes:
    """The votes of weighty comparisons (weight above 0), an item's pairs together. UserError where there are none.

    An annotator is as reliable on one axis as on another; fit the axes apart where that is not so.

    Judgements of different source kinds are of different items, as in `records.votes`.
    """
    names: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    pairs: list[tuple[tuple[Comparison, ...], tuple[int, int]]] = []
    for item in by_item(c for c in comparisons if c.weight > 0):
        for group in ([c for c in item if c.source_kind == kind] for kind in SOURCE_KINDS):
            ranks = [aligned_ranks(group[0].responses, c) for c in group]
            for i, j in combinations(range(len(group[0].responses) if group else 0), 2):
                for c, rank in zip(group, ranks, strict=True):
                    said = TIE if rank[i] == rank[j] else FIRST if rank[i] < rank[j] else SECOND
                    rows.append((len(pairs), names.setdefault(c.annotator, len(names)), said))
                pairs.append((tuple(group), (i, j)))
    if not rows:
        raise UserError("no comparison has a weight above 0: there are no votes to weigh")
    pair, annotator, label = np.array(rows).T
    groups, places = zip(*pairs, strict=True)
    return Votes(pair, annotator, label, tuple(names), groups, places)


def dawid_skene(
    comparisons: Sequence[Comparison], *, smoothing: int | float = 1.0, per_set_weight: bool = True
) -> tuple[list[Pair], dict[str, float]]:
    """A pair with a soft label for each two responses of an item, and each annotator's estimated accuracy.

    The classes are TIE, FIRST and SECOND. Which response is listed first says nothing, so each vote is also given
    mirrored: the fit is that of confusions and marginals that are equal under mirroring. `label` is P(chosen) /
    (P(chosen) + P(rejected)) of the posterior; a pair is a tie where TIE is likelier than either. Weight and margin as
    in `records.votes`. `smoothing` keeps annotators of few votes from certainty (`dawid_skene.fit`). An item judged
    once gets the label that its annotator's accuracy elsewhere warrants. Hard pairs are not told from easy ones, so that
    the labels are some points too sure where good annotators differ. Raises UserError where nothing was judged.
    """
    found = votes(comparisons)
    fit = _mirrored_fit(found.pair, found.annotator, found.label, smoothing)
    posterior = fit.posterior[: len(found.groups)].tolist()
    return _pairs(found, posterior, per_set_weight), dict(zip(found.names, fit.accuracy.tolist(), strict=True))


def _mirrored_fit(
    pair: NDArray[np.int_], annotator: NDArray[np.int_], label: NDArray[np.int_], smoothing: int | float
) -> skene.DawidSkene:
    """Dawid-Skene of the votes and of their mirror images, which stand behind them."""
    return skene.fit(
        np.concatenate([pair, pair + pair.max() + 1]),
        np.tile(annotator, 2),
        np.concatenate([label, MIRRORED[label]]),
        classes=3,
        smoothing=smoothing,
    )


def _pairs(found: Votes, posterior: Sequence[Sequence[float]], per_set_weight: bool) -> list[Pair]:
    return [
        _pair(group, places, said, per_set_weight)
        for group, places, said in zip(found.groups, found.places, posterior, strict=True)
    ]


def _pair(
    group: Sequence[Comparison], places: tuple[int, int], posterior: Sequence[float], per_set_weight: bool
) -> Pair:
    first = group[0]
    level = math.isclose(posterior[FIRST], posterior[SECOND])
    tie = level or posterior[TIE] > max(posterior[FIRST], posterior[SECOND])
    best, worst = places if posterior[FIRST] >= posterior[SECOND] else places[::-1]
    ranks = [aligned_ranks(first.responses, c) for c in group]
    margins = [c.margin for c, r in zip(group, ranks, strict=True) if r[best] < r[worst]]
    share = 1 / math.comb(len(first.responses), 2) if per_set_weight else 1.0
    return Pair(
        first.prompt,
        first.responses[best],
        first.responses[worst],
        tie=tie,
        label=0.5 if level else max(posterior[FIRST], posterior[SECOND]) / (posterior[FIRST] + posterior[SECOND]),
        margin=0.0 if tie or not margins else sum(margins) / len(margins),
        weight=share * sum(c.weight for c in group) / len(group),
        annotator=first.annotator if len({c.annotator for c in group}) == 1 else "",
        prompt_id=first.prompt_id,
        source_kind=first.source_kind,
        axis=first.axis,
        equal=posterior[TIE],
    )


def crowd_bt(
    comparisons: Sequence[Comparison],
    *,
    spread: int | float = crowd.SPREAD,
    prior: tuple[int | float, int | float] = crowd.PRIOR,
    per_set_weight: bool = True,
) -> tuple[list[Pair], dict[str, float]]:
    """A pair with a soft label for each two responses of an item, and each annotator's Crowd-BT eta, 0..1.

    `label` is the probability, given the votes, that an annotator with eta = 1 would prefer `chosen`: near 1/2 for a hard
    pair, however many voted. eta is the probability that a vote is the crowd's and not its opposite: for `weighed`, or for
    the loss -log[eta sigma(r_chosen - r_rejected) + (1 - eta) sigma(r_rejected - r_chosen)] of a reward model. Every pair
    stands for itself (`crowd_bt_pairs`); a vote for a tie is half a vote each way, and a pair is a tie by its share of
    them. An annotator whose pairs nobody else judged gets the prior's mode. Raises UserError where nothing was judged.
    """
    found = votes(comparisons)
    given = crowd.voted(found.pair, found.annotator, OUTCOME[found.label], annotators=len(found.names))
    eta = crowd.fit(given, spread=spread, prior=prior)
    first = crowd.preferred(given, eta, spread=spread)
    equal = np.bincount(found.pair, found.label == TIE) / np.bincount(found.pair)
    posterior = np.stack([equal, (1 - equal) * first, (1 - equal) * (1 - first)], 1).tolist()
    return _pairs(found, posterior, per_set_weight), dict(zip(found.names, eta.tolist(), strict=True))


@dataclass(frozen=True)
class Reliability:
    """How much one annotator can be trusted, by what others say of the same pairs."""

    shared: int
    """Pairs that somebody else judged too."""
    eta: float
    """Crowd-BT's, see `crowd_bt`."""
    accuracy: float
    """Dawid-Skene's: probability that the vote (first, second or tie) is the pair's class."""


def reliability(units: Mapping[tuple[str, int, int], Mapping[str, int]]) -> dict[str, Reliability]:
    """Of each annotator who shares a pair with another, from {(item, i, j): {annotator: TIE, FIRST or SECOND}}.

    i and j number the item's responses; `statistics.rows.preferences` makes such units of plain judgement rows. Pairs that
    only one person judged are left out; {} where none is left.
    """
    shared = {key: said for key, said in units.items() if len(said) > 1}
    rows = [(p, name, label) for p, said in enumerate(shared.values()) for name, label in said.items()]
    if not rows:
        return {}
    names = {name: k for k, name in enumerate(sorted({name for _, name, _ in rows}))}
    pair, who, label = np.array([(p, names[name], said) for p, name, said in rows]).T
    eta = crowd.fit(crowd.voted(pair, who, OUTCOME[label], annotators=len(names)))
    accuracy = _mirrored_fit(pair, who, label, 1.0).accuracy
    counts = np.bincount(who)
    return {name: Reliability(int(counts[k]), float(eta[k]), float(accuracy[k])) for name, k in names.items()}


def weighed(comparisons: Sequence[Comparison], eta: Mapping[str, float]) -> list[Comparison]:
    """The comparisons, each with its weight times max(0, 2 eta - 1) of its annotator; those that come to 0 are left out.

    Who gets a share w of votes right for certain and guesses the rest is right with eta = w + (1 - w) / 2: 2 eta - 1 is
    that share, 0 for a guesser. Votes that are the wrong way round are left out, not turned. Raises UserError for an
    annotator without an eta, or one outside 0..1.
    """
    found = []
    for c in comparisons:
        if not 0 <= eta.get(c.annotator, math.nan) <= 1:
            raise UserError(f"annotator {c.annotator!r} needs an eta from 0 to 1, got {eta.get(c.annotator)}")
        weight = c.weight * max(0.0, 2 * eta[c.annotator] - 1)
        if weight > 0:
            found.append(replace(c, weight=weight))
    return found
