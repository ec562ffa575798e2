"""Reward models from what people said: losses of pairs, rankings and ratings, ensembles, and the normalisation that is
saved with the model.

Besides its rewards a loss may read numbers about the judging itself: how likely a tie is, how reliable each judge, where
one grade ends. They are learnt or held beside the model's parameters, under JUDGING, and are no part of the model.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlhf_jax.errors import UserError
from rlhf_jax.masks import weighted_sum
from rlhf_jax.objectives import reward
from rlhf_jax.types import Metrics, Pairs, Params, Rankings, Ratings

JUDGING = "judging/"
"""How the names of such numbers begin. log_nu f32 [A], log_delta f32 [A, D], cuts f32 [A, C] are by axis, reliability f32 [N]
by judge; `objectives.reward` says what they are."""

KINDS = {("chosen", "rejected"): "pairs", ("scores", "ranks"): "rankings", ("score", "rating"): "ratings"}
"""What a loss learns from, by its first two parameters."""

OFFERED = {
    "pairs": ("label", "tie", "margin", "label_smoothing", "log_nu", "reliability"),
    "rankings": ("log_delta",),
    "ratings": ("cuts",),
}
"""What else a loss of each kind may take, by name."""


def kind_of(objective: Callable[..., Any]) -> str:
    """ "pairs", "rankings" or "ratings". UserError for a function that is a loss of none, or needs what there is not."""
    parameters = list(inspect.signature(objective).parameters.values())
    firsts = tuple(parameter.name for parameter in parameters[:2])
    if firsts not in KINDS:
        known = "; ".join(f"{' and '.join(names)} for {kind}" for names, kind in KINDS.items())
        raise UserError(f"a reward model's loss begins with {known}; got {', '.join(firsts) or 'no parameter'}")
    kind = KINDS[firsts]
    for parameter in parameters[2:]:
        if parameter.default is parameter.empty and parameter.name not in OFFERED[kind]:
            raise UserError(f"a loss of {kind} may ask for {', '.join(OFFERED[kind])}; got {parameter.name}")
    return kind


def takes(objective: Callable[..., Any]) -> set[str]:
    """The names of what a loss takes besides its first two arguments."""
    return set(list(inspect.signature(objective).parameters)[2:])


def weigh(batch: Pairs | Rankings | Ratings) -> Array:
    """f32 [B]: the rows' own weights, scaled to sum to one."""
    return batch.weight / jnp.maximum(jnp.sum(batch.weight), 1e-8)


def loss(
    params: Any,
    batch: Pairs,
    weights: Float[Array, " B"],
    *,
    forward: Callable[..., Array],
    objective: Callable[..., Array] = reward.bradley_terry,
    label_smoothing: float = 0.0,
    centring_coef: float = 0.0,
    penalty: Callable[[Any], Array] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """A loss of pairs (`objectives.reward`), plus centring_coef · (r_chosen + r_rejected)², plus `penalty(params)`.

    forward(params, tokens, length) -> f32 [B], or [B, A]: then each row reads its own axis. Both texts go through one
    forward pass. `objective` is given what it takes of OFFERED: `tie` is the share of votes for a tie, `label` that of the
    others for `chosen`. To a loss that takes no `tie` a vote for a tie is half a vote for either, label ← ½ + (1 − tie)
    (label − ½). 0.01 is a usual centring coefficient (arXiv 2312.09244).
    """
    label = batch.label if batch.tie is None else 0.5 + (1.0 - batch.tie) * (batch.label - 0.5)
    tokens = jnp.concatenate([batch.chosen, batch.rejected])
    rewards = forward(params, tokens, jnp.concatenate([batch.chosen_length, batch.rejected_length]))
    axis = None if batch.axis is None else jnp.concatenate([batch.axis, batch.axis])
    chosen, rejected = jnp.split(_of_axis(rewards, axis), 2)
    offered = _judging(params, batch) | {"label": label, "margin": batch.margin}
    if "tie" in takes(objective):
        offered |= {"label": batch.label, "tie": jnp.zeros_like(label) if batch.tie is None else batch.tie}
    terms = objective(chosen, rejected, **_taken(objective, offered | {"label_smoothing": label_smoothing}))
    total = _summed(params, terms + centring_coef * reward.centring(chosen, rejected), weights, penalty)
    undecided = (chosen == rejected) | (label == 0.5)
    right = jnp.where(undecided, 0.5, (chosen > rejected) == (label > 0.5))
    return total, {
        "reward/loss": total,
        "reward/accuracy": weighted_sum(right, weights),
        "reward/margin": weighted_sum(chosen - rejected, weights),
        "reward/mean": weighted_sum((chosen + rejected) / 2, weights),
    }


def ranking_loss(
    params: Any,
    batch: Rankings,
    weights: Float[Array, " B"],
    *,
    forward: Callable[..., Array],
    objective: Callable[..., Array] = reward.plackett_luce,
    centring_coef: float = 0.0,
    penalty: Callable[[Any], Array] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The same of rankings; centring_coef is of (2 · the mean reward of a row's texts)², as for pairs."""
    B, K, T = batch.tokens.shape
    rewards = forward(params, batch.tokens.reshape(B * K, T), batch.length.reshape(B * K))
    scores = _of_axis(rewards, jnp.repeat(batch.axis, K)).reshape(B, K)
    here = batch.ranks >= 0
    mean = jnp.sum(jnp.where(here, scores, 0.0), axis=1) / jnp.maximum(jnp.sum(here, axis=1), 1)
    terms = objective(scores, batch.ranks, **_taken(objective, _judging(params, batch)))
    total = _summed(params, terms + centring_coef * reward.centring(mean, mean), weights, penalty)
    ahead = (batch.ranks[:, :, None] < batch.ranks[:, None, :]) & here[:, :, None]
    gap = scores[:, :, None] - scores[:, None, :]
    count = jnp.maximum(jnp.sum(ahead, axis=(1, 2)), 1)
    right = jnp.where(ahead, jnp.where(gap == 0, 0.5, gap > 0), 0.0).sum(axis=(1, 2)) / count
    return total, {
        "reward/loss": total,
        "reward/accuracy": weighted_sum(jnp.where(jnp.any(ahead, axis=(1, 2)), right, 0.5), weights),
        "reward/margin": weighted_sum(jnp.where(ahead, gap, 0.0).sum(axis=(1, 2)) / count, weights),
        "reward/mean": weighted_sum(mean, weights),
    }


def rating_loss(
    params: Any,
    batch: Ratings,
    weights: Float[Array, " B"],
    *,
    forward: Callable[..., Array],
    objective: Callable[..., Array] = reward.regression,
    penalty: Callable[[Any], Array] | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The same of ratings. `reward/error` is the mean distance of what is predicted from the rating: in grades where the loss
    has thresholds (as many of them lie below the score), in its own units else; `reward/accuracy` the share within half a
    grade."""
    score = _of_axis(forward(params, batch.tokens, batch.length), batch.axis)
    offered = _judging(params, batch)
    total = _summed(params, objective(score, batch.rating, **_taken(objective, offered)), weights, penalty)
    predicted = score
    if "cuts" in takes(objective):
        predicted = jnp.sum(reward.thresholds(offered["cuts"]) < score[:, None], axis=1).astype(jnp.float32)
    error = jnp.abs(predicted - batch.rating)
    return total, {
        "reward/loss": total,
        "reward/error": weighted_sum(error, weights),
        "reward/accuracy": weighted_sum(jnp.where(error < 0.5, 1.0, 0.0), weights),
        "reward/mean": weighted_sum(score, weights),
    }


def without_judging(params: Mapping[str, Any]) -> tuple[Params, dict[str, Array]]:
    """(the model's parameters, the numbers about the judging by their short names)."""
    model = {path: x for path, x in params.items() if not path.startswith(JUDGING)}
    return model, {path.removeprefix(JUDGING): x for path, x in params.items() if path.startswith(JUDGING)}


def stack(members: Sequence[Params]) -> Params:
    """Members of an ensemble, of one shape, as one tree whose leaves lead with M."""
    if not members:
        raise UserError("an ensemble needs a member at least")
    shapes = [jax.tree.map(np.shape, member) for member in members]
    if any(shape != shapes[0] for shape in shapes[1:]):
        raise UserError("the members of an ensemble must be models of one shape")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def ensemble(forward: Callable[..., Array]) -> Callable[..., Array]:
    """scores(stacked, tokens, length) -> f32 [M, …]: `forward` of every member (`stack`) in one program."""
    return jax.jit(jax.vmap(forward, in_axes=(0, None, None)))


def fit_normalisation(scores: Sequence[float] | np.ndarray, *, scale: bool = True) -> tuple[float, float]:
    """(mean, std) of raw scores on reference responses, so that (score − mean) / std is 0 on average there, and of unit
    deviation if `scale` (lm-human-preferences does both, the TL;DR reproduction the mean alone)."""
    values = np.asarray(scores, np.float64)
    std = float(values.std()) if scale and values.size > 1 and values.std() > 0 else 1.0
    return float(values.mean()), std


def _of_axis(rewards: Array, axis: Any) -> Array:
    """Each row's own axis of f32 [B, A]; f32 [B] stays as it is."""
    return rewards if rewards.ndim == 1 else jnp.take_along_axis(rewards, axis[:, None], axis=1)[:, 0]


def _judging(params: Any, batch: Any) -> dict[str, Array]:
    """A row's own numbers about the judging, of those that there are."""
    _, found = without_judging(params) if isinstance(params, Mapping) else ({}, {})
    rows = {"reliability": getattr(batch, "judge", None)}
    return {name: x[rows.get(name, batch.axis)] for name, x in found.items()}


def _taken(objective: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """What the loss takes of what is offered."""
    names = takes(objective)
    return {name: x for name, x in offered.items() if name in names}


def _summed(params: Any, terms: Array, weights: Array, penalty: Callable[[Any], Array] | None) -> Array:
    """Σ weights · terms, and the penalty by the share of the minibatch that this piece of it is."""
    total = weighted_sum(terms, weights)
    return total if penalty is None else total + jnp.sum(weights) * penalty(params)
