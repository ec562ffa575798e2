"""Scores of items from comparisons of two: Bradley and Terry, with ties as half a win (arena) or as Davidson's.

Each fit maximises a concave likelihood of n comparisons plus the virtual node of Crowd-BT (Chen et al. 2013,
doi:10.1145/2433396.2433420): an item of score 0 that every item has beaten and lost to, `strength` times. It makes the
maximum unique and finite where the comparisons fall apart into groups or an item never lost. NumPy in float64.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy.special import expit, softmax

from rlhf_jax.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int_]


def compared(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, items: int, strength: int | float
) -> tuple[Ints, Ints, Floats]:
    """The n comparisons as arrays. Raises UserError unless they are equally long, of items 0..items-1, outcomes in 0..1,
    no item against itself, and strength above 0."""
    one, other, won = np.asarray(first), np.asarray(second), np.asarray(outcome, np.float64)
    if not (one.ndim == 1 and len(one) > 0 and one.shape == other.shape == won.shape):
        raise UserError(f"comparisons are equally long, non-empty lists, got {one.shape}, {other.shape}, {won.shape}")
    for a in (one, other):
        if not np.issubdtype(a.dtype, np.integer) or a.min() < 0 or a.max() >= items:
            raise UserError(f"items are whole numbers from 0 to {items - 1}, got {a.min()} to {a.max()}")
    if (one == other).any():
        raise UserError(f"comparison {np.flatnonzero(one == other)[0]} is of item {one[one == other][0]} with itself")
    if not ((won >= 0) & (won <= 1)).all():
        raise UserError("an outcome is 1 (first preferred), 0 (second) or 0.5 (tie), or a share between")
    if not strength > 0:
        raise UserError(f"the virtual node's strength must be above 0, got {strength}")
    return one, other, won


def log_expit(x: Floats) -> Floats:
    """log sigma(x), without overflow."""
    return -np.logaddexp(0.0, -x)


def virtual_node(scores: Floats, strength: int | float) -> tuple[float, Floats]:
    """strength * sum_i [log sigma(s_i) + log sigma(-s_i)] and its gradient: one win, one loss against a score of 0."""
    value = strength * float((log_expit(scores) + log_expit(-scores)).sum())
    return value, strength * (1 - 2 * expit(scores))


def fit(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, *, items: int, strength: int | float = 0.5
) -> NDArray[np.float64]:
    """Scores [items], nats: P(i over j) = sigma(s_i - s_j); a tie, outcome 0.5, is half a win of each (arena).

    Bradley and Terry 1952, doi:10.2307/2334029; the halves as in the LMSYS arena. Raises UserError as `compared` does.
    """
    one, other, won = compared(first, second, outcome, items, strength)

    def loss(scores: Floats) -> tuple[float, Floats]:
        apart = scores[one] - scores[other]
        value, gradient = virtual_node(scores, strength)
        value += float((won * log_expit(apart) + (1 - won) * log_expit(-apart)).sum())
        return -value, -(gradient + scatter(won - expit(apart), one, other, items))

    return minimise(loss, np.zeros(items))


def davidson(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, *, items: int, strength: int | float = 0.5
) -> tuple[NDArray[np.float64], float]:
    """Scores [items] and nu, with ties as outcomes of their own: odds of i, j and a tie are e^(s_i) : e^(s_j) : nu
    e^((s_i + s_j) / 2).

    Two items of equal score tie with probability nu / (2 + nu); outcomes are 1, 0.5 or 0. nu is 0 where nobody said
    tie; otherwise its prior is one tie and one decision between equals, so that ties alone leave it finite. Davidson
    1970, doi:10.1080/01621459.1970.10481082. Raises UserError as `compared` does, and for other outcomes.
    """
    one, other, won = compared(first, second, outcome, items, strength)
    if not np.isin(won, (0.0, 0.5, 1.0)).all():
        raise UserError("Davidson's outcomes are 1, 0.5 or 0; for shares use `fit`")
    if not (won == 0.5).any():
        return fit(first, second, outcome, items=items, strength=strength), 0.0
    said = np.stack([won == 1, won == 0, won == 0.5], 1).astype(np.float64)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scores, log_nu = parameters[:-1], parameters[-1]
        half = (scores[one] - scores[other]) / 2
        logits = np.stack([half, -half, np.full_like(half, log_nu)], 1)
        rest = said - softmax(logits, axis=1)
        value, gradient = virtual_node(scores, strength)
        value += float((said * (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))).sum())
        log_odds = log_nu - math.log(2)  # of a tie between equals
        prior = float(log_expit(np.array([log_odds, -log_odds])).sum())
        slope = scatter((rest[:, 0] - rest[:, 1]) / 2, one, other, items)
        return -(value + prior), -np.append(gradient + slope, rest[:, 2].sum() + 1 - 2 * expit(log_odds))

    found = minimise(loss, np.zeros(items + 1))
    return np.asarray(found[:-1]), math.exp(found[-1])


def scatter(slope: Floats, one: Ints, other: Ints, items: int) -> NDArray[np.float64]:
    """The gradient by score [items] of n terms that depend on s_one - s_other, from their slopes [n]."""
    return np.asarray(np.bincount(one, slope, items) - np.bincount(other, slope, items), np.float64)


def minimise(loss: Callable[[Floats], tuple[float, Floats]], start: Floats) -> NDArray[np.float64]:
    """The nearest minimum of a smooth function that returns value and gradient (L-BFGS). RuntimeError without one."""
    found = optimize.minimize(
        loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 10_000, "maxfun": 20_000, "gtol": 1e-8, "ftol": 0}
    )
    # L-BFGS ends where the value's own rounding hides its decrease, with or without success
    if np.abs(found.jac).max() > 1e-6 * max(1.0, abs(found.fun)):
        raise RuntimeError(f"the fit did not converge: {found.message}")
    return np.asarray(found.x)
