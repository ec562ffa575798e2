"""Supervised fine-tuning: next-token likelihood of the demonstrated completion."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.masks import weighted_sum
from rlhf_jax.objectives import routing
from rlhf_jax.types import Demonstrations, Metrics


def learnt(batch: Demonstrations) -> Array:
    """bool [B, T − 1]: the loss mask in the frame of the predictions, for `objectives.weights`."""
    inside = jnp.arange(batch.tokens.shape[1])[None] < batch.length[:, None]
    return (batch.loss_mask & inside)[:, 1:]


def row(batch: Demonstrations) -> tuple[Array, ...]:
    """What the forward pass reads: tokens, length, and the segments of rows that hold several texts."""
    alone = batch.tokens, batch.length
    return alone if batch.segment is None else (*alone, batch.segment)


def loss(
    params: Any,
    batch: Demonstrations,
    weights: Float[Array, "B S"],
    *,
    forward: Callable[..., tuple[Array, Array]],
) -> tuple[Float[Array, ""], Metrics]:
    """Negative log-likelihood, nats, of tokens 1 … T − 1 under the weights.

    forward(params, tokens, length) -> log-probability and entropy, [B, T − 1], of each next token; where texts share rows,
    it is given their `segment` too.
    """
    logprobs, entropy = forward(params, *row(batch))
    total = weighted_sum(-logprobs, weights)
    return total, {"sft/loss": total, "sft/entropy": weighted_sum(entropy, weights)}


def balanced_loss(
    params: Any,
    batch: Demonstrations,
    weights: Float[Array, "B S"],
    *,
    forward: Callable[..., tuple[Array, Array, Array]],
    coef: float,
    used: int,
) -> tuple[Float[Array, ""], Metrics]:
    """`loss` of a mixture of experts plus `coef` times `routing.load_balancing` over all real tokens, learnt or not.

    forward(params, tokens, length) -> as for `loss`, and the routers' logits [L, B, T, E]. The balance is one of the whole
    batch, not a sum over its rows, so the batch cannot be cut into micro-batches.
    """
    logprobs, entropy, logits = forward(params, *row(batch))
    total, metrics = loss(params, batch, weights, forward=lambda *_: (logprobs, entropy))
    real = jnp.arange(batch.tokens.shape[1])[None] < batch.length[:, None]
    balance = routing.load_balancing(logits, real, used=used)
    return total + coef * balance, metrics | {"sft/balance": balance}
