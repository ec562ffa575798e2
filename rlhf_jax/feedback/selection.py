"""Which pairs to have judged next: those that a reward model is least sure of, and always some at random.

A score is one number a candidate pair, higher is more worth asking. `choose` takes the best of them after a random part
has been drawn: only that part is a fair sample of the candidates, so evaluate a reward model on it alone (`random_only`).
Margins are reward differences r_m(a) - r_m(b) of M ensemble members, [M, n]; entropies are in nats.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, expit

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.records import Comparison, Rating

Row = TypeVar("Row", Comparison, Rating)

RANDOM = "random"
LEAST_RANDOM = 0.2


def disagreement(margins: ArrayLike) -> NDArray[np.float64]:
    """[n]: variance over the members of sigma(margin), the probability that a is preferred (arXiv 1706.03741, 2.2.4)."""
    return expit(_margins(margins)).var(0)


def bald(margins: ArrayLike) -> NDArray[np.float64]:
    """[n], nats: H(mean_m p_m) - mean_m H(p_m), what the answer is expected to tell about the members (arXiv 1112.5745).

    0 where all members agree, be it that the pair is a coin flip; at most log 2.
    """
    p = expit(_margins(margins))
    return np.maximum(_entropy(p.mean(0)) - _entropy(p).mean(0), 0.0)


def entropy(margins: ArrayLike) -> NDArray[np.float64]:
    """[n], nats: entropy of the mean probability, the greater the nearer it is to one half (uncertainty sampling, Lewis
    and Gale 1994, arXiv cmp-lg/9407020). Pairs that nobody could tell apart score as high as pairs not yet learnt."""
    return _entropy(expit(_margins(margins)).mean(0))


def d_optimal(
    features: ArrayLike, margins: ArrayLike, count: int, *, ridge: int | float = 1.0, known: ArrayLike | None = None
) -> NDArray[np.int_]:
    """[count]: the pairs, best first, that tell most about a reward linear in `features`: greedy D-optimal design.

    `features` [n, D] are z = phi(a) - phi(b) and `margins` [M, n] or [n] give p. A pair adds the Fisher information
    p (1 - p) z z' of a Bradley-Terry comparison to A, which starts as ridge I plus that of the pairs already judged
    (`known`, [m, D], scaled by sqrt(p (1 - p)) of each). Each step takes the pair that raises log det A the most: by log
    (1 + p (1 - p) z' A^-1 z), the matrix determinant lemma; A^-1 follows by Sherman and Morrison 1950. Optimal designs for
    preferences: arXiv 2404.13895 and 2402.10500. No pair is taken twice. Raises UserError for a count above n, features
    and margins of other lengths, or a ridge that is not above 0.
    """
    z, m = np.asarray(features, np.float64), np.atleast_2d(np.asarray(margins, np.float64))
    if z.ndim != 2 or m.shape[1] != len(z) or not np.isfinite(z).all():
        raise UserError(f"d_optimal needs finite features [n, D] and margins [M, n], got {z.shape} and {m.shape}")
    if not 0 <= count <= len(z) or not ridge > 0:
        raise UserError(f"d_optimal takes 0 to {len(z)} pairs and a ridge above 0, got {count} and {ridge}")
    p = expit(_margins(m)).mean(0)
    scaled = z * np.sqrt(p * (1 - p))[:, None]
    before = np.zeros((0, z.shape[1])) if known is None else np.asarray(known, np.float64)
    inverse = np.linalg.inv(ridge * np.eye(z.shape[1]) + before.T @ before)
    gains = np.einsum("nd,de,ne->n", scaled, inverse, scaled)
    taken: list[int] = []
    for _ in range(count):
        best = int(np.argmax(gains))
        taken.append(best)
        along = inverse @ scaled[best]
        pull = scaled @ along
        shrink = 1 + scaled[best] @ along
        inverse -= np.outer(along, along) / shrink
        gains = gains - pull**2 / shrink
        gains[taken] = -np.inf
    return np.array(taken, int)


@dataclass(frozen=True)
class Chosen:
    """The pairs to ask for."""

    index: NDArray[np.int_]
    """[count]: which candidates; the random ones first."""
    random: NDArray[np.bool_]
    """[count]: True where the pair was drawn at random, and may be used to evaluate."""

    def labels(self, name: str) -> list[str]:
        """[count]: what to write down with each item: "random" or "active:NAME"."""
        return [RANDOM if r else f"active:{name}" for r in self.random]


def choose(
    score: ArrayLike, count: int, rng: np.random.Generator, *, random_share: int | float = LEAST_RANDOM
) -> Chosen:
    """`count` of n candidates: ceil(random_share count) drawn evenly from all, the rest those of the highest `score` [n].

    Equal scores are taken in random order. For `d_optimal` see `after`. Raises UserError for more than there are, a
    share below one fifth or above 1, or a score that is NaN.
    """
    scores = np.asarray(score, np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise UserError(f"scores are one number a candidate and no NaN, got shape {scores.shape}")
    mixed = rng.permutation(len(scores))
    return after(mixed[np.argsort(-scores[mixed], kind="stable")], len(scores), count, rng, random_share=random_share)


def after(
    order: ArrayLike, n: int, count: int, rng: np.random.Generator, *, random_share: int | float = LEAST_RANDOM
) -> Chosen:
    """As `choose`, from candidates 0..n-1 in `order` of preference (which need not name all of them).

    Raises UserError also where `order` is too short once the random part is taken out.
    """
    if not LEAST_RANDOM <= random_share <= 1:
        raise UserError(f"random_share is {LEAST_RANDOM} to 1: without a random part nothing can be evaluated")
    if not 0 <= count <= n:
        raise UserError(f"{count} pairs asked for, and there are {n} candidates")
    part = math.ceil(random_share * count - 1e-9)
    drawn = rng.permutation(n)[:part]
    best = [int(k) for k in np.asarray(order) if k not in set(drawn.tolist())][: count - part]
    if part + len(best) < count:
        raise UserError(f"the order names {len(np.asarray(order))} candidates, too few for {count}")
    return Chosen(np.concatenate([drawn, np.array(best, int)]), np.arange(count) < part)


def random_only(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those whose item was drawn at random: the only ones to evaluate on.

    Raises UserError for a comparison whose meta["selection"] does not say how its item was chosen.
    """
    found = []
    for c in comparisons:
        how = c.meta.get("selection")
        if not isinstance(how, str) or not (how == RANDOM or how.startswith("active:")):
            raise UserError(f'item {c.item!r}: meta["selection"] must be "random" or "active:...", got {how!r}')
        if how == RANDOM:
            found.append(c)
    return found


def fair(rows: Iterable[Row]) -> list[Row]:
    """Those not chosen by a reward model, for data that need not say how its items were chosen: meta["selection"] is missing
    or "random"."""
    return [row for row in rows if row.meta.get("selection", RANDOM) == RANDOM]


def _margins(margins: ArrayLike) -> NDArray[np.float64]:
    found = np.atleast_2d(np.asarray(margins, np.float64))
    if found.ndim != 2 or found.size == 0 or np.isnan(found).any():
        raise UserError(f"margins are [members, candidates] and no NaN, got shape {np.asarray(margins).shape}")
    return found


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return entr(p) + entr(1 - p)
