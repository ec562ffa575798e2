"""Losses of single responses that somebody called good or bad, no pair needed: one a response, unreduced.

Each begins with (logprobs, desirable): log-probabilities [B] as in `preference`, and 1 where the response is good, 0 where it
is bad (between them: the share of judges who find it good). u = log π/π_ref of the response.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kto(
    logprobs: Float[Array, " B"],
    desirable: Float[Array, " B"],
    *,
    ref_logprobs: Float[Array, " B"],
    mismatched: Float[Array, " B"],
    ref_mismatched: Float[Array, " B"],
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Array, " B"]:
    """KTO (arXiv 2402.01306, eqs. 7 and 8): λ_D (1 − σ(β (u − z₀))) of a good response, λ_U (1 − σ(β (z₀ − u))) of a bad one.

    z₀ = max(0, mean of log π/π_ref of responses to other prompts), detached: the KL, nats, that the policy has gone anyway.
    `mismatched` is log π(y_j | x_i) of such a response y_j; its mean is over the minibatch, so the loss `spans_rows`.
    Checked against TRL's KTOTrainer and the authors' https://github.com/ContextualAI/HALOs, which agree but for rows of
    length 0. Where good and bad responses are not equally many, λ_D n_D / (λ_U n_U) is best 1 to 4/3 (TRL's documentation).
    """
    z0 = jax.lax.stop_gradient(jnp.maximum(jnp.mean(mismatched - ref_mismatched), 0.0))
    u = logprobs - ref_logprobs
    good = desirable_weight * jax.nn.sigmoid(beta * (z0 - u))
    return desirable * good + (1.0 - desirable) * undesirable_weight * jax.nn.sigmoid(beta * (u - z0))


def bco(
    logprobs: Float[Array, " B"],
    desirable: Float[Array, " B"],
    *,
    ref_logprobs: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """BCO (arXiv 2404.04656): −log σ(β u − δ) of a good response, −log σ(δ − β u) of a bad one, nats; δ, detached, lies halfway
    between the mean reward β u of the good ones and that of the bad ones.

    δ is of the minibatch: the loss `spans_rows`. The paper averages over the data that have passed, TRL's BCOTrainer and
    EasyDeL over all rewards seen so far, good and bad alike. A mean since the beginning still remembers the first
    policy, and where one kind is rare it is the mean of the other; here δ is the paper's at every step and no state is
    kept. In a minibatch of one kind alone it is that kind's mean. The paper's weights for prompts that differ between the
    two kinds are left out. Checked against those two with δ given.
    """
    reward = beta * (logprobs - ref_logprobs)
    fixed = jax.lax.stop_gradient(reward)
    good, bad = jnp.sum(desirable), jnp.sum(1.0 - desirable)
    of_good = jnp.sum(desirable * fixed) / jnp.maximum(good, 1e-8)
    of_bad = jnp.sum((1.0 - desirable) * fixed) / jnp.maximum(bad, 1e-8)
    shift = jnp.where(good == 0, of_bad, jnp.where(bad == 0, of_good, (of_good + of_bad) / 2.0))
    return -desirable * jax.nn.log_sigmoid(reward - shift) - (1.0 - desirable) * jax.nn.log_sigmoid(shift - reward)


def apo_zero_unpaired(
    logprobs: Float[Array, " B"],
    desirable: Float[Array, " B"],
    *,
    ref_logprobs: Float[Array, " B"],
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """`preference.apo_zero` of single responses (arXiv 2408.06266, eq. 7): 1 − σ(β u) of a good one, σ(β u) of a bad one. It is
    `kto` with z₀ = 0, and no row depends on another. Checked against TRL's KTOTrainer ("apo_zero_unpaired")."""
    reward = beta * (logprobs - ref_logprobs)
    return desirable * jax.nn.sigmoid(-reward) + (1.0 - desirable) * jax.nn.sigmoid(reward)


kto.spans_rows = True  # type: ignore[attr-defined]
bco.spans_rows = True  # type: ignore[attr-defined]
