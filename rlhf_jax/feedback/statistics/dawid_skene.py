"""How often each annotator says what of each truth, and the truth behind the labels, without gold: Dawid and Skene.

A. P. Dawid and A. M. Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, Journal of the
Royal Statistical Society C 28(1), 1979, doi:10.2307/2346806. NumPy in float64.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from rlhf_jax.errors import UserError


@dataclass(frozen=True)
class DawidSkene:
    """The fit for I items, C classes and K annotators."""

    posterior: NDArray[np.float64]
    """[I, C]: probability of each class, given all labels of the item."""
    marginals: NDArray[np.float64]
    """[C]: share of each class."""
    confusion: NDArray[np.float64]
    """[K, C, C]: probability that annotator k says l of an item of class j. Rows of classes never met are even."""
    log_likelihood: float
    """Nats, of all labels, without multinomial constants (labels in the order given)."""
    path: tuple[float, ...]
    """What EM climbs, at each iteration: the log-likelihood plus the smoothing's log-prior. It never falls."""
    converged: bool

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """[K]: probability that the annotator's label is the class, over items as common as `marginals` say."""
        return np.einsum("j,kjj->k", self.marginals, self.confusion)


def fit(
    item: ArrayLike,
    annotator: ArrayLike,
    label: ArrayLike,
    *,
    classes: int,
    smoothing: int | float = 0.0,
    tolerance: float = 1e-7,
    max_iterations: int = 10_000,
) -> DawidSkene:
    """EM from n labels: `item` 0..I-1, `annotator` 0..K-1 and `label` 0..classes-1, each [n]. Repeated labels count.

    E: T_ij ~ pi_j prod_k prod_l e_kjl^(n_ikl). M: pi_j = mean_i T_ij, e_kjl ~ sum_i T_ij n_ikl + smoothing. It starts
    from each item's vote shares, so the same labels give the same fit; it ends in a local optimum near them, which is
    why it needs annotators who are mostly right. It stops when no posterior moves by more than `tolerance`, or after
    `max_iterations` (`converged` is then False). `smoothing` is a Dirichlet prior's pseudo-count for each cell of the
    confusion: 0 is the paper's maximum likelihood; 1 keeps annotators of few labels away from certainty. Raises
    UserError for no labels, arrays of other lengths, indices out of range, or an item in 0..I-1 without a label.
    """
    items, people, labels = (np.asarray(a) for a in (item, annotator, label))
    if not (items.ndim == 1 and len(items) > 0 and items.shape == people.shape == labels.shape):
        raise UserError(
            f"Dawid-Skene needs equally long, non-empty lists, got {items.shape}, {people.shape}, {labels.shape}"
        )
    if not all(np.issubdtype(a.dtype, np.integer) and a.min() >= 0 for a in (items, people, labels)):
        raise UserError("items, annotators and labels are whole numbers from 0 on")
    if labels.max() >= classes:
        raise UserError(f"label {labels.max()} does not exist: there are {classes} classes, 0 to {classes - 1}")
    if not smoothing >= 0:
        raise UserError(f"smoothing is a pseudo-count of 0 or above, got {smoothing}")
    shares = np.zeros((items.max() + 1, classes))
    np.add.at(shares, (items, labels), 1)
    if not shares.any(1).all():
        raise UserError(f"item {np.flatnonzero(~shares.any(1))[0]} has no label; number the items that have one")

    posterior = shares / shares.sum(1, keepdims=True)
    path: list[float] = []
    while True:
        marginals, confusion = _maximise(posterior, items, people, labels, classes, smoothing)
        before = posterior
        posterior, likelihood = _expect(marginals, confusion, items, people, labels)
        path.append(likelihood + (smoothing * float(np.log(confusion).sum()) if smoothing else 0.0))
        moved = float(np.abs(posterior - before).max())
        if moved <= tolerance or len(path) >= max_iterations:
            break
    return DawidSkene(posterior, marginals, confusion, likelihood, tuple(path), moved <= tolerance)


def _maximise(
    posterior: NDArray[np.float64],
    items: NDArray[np.int_],
    people: NDArray[np.int_],
    labels: NDArray[np.int_],
    classes: int,
    smoothing: int | float,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Marginals [C] and confusion [K, C, C] that explain the posteriors best."""
    count = people.max() + 1
    by_class = [np.bincount(people * classes + labels, posterior[items, j], count * classes) for j in range(classes)]
    expected = np.stack(by_class).reshape(classes, count, classes).transpose(1, 0, 2) + smoothing
    met = expected.sum(2, keepdims=True)
    confusion = np.divide(expected, met, out=np.full_like(expected, 1 / classes), where=met > 0)
    return posterior.mean(0), confusion


def _expect(
    marginals: NDArray[np.float64],
    confusion: NDArray[np.float64],
    items: NDArray[np.int_],
    people: NDArray[np.int_],
    labels: NDArray[np.int_],
) -> tuple[NDArray[np.float64], float]:
    """Posterior [I, C] and the log-likelihood. An error rate of 0 rules a class out: log 0 is -inf, never NaN here."""
    with np.errstate(divide="ignore"):
        log_marginals, log_confusion = np.log(marginals), np.log(confusion)
    by_class = [np.bincount(items, log_confusion[people, j, labels]) for j in range(len(marginals))]
    joint = np.stack(by_class, 1) + log_marginals
    each = logsumexp(joint, axis=1, keepdims=True)
    return np.exp(joint - each), float(each.sum())
