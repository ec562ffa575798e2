"""Crowd-BT for pairs that share no response with others, as most of RLHF's do: each pair's difference is integrated out.

    P(k prefers the first of pair p) = eta_k sigma(d_p) + (1 - eta_k) sigma(-d_p),    d_p ~ Normal(0, spread^2)

`crowd_bt.fit` estimates a score for every response. With a few votes on each and no other comparison to hold it, such a
score bends to whatever was voted, and the votes of a spammer look sound: there are ever more scores as the data grow
(Neyman and Scott 1948, doi:10.2307/1914288). Integrated, only eta is left. The model is that of Chen et al. 2013
(see `crowd_bt`), the integral a Gauss-Hermite sum as in item response models (Bock and Aitkin 1981,
doi:10.1007/BF02293801). NumPy in float64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, logsumexp

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.statistics.bradley_terry import Floats, Ints, log_expit, minimise
from rlhf_jax.feedback.statistics.crowd_bt import PRIOR

SPREAD = 2.4
"""Nats: two annotators with eta = 1 then agree in 73 % of pairs, as InstructGPT's labellers do (arXiv 2203.02155). Votes
hardly tell it apart from eta: a wider spread takes more of the disagreement for carelessness, and lowers every eta."""


@dataclass(frozen=True)
class Votes:
    """n votes: `outcome` 1 where the first response of `pair` was preferred, 0 the second, 0.5 a tie; by `annotator`."""

    pair: Ints
    annotator: Ints
    outcome: Floats
    annotators: int


def voted(pair: ArrayLike, annotator: ArrayLike, outcome: ArrayLike, *, annotators: int) -> Votes:
    """Checked arrays of n votes. Raises UserError unless they are equally long, whole numbers from 0, outcomes in 0..1."""
    p, who, won = np.asarray(pair), np.asarray(annotator), np.asarray(outcome, np.float64)
    if not (p.ndim == 1 and len(p) > 0 and p.shape == who.shape == won.shape):
        raise UserError(f"votes are equally long, non-empty lists, got {p.shape}, {who.shape} and {won.shape}")
    if not all(np.issubdtype(a.dtype, np.integer) and a.min() >= 0 for a in (p, who)) or who.max() >= annotators:
        raise UserError(f"pairs are whole numbers from 0 on, annotators from 0 to {annotators - 1}")
    if not ((won >= 0) & (won <= 1)).all():
        raise UserError("an outcome is 1 (first preferred), 0 (second) or 0.5 (tie), or a share between")
    return Votes(p, who, won, annotators)


def objective(
    parameters: Floats,
    votes: Votes,
    *,
    spread: int | float = SPREAD,
    prior: tuple[int | float, int | float] = PRIOR,
    nodes: int = 31,
) -> tuple[float, NDArray[np.float64]]:
    """What `fit` maximises, nats, and its gradient, of logit eta [K]: marginal log-likelihood and log Beta(eta; prior).

    Without the prior's constant; the integral is a sum over `nodes` values of d.
    """
    eta, (alpha, beta) = expit(parameters), prior
    value = float(((alpha - 1) * log_expit(parameters) + (beta - 1) * log_expit(-parameters)).sum())
    by_logit = (alpha - 1) * (1 - eta) - (beta - 1) * eta

    lean, won = _lean(spread, nodes), votes.outcome[:, None]
    first = 0.5 + (2 * eta - 1)[votes.annotator, None] * lean  # [n, nodes]
    posterior, each = _posterior(votes, first, nodes)
    value += float(each.sum())
    # d log P / d first, in the mean over what the pair's other votes say of d
    slope = posterior[votes.pair] * (won / first - (1 - won) / (1 - first))
    by_eta = 2 * np.bincount(votes.annotator, (slope * lean).sum(1), votes.annotators)
    return value, by_logit + by_eta * eta * (1 - eta)


def fit(
    votes: Votes, *, spread: int | float = SPREAD, prior: tuple[int | float, int | float] = PRIOR
) -> NDArray[np.float64]:
    """Each annotator's eta [K]: the maximum of `objective` that is reached from the prior's mean.

    All eta turned into 1 - eta would explain the votes as well: nothing but start and prior says that most annotators are
    right. Raises UserError for a prior below (1, 1), which need not have a maximum, or a spread that is not above 0.
    """
    if min(prior) < 1 or not spread > 0:
        raise UserError(f"the prior is at least (1, 1) and the spread above 0, got {prior} and {spread}")

    def loss(at: Floats) -> tuple[float, Floats]:
        value, gradient = objective(at, votes, spread=spread, prior=prior)
        return -value, -gradient

    start = np.full(votes.annotators, logit(prior[0] / sum(prior)))
    return np.asarray(expit(minimise(loss, start)))


def preferred(votes: Votes, eta: Floats, *, spread: int | float = SPREAD, nodes: int = 31) -> NDArray[np.float64]:
    """[P]: mean of sigma(d) given the votes: the probability that who has eta = 1 prefers the first response of each pair."""
    lean = _lean(spread, nodes)
    posterior, _ = _posterior(votes, 0.5 + (2 * eta - 1)[votes.annotator, None] * lean, nodes)
    return np.asarray(0.5 + posterior @ lean)


def _lean(spread: int | float, nodes: int) -> Floats:
    """sigma(d) - 1/2 at the nodes."""
    return np.asarray(expit(spread * np.polynomial.hermite_e.hermegauss(nodes)[0]) - 0.5)


def _posterior(votes: Votes, first: Floats, nodes: int) -> tuple[Floats, Floats]:
    """What the votes say of d, [P, nodes], and their log-probability [P], from that of preferring the first [n, nodes]."""
    weight = np.polynomial.hermite_e.hermegauss(nodes)[1]
    won = votes.outcome[:, None]
    joint = np.tile(np.log(weight / weight.sum()), (votes.pair.max() + 1, 1))
    np.add.at(joint, votes.pair, won * np.log(first) + (1 - won) * np.log1p(-first))
    each = logsumexp(joint, axis=1)
    return np.exp(joint - each[:, None]), each
