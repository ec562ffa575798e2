"""Policy losses by name: `policy.clipped` and what others put in its place.

Each takes (logprobs, old_logprobs, advantages), f32 [B, R] and in nats, and gives one loss a token, unreduced. What needs
to know where a sequence ends takes `mask` too, and `algorithms.ppo.loss` binds it (`policy.with_mask`). ρ is π / π_old of
a token. "Checked against" names code that was read beside the paper, at its main branch of August 2026.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.masks import blank
from rlhf_jax.objectives import kl
from rlhf_jax.objectives.policy import clipped, ratio

__all__ = [
    "LOSSES",
    "SETTINGS",
    "cispo",
    "clipped",
    "geometric_mean",
    "gspo",
    "gspo_token",
    "kl_penalty",
    "sapo",
    "unclipped",
]

LOSSES = ("clipped", "gspo", "gspo_token", "cispo", "sapo", "geometric_mean", "kl_penalty", "unclipped")
"""What a configuration may name as its policy loss."""

SETTINGS = ("clip", "clip_high", "dual_clip", "tau_pos", "tau_neg", "penalty")
"""The keywords by which a configuration may set a loss that takes them, one from a user's own file too."""


def row_mean(x: Float[Array, "B R"], mask: Bool[Array, "B R"]) -> Float[Array, "B 1"]:
    """Mean over each row's masked slots; 0 for a row without one."""
    return jnp.sum(blank(x, mask), axis=1, keepdims=True) / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def unclipped(
    logprobs: Float[Array, "B R"], old_logprobs: Float[Array, "B R"], advantages: Float[Array, "B R"]
) -> Float[Array, "B R"]:
    """−ρ A: the policy gradient with importance weights alone (arXiv 1707.06347, eq. 6). At ρ = 1 its gradient is
    REINFORCE's."""
    return -ratio(logprobs, old_logprobs) * advantages


def kl_penalty(
    logprobs: Float[Array, "B R"],
    old_logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    *,
    penalty: float = 1.0,
) -> Float[Array, "B R"]:
    """−ρ A + penalty · KL(π_old, π): PPO with a penalty in place of the clip (arXiv 1707.06347, eq. 8), in nats.

    The tokens are draws from π_old, so the KL is estimated by ρ − 1 − log ρ, whose gradient is unbiased (`kl.k3`).
    """
    return unclipped(logprobs, old_logprobs, advantages) + penalty * kl.k3(old_logprobs, logprobs)


def gspo(
    logprobs: Float[Array, "B R"],
    old_logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    *,
    mask: Bool[Array, "B R"],
    clip: float = 3e-4,
    clip_high: float | None = 4e-4,
) -> Float[Array, "B R"]:
    """The clipped surrogate of a whole sequence's ratio, the same at each of its tokens (GSPO, arXiv 2507.18071):

        −min(s A, clip(s, 1 − clip, 1 + clip_high) A),   s = (π(y) / π_old(y))^(1/|y|) = exp(mean_t log ρ_t)

    Its objective is a mean over sequences: weights `sequence_mean`. The bounds, some hundred times narrower than PPO's,
    are those of the paper's section 5.1. Checked against TRL (`importance_sampling_level: sequence`).
    """
    sequence = jnp.broadcast_to(row_mean(logprobs - old_logprobs, mask), logprobs.shape)
    return clipped(sequence, jnp.zeros_like(sequence), advantages, clip=clip, clip_high=clip_high)


def gspo_token(
    logprobs: Float[Array, "B R"],
    old_logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    *,
    mask: Bool[Array, "B R"],
    clip: float = 3e-4,
    clip_high: float | None = 4e-4,
) -> Float[Array, "B R"]:
    """`gspo` with s_t = sg[s] · π_t / sg[π_t]: the value is the same, and so is the gradient where the advantage is the same
    at all tokens of a row and all count alike; where it is not, each token is pulled by its own (GSPO-token, arXiv
    2507.18071). Checked against verl's `gspo` and TRL's experimental GSPO-token."""
    sequence = jax.lax.stop_gradient(row_mean(logprobs - old_logprobs, mask) - logprobs) + logprobs
    return clipped(sequence, jnp.zeros_like(sequence), advantages, clip=clip, clip_high=clip_high)


def cispo(
    logprobs: Float[Array, "B R"],
    old_logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    *,
    clip: float | None = None,
    clip_high: float = 4.0,
) -> Float[Array, "B R"]:
    """−sg[clip(ρ, 1 − clip, 1 + clip_high)] A log π: REINFORCE under bounded importance weights, so that no token loses its
    gradient (CISPO, arXiv 2506.13585).

    The paper sets no lower bound (clip None). ρ ≤ 5 is what arXiv 2510.13786 (ScaleRL) and TRL's documentation recommend.
    Checked against verl's and TRL's `cispo`; TRL's epsilon_high is the bound itself, 1 + clip_high here.
    """
    bounded = jnp.clip(ratio(logprobs, old_logprobs), None if clip is None else 1.0 - clip, 1.0 + clip_high)
    return -jax.lax.stop_gradient(bounded) * advantages * logprobs


def sapo(
    logprobs: Float[Array, "B R"],
    old_logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
) -> Float[Array, "B R"]:
    """−(4 / τ) σ(τ (ρ − 1)) A, with τ = tau_pos where A > 0 and tau_neg elsewhere: a soft gate in place of the clip, whose
    gradient at ρ = 1 is that of ρ A and fades on both sides (SAPO, arXiv 2511.20347). A larger τ fades sooner. Checked
    against verl's and TRL's `sapo`, whose defaults these are. Meant for weights `sequence_mean`."""
    tau = jnp.where(advantages > 0, tau_pos, tau_neg)
    return -(4.0 / tau) * jax.nn.sigmoid(tau * (ratio(logprobs, old_logprobs) - 1.0)) * advantages


def geometric_mean(
    logprobs: Float[Array, "B R"],
    old_logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    *,
    mask: Bool[Array, "B R"],
    clip: float = 0.4,
    clip_high: float | None = None,
) -> Float[Array, "B R"]:
    """The geometric mean of each sequence's clipped ratios, the same at each of its tokens (GMPO, arXiv 2507.20673):

        −A exp(mean_t s min(s log ρ_t, s clip(log ρ_t, −clip, clip_high))),   s = sign A

    The bounds are on log ρ, by default the paper's (e^−0.4, e^0.4). A is the row's mean where tokens differ. Meant for
    weights `sequence_mean`. Checked against verl's `geo_mean` and TRL's experimental GMPO.
    """
    whole = row_mean(advantages, mask)
    sign, log_ratio = jnp.sign(whole), logprobs - old_logprobs
    bounded = jnp.clip(log_ratio, -clip, clip if clip_high is None else clip_high)
    pessimistic = sign * jnp.minimum(sign * log_ratio, sign * bounded)
    mean = jnp.clip(row_mean(pessimistic, mask), -kl.LIMIT, kl.LIMIT)
    return jnp.broadcast_to(-whole * jnp.exp(mean), logprobs.shape)
