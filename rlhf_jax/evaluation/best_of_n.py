"""What the best of k samples is worth, told from n ≥ k samples a prompt; and how far best-of-n is from the policy it samples."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_jax.errors import UserError


def expected_best(scores: ArrayLike, values: ArrayLike | None = None) -> NDArray[np.float64]:
    """f64 [G, n]: for k = 1 … n, the expected value of the best of k samples by score, of each prompt.

    With the n samples in ascending order of score the i-th is the best of k drawn from them without replacement with
    probability C(i − 1, k − 1) / C(n, k); the sum of its value times that over i is unbiased for every k ≤ n, and has
    less variance than the best of the first k (WebGPT, arXiv 2112.09332; arXiv 2505.15201, max_g@k). k = 1 is the mean, k = n
    the best of all.

    scores [G, n]; values [G, n], such as another judge's score of the same samples, by default the scores themselves. Among
    equal scores each is the best as often as the others. Raises UserError for other shapes, or numbers that are not finite.
    """
    ranked = np.asarray(scores, np.float64)
    told = ranked if values is None else np.asarray(values, np.float64)
    if ranked.ndim != 2 or ranked.size == 0 or told.shape != ranked.shape:
        raise UserError(f"scores and values must be [prompts, samples] alike; got {ranked.shape} and {told.shape}")
    if not (np.isfinite(ranked).all() and np.isfinite(told).all()):
        raise UserError("scores and values must be finite")
    order = np.argsort(ranked, axis=1, kind="stable")
    ranked, told = np.take_along_axis(ranked, order, axis=1), np.take_along_axis(told, order, axis=1)
    return _tied_means(ranked, told) @ weights(ranked.shape[1]).T


def weights(n: int) -> NDArray[np.float64]:
    """f64 [n, n]: row k − 1, column i − 1: the probability that the i-th smallest of n is the largest of k of them."""
    chances = [[math.comb(i - 1, k - 1) / math.comb(n, k) for i in range(1, n + 1)] for k in range(1, n + 1)]
    return np.array(chances)


def kl_bound(n: int) -> float:
    """log n − (n − 1) / n, nats: an upper bound on the KL of the best of n from the policy it samples. It is met where no two
    samples are ever the same or score the same; otherwise the KL is smaller, much smaller where the policy is
    nearly sure of its response (arXiv 2401.01879, which disproves that it is the KL itself). UserError for n below 1."""
    if n < 1:
        raise UserError(f"best of n needs n of 1 or more, got {n}")
    return math.log(n) - (n - 1) / n


def _tied_means(ranked: NDArray[np.float64], told: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value replaced by the mean over the samples of its prompt with the same score."""
    found = told.copy()
    for row, scores in zip(found, ranked, strict=True):
        for score in np.unique(scores):
            same = scores == score
            row[same] = row[same].mean()
    return found
