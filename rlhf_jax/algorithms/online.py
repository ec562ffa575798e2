"""Preference learning on the policy's own samples: two responses a prompt, judged by a reward as they come.

Online DPO (OAIF, arXiv 2402.04792) with any loss of pairs, and XPO (arXiv 2405.21046). The loss is `offline.loss`; sampling and
judging are outside of the gradient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.algorithms import offline, ppo
from rlhf_jax.masks import weighted_sum
from rlhf_jax.types import Metrics, Preferences, Rollout


class Judged(NamedTuple):
    """Pairs with the better response first, and who wrote which."""

    pairs: Preferences
    second: Array
    """int32 [G]: which of the two, 0 or 1, was sampled second: in XPO the one from the reference."""


def judge(
    rollout: Rollout, *, temperature: float = 0.0, missing_eos_penalty: float | None = None, ld_alpha: float = 1.0
) -> Judged:
    """A pair of each prompt's two responses, the one with the higher score first.

    temperature           0: the better is preferred for certain, and a tie teaches nothing (weight 0). Above 0: with
                          probability σ((better − worse) / temperature), as Bradley and Terry have it
    missing_eos_penalty   the score of a response cut at the window; None leaves it its own
    ld_alpha              as in `offline.summed`

    The reference's log-probabilities are the rollout's, so at the sampling temperature; the loss's forward must be too.
    """
    scores = ppo.shaped_scores(rollout, missing_eos_penalty=missing_eos_penalty).reshape(-1, 2)
    second = jnp.where(scores[:, 1] > scores[:, 0], 0, 1)  # where the second response goes
    order = jnp.stack([1 - second, second], axis=1)
    ahead = jnp.abs(scores[:, 0] - scores[:, 1])
    certain = temperature == 0

    def both(x: Array) -> Array:
        paired = x.reshape(-1, 2, *x.shape[1:])
        return jnp.take_along_axis(paired, order.reshape(order.shape + (1,) * (paired.ndim - 2)), axis=1)

    length, reference = both(rollout.response_length), rollout.ref_logprobs
    pairs = Preferences(
        tokens=both(rollout.tokens),
        prompt_length=rollout.prompt_length[::2],
        response_length=length,
        label=jnp.ones_like(ahead) if certain else jax.nn.sigmoid(ahead / temperature),
        weight=jnp.where(ahead > 0, 1.0, 0.0) if certain else jnp.ones_like(ahead),
        ref_logprobs=None if reference is None else offline.summed(both(reference), length, ld_alpha=ld_alpha),
    )
    return Judged(pairs, second.astype(jnp.int32))


def loss(
    params: Any,
    batch: Judged,
    weights: Float[Array, " B"],
    *,
    forward: offline.Forward,
    exploration: float = 0.0,
    ld_alpha: float = 1.0,
    **settings: Any,
) -> tuple[Float[Array, ""], Metrics]:
    """`offline.loss` with these settings, plus `exploration` (XPO's α) times log π, nats, of each prompt's second response.

    XPO (arXiv 2405.21046, algorithm 1): the second response is the reference's, and making it less likely draws the policy to
    what the reference would not say. Checked against TRL's XPOTrainer, which adds the same term.
    """
    pairs = batch.pairs
    B, K, T = pairs.tokens.shape
    rows = pairs.tokens.reshape(B * K, T), jnp.repeat(pairs.prompt_length, K), pairs.response_length.reshape(B * K)
    tokens = forward(params, *rows)
    total, metrics = offline.loss(params, pairs, weights, forward=lambda *_: tokens, ld_alpha=ld_alpha, **settings)
    if exploration == 0:
        return total, metrics
    whole = offline.summed(tokens.reshape(B, K, -1), pairs.response_length)
    bonus = weighted_sum(jnp.take_along_axis(whole, batch.second[:, None], axis=1)[:, 0], weights)
    total = total + exploration * bonus
    return total, metrics | {"preference/loss": total, "preference/second_logprob": bonus}


def weigh(batch: Judged) -> Array:
    """f32 [B]: pairs with a winner count the same."""
    return offline.weigh(batch.pairs)


def told(batch: Judged) -> Metrics:
    """The share of pairs that teach, and how often the second response won."""
    counts = batch.pairs.weight > 0
    won = weighted_sum(1.0 - batch.second, weigh(batch))
    return {"judged/decided": jnp.mean(counts), "judged/second_won": won}
