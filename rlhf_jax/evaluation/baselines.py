"""What a reward model must beat: pair models that see only how long the responses are, or only which words they hold.

Neither sees the prompt. A reward model that scores no better than these has learnt no more than these.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, sparse
from scipy.sparse import linalg as splinalg
from scipy.special import expit

from rlhf_jax.errors import UserError
from rlhf_jax.evaluation.intervals import wilson
from rlhf_jax.feedback.records import Pair

WORD = re.compile(r"\w+|[^\w\s]")
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0, 10_000.0)


@dataclass(frozen=True)
class Accuracy:
    """A share of decisive pairs ordered rightly, the number of pairs, and the share's 95 % Wilson interval."""

    accuracy: float
    n: int
    low: float
    high: float
    detail: str = ""
    """What was fitted, in words."""

    def __str__(self) -> str:
        return f"{self.accuracy:.4f} [{self.low:.4f}, {self.high:.4f}] of {self.n} pairs" + f" ({self.detail})" * bool(
            self.detail
        )


def accuracy(margins: ArrayLike, *, ties: int | float = 0.5, detail: str = "") -> Accuracy:
    """Share of margins above 0, each the better response's score minus the worse's ([n]); a margin of 0 counts `ties`.

    Half for a tie makes a constant scorer 0.5 instead of 0 or 1. Raises UserError for no margins or one that is NaN.
    """
    array = np.asarray(margins, np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise UserError(f"accuracy needs a non-empty list of margins, got shape {array.shape}")
    if np.isnan(array).any():
        raise UserError(f"margin {np.flatnonzero(np.isnan(array))[0]} of {len(array)} is NaN; a score was not a number")
    share, low, high = wilson(float((array > 0).sum() + ties * (array == 0).sum()), len(array))
    return Accuracy(share, len(array), low, high, detail)


def length_only(train: Sequence[Pair], test: Sequence[Pair]) -> Accuracy:
    """Always prefer the longer response (in characters), or always the shorter: whichever wins on the training pairs.

    Equal lengths count one half. Pairs judged equal are left out of both. A strong baseline on much human data: the
    longer response is the preferred one of 0.675 of PandaLM's decisive items. Raises UserError where no decisive pair
    is left.
    """
    fitted, tested = _decisive("train", train), _decisive("test", test)
    lead = sum(pair.weight * _direction(pair) * np.sign(len(pair.chosen) - len(pair.rejected)) for pair in fitted)
    sign = 1 if lead >= 0 else -1
    margins = [sign * _direction(pair) * (len(pair.chosen) - len(pair.rejected)) for pair in tested]
    return accuracy(margins, detail=f"prefers the {'longer' if sign > 0 else 'shorter'}")


def bag_of_words(
    train: Sequence[Pair],
    test: Sequence[Pair],
    *,
    words: int = 2000,
    min_pairs: int = 3,
    penalties: Sequence[int | float] = PENALTIES,
    folds: int = 5,
) -> Accuracy:
    """Logistic regression on the difference of word counts, no intercept: one score per word, whatever the prompt.

    Maximises sum_i w_i [y_i log sigma(z_i) + (1 - y_i) log sigma(-z_i)] - (penalty / 2) |theta|^2 with z_i = theta .
    (counts of chosen - counts of rejected) and y_i the pair's label; the problem is convex and is solved to
    convergence. Words are lower-cased runs of letters and digits, and single other signs; kept are those in at least
    `min_pairs` pairs, the `words` most frequent at most. The penalty is the one of `penalties` with the best held-out
    likelihood over `folds` parts of the training pairs that share no prompt (the largest if there are fewer than 2
    prompts). Test pairs judged equal are left out. Raises UserError where no decisive pair is left.
    """
    if folds < 2 or not penalties:
        raise UserError(f"bag_of_words needs folds >= 2 and a penalty, got folds={folds}, penalties={tuple(penalties)}")
    tested = _decisive("test", test)
    fitted = [pair for pair in train if pair.weight > 0]
    _decisive("train", fitted)
    differences = [_word_difference(pair) for pair in fitted]
    common = Counter(word for difference in differences for word in difference)
    kept = [word for word, count in common.most_common() if count >= min_pairs][:words]
    column = {word: k for k, word in enumerate(kept)}
    x = _matrix(differences, column)
    labels = np.array([pair.share for pair in fitted])
    weights = np.array([pair.weight for pair in fitted])

    groups = {prompt: k % folds for k, prompt in enumerate(sorted({pair.prompt_id for pair in fitted}))}
    fold = np.array([groups[pair.prompt_id] for pair in fitted])
    best = max(penalties)
    if len(groups) >= 2:
        held_out = {}
        for penalty in penalties:
            losses = []
            for k in range(max(fold) + 1):
                theta = logistic(x[fold != k], labels[fold != k], weights[fold != k], penalty)
                losses.append(_loss(x[fold == k] @ theta, labels[fold == k], weights[fold == k]))
            held_out[penalty] = sum(losses)
        best = min(held_out, key=held_out.__getitem__)
    theta = logistic(x, labels, weights, best)
    margins = _matrix([_word_difference(pair) for pair in tested], column) @ theta
    margins = margins * np.array([_direction(pair) for pair in tested])
    return accuracy(margins, detail=f"{len(kept)} words, penalty {best:g}")


def logistic(
    x: sparse.csr_matrix, labels: NDArray[np.float64], weights: NDArray[np.float64], penalty: int | float
) -> NDArray[np.float64]:
    """The theta [features] that minimises the weighted cross-entropy of sigma(x theta) plus (penalty / 2) |theta|^2.

    x is [n, features], labels are probabilities. Newton's method, in a trust region first, until the gradient has shrunk
    to 1e-8 of what it was at 0 or to its rounding (RuntimeError if it does not). Raises UserError for a penalty of 0 or
    below: no minimum need exist.
    """
    if not penalty > 0:
        raise UserError(f"the penalty must be above 0, got {penalty}")

    def value(theta: NDArray[np.float64]) -> float:
        return _loss(x @ theta, labels, weights) + 0.5 * penalty * float(theta @ theta)

    def gradient(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(x.T @ (weights * (expit(x @ theta) - labels)) + penalty * theta)

    def curvature(theta: NDArray[np.float64], along: NDArray[np.float64]) -> NDArray[np.float64]:
        p = expit(x @ theta)
        return np.asarray(x.T @ (weights * p * (1 - p) * (x @ along)) + penalty * along)

    start = np.zeros(x.shape[1])
    first = float(np.linalg.norm(gradient(start)))
    if first == 0:
        return start
    rounding = 1e-12 * float(np.linalg.norm(abs(x).T @ weights))
    enough = max(1e-8 * first, rounding)
    found = optimize.minimize(
        value, start, method="trust-ncg", jac=gradient, hessp=curvature, options={"gtol": enough, "maxiter": 1000}
    )
    # A trust region ends where the value's own rounding hides its decrease; Newton's steps need no value.
    theta = np.asarray(found.x)
    for _ in range(10):
        slope = gradient(theta)
        if np.linalg.norm(slope) <= enough:
            return theta
        operator = splinalg.LinearOperator(
            (theta.size, theta.size), matvec=functools.partial(curvature, theta), dtype=theta.dtype
        )
        theta = theta - splinalg.cg(operator, slope, rtol=1e-10)[0]
    if np.linalg.norm(gradient(theta)) > 100 * enough:
        raise RuntimeError(f"logistic regression did not converge: {found.message}")
    return theta


def _loss(z: NDArray[np.float64], labels: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    return float((weights * (np.logaddexp(0, z) - labels * z)).sum())


def _decisive(name: str, pairs: Sequence[Pair]) -> list[Pair]:
    found = [pair for pair in pairs if not pair.tie and pair.label != 0.5 and pair.weight > 0]
    if not found:
        raise UserError(f"no decisive pair among the {len(pairs)} {name} pairs; a baseline needs at least one")
    return found


def _direction(pair: Pair) -> int:
    """1 where `chosen` is the better one, -1 where a label below one half says that it is not."""
    return 1 if pair.label > 0.5 else -1


def _word_difference(pair: Pair) -> Counter[str]:
    difference = Counter(WORD.findall(pair.chosen.lower()))
    difference.subtract(WORD.findall(pair.rejected.lower()))
    return Counter({word: count for word, count in difference.items() if count})


def _matrix(differences: Sequence[Counter[str]], column: dict[str, int]) -> sparse.csr_matrix:
    entries = [
        (row, column[word], count)
        for row, difference in enumerate(differences)
        for word, count in difference.items()
        if word in column
    ]
    rows, columns, counts = zip(*entries, strict=True) if entries else ((), (), ())
    return sparse.csr_matrix((np.array(counts, float), (rows, columns)), shape=(len(differences), len(column)))
