"""Scores of items and the reliability of each annotator, from comparisons of two and without gold: Crowd-BT.

    P(k prefers i to j) = eta_k sigma(s_i - s_j) + (1 - eta_k) sigma(s_j - s_i)

eta is near 1 for who sees what the crowd sees, 1/2 for who answers at random, below 1/2 for who has it the wrong way
round. X. Chen, P. N. Bennett, K. Collins-Thompson and E. Horvitz, Pairwise Ranking Aggregation in a Crowdsourced
Setting, WSDM 2013, doi:10.1145/2433396.2433420. With the order shown there is a second model (`fit_with_position`), in
which the unreliable part of an annotator follows the page: N. Bugakova et al., arXiv 1906.03711. NumPy in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics import bradley_terry
from rlhf_jax.feedback.statistics.bradley_terry import Floats, Ints, log_expit, scatter, virtual_node

PRIOR = (4.0, 2.0)
"""Beta prior of eta: before any comparison an annotator is right in 3 of 4 (its mode), about as often as two of
InstructGPT's labellers agree (72.6 %, arXiv 2203.02155), and four comparisons outweigh it. (1, 1) is no prior."""


@dataclass(frozen=True)
class CrowdBT:
    """The fit for I items and K annotators."""

    scores: NDArray[np.float64]
    """[I], nats: s, with the virtual node at 0."""
    eta: NDArray[np.float64]
    """[K]: reliability, 0..1. In the model with position: the share of judgements that look at the responses at all."""
    position: NDArray[np.float64]
    """[K], nats: what the first place is worth to the rest; zeros in the model without position."""
    objective: float
    """What was maximised: log-likelihood, virtual node and prior, nats."""


@dataclass(frozen=True)
class Comparisons:
    """n comparisons: `outcome` 1 where `first` was preferred, 0 where `second` was, 0.5 a tie; by `annotator`."""

    first: Ints
    second: Ints
    outcome: Floats
    annotator: Ints
    shown_first: Floats
    """1 where `first` stood first on the page, -1 where `second` did, 0 where that is unknown."""
    items: int
    annotators: int


def compared(
    first: ArrayLike,
    second: ArrayLike,
    outcome: ArrayLike,
    annotator: ArrayLike,
    *,
    items: int,
    annotators: int,
    shown_first: ArrayLike | None = None,
) -> Comparisons:
    """Checked arrays of n comparisons. Raises UserError as `bradley_terry.compared` does, and for unknown annotators."""
    one, other, won = bradley_terry.compared(first, second, outcome, items, 1)
    who = np.asarray(annotator)
    if who.shape != one.shape or not np.issubdtype(who.dtype, np.integer) or who.min() < 0 or who.max() >= annotators:
        raise UserError(f"annotators are whole numbers from 0 to {annotators - 1}, one a comparison")
    side = np.zeros(len(one)) if shown_first is None else np.asarray(shown_first, np.float64)
    if side.shape != one.shape or not np.isin(side, (-1.0, 0.0, 1.0)).all():
        raise UserError("shown_first is 1, -1 or 0 (unknown), one a comparison")
    return Comparisons(one, other, won, who, side, items, annotators)


def objective(
    parameters: Floats,
    data: Comparisons,
    *,
    strength: int | float = 0.5,
    prior: tuple[int | float, int | float] = PRIOR,
) -> tuple[float, NDArray[np.float64]]:
    """What `fit` maximises, nats, and its gradient, of the parameters s [I] and logit eta [K] in one list.

    The log-likelihood of the outcomes, `strength` times the virtual node, and log Beta(eta; prior) without its constant.
    """
    scores, a = np.split(parameters, [data.items])
    apart = scores[data.first] - scores[data.second]
    value, by_score = virtual_node(scores, strength)
    likelihood, by_a, by_seen, by_rest = _mixture(a, apart, -apart, data, prior)
    by_score += scatter(by_seen - by_rest, data.first, data.second, data.items)
    return value + likelihood, np.concatenate([by_score, by_a])


def objective_with_position(
    parameters: Floats,
    data: Comparisons,
    *,
    strength: int | float = 0.5,
    prior: tuple[int | float, int | float] = PRIOR,
) -> tuple[float, NDArray[np.float64]]:
    """What `fit_with_position` maximises, and its gradient, of s [I], logit eta [K] and q [K] in one list.

    As `objective`; q is drawn to 0 by a virtual node of its own, as the scores are.
    """
    scores, a, q = np.split(parameters, [data.items, data.items + data.annotators])
    apart, side = scores[data.first] - scores[data.second], q[data.annotator] * data.shown_first
    value, by_score = virtual_node(scores, strength)
    node, by_q = virtual_node(q, strength)
    likelihood, by_a, by_seen, by_rest = _mixture(a, apart, side, data, prior)
    by_score += scatter(by_seen, data.first, data.second, data.items)
    by_q += np.bincount(data.annotator, by_rest * data.shown_first, data.annotators)
    return value + node + likelihood, np.concatenate([by_score, by_a, by_q])


def _mixture(
    a: Floats, seen: Floats, rest: Floats, data: Comparisons, prior: tuple[int | float, int | float]
) -> tuple[float, Floats, Floats, Floats]:
    """Log-likelihood and prior of P = eta sigma(seen) + (1 - eta) sigma(rest), and slopes by a [K], seen [n], rest [n].

    With r = eta sigma(seen) / P, the share of an outcome that the first part explains: d log P / d logit eta = r - eta.
    """
    who, (alpha, beta), eta = data.annotator, prior, expit(a)
    value = float(((alpha - 1) * log_expit(a) + (beta - 1) * log_expit(-a)).sum())
    by_a = (alpha - 1) * (1 - eta) - (beta - 1) * eta
    by_seen, by_rest = np.zeros(len(who)), np.zeros(len(who))
    for sign, weight in ((1.0, data.outcome), (-1.0, 1 - data.outcome)):
        one = log_expit(a)[who] + log_expit(sign * seen)
        both = np.logaddexp(one, log_expit(-a)[who] + log_expit(sign * rest))
        share = np.exp(one - both)
        value += float((weight * both).sum())
        by_a += np.bincount(who, weight * (share - eta[who]), data.annotators)
        by_seen += weight * share * sign * expit(-sign * seen)
        by_rest += weight * (1 - share) * sign * expit(-sign * rest)
    return value, by_a, by_seen, by_rest


def fit(data: Comparisons, *, strength: int | float = 0.5, prior: tuple[int | float, int | float] = PRIOR) -> CrowdBT:
    """The maximum of `objective` that is reached from plain Bradley-Terry's scores and the prior's mean.

    Turning all scores round and every eta into 1 - eta explains the comparisons as well: nothing but the start and the
    prior says that most annotators are right. `strength` is the virtual node's weight. Raises UserError for a prior
    below (1, 1), which need not have a maximum, or a strength that is not above 0.
    """
    found, value = _maximum(objective, data, strength, prior, 1)
    scores, a = np.split(found, [data.items])
    return CrowdBT(scores, expit(a), np.zeros(data.annotators), value)


def fit_with_position(
    data: Comparisons, *, strength: int | float = 0.5, prior: tuple[int | float, int | float] = PRIOR
) -> CrowdBT:
    """As `fit`, for P = eta_k sigma(s_i - s_j) + (1 - eta_k) sigma(+-q_k), + where i stood first on the page.

    It tells those who take a side of the page from those who look. Who answers the wrong way round has no place in this
    model, and comes out with an eta near 0. Raises UserError as `fit` does, and where no order shown is known.
    """
    if not data.shown_first.any():
        raise UserError("a fit with position needs `shown_first`: which response stood first on the page")
    found, value = _maximum(objective_with_position, data, strength, prior, 2)
    scores, a, q = np.split(found, [data.items, data.items + data.annotators])
    return CrowdBT(scores, expit(a), q, value)


def _maximum(
    function: Callable[..., tuple[float, Floats]],
    data: Comparisons,
    strength: int | float,
    prior: tuple[int | float, int | float],
    parameters: int,
) -> tuple[Floats, float]:
    """Where `function` is greatest, near plain Bradley-Terry; `parameters` is how many an annotator has."""
    if min(prior) < 1 or not strength > 0:
        raise UserError(f"the prior is at least (1, 1) and the strength above 0, got {prior} and {strength}")

    def loss(at: Floats) -> tuple[float, Floats]:
        value, gradient = function(at, data, strength=strength, prior=prior)
        return -value, -gradient

    plain = bradley_terry.fit(data.first, data.second, data.outcome, items=data.items, strength=strength)
    rest = np.zeros(data.annotators * parameters)
    rest[: data.annotators] = logit(prior[0] / sum(prior))
    found = bradley_terry.minimise(loss, np.concatenate([plain, rest]))
    return found, -loss(found)[0]
