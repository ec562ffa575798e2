"""PPO's policy loss: log-probabilities and advantages in, one loss a token out. Nothing is reduced here.

Other losses of the same form are in `policy_zoo`.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.objectives.kl import LIMIT


def ratio(logprobs: Float[Array, "B R"], old_logprobs: Float[Array, "B R"]) -> Float[Array, "B R"]:
    """π / π_old of each token, its logarithm bounded by ±20 so that it stays finite."""
    return jnp.exp(jnp.clip(logprobs - old_logprobs, -LIMIT, LIMIT))


def clipped(
    logprobs: Float[Array, "B R"],
    old_logprobs: Float[Array, "B R"],
    advantages: Float[Array, "B R"],
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> Float[Array, "B R"]:
    """PPO's clipped surrogate (arXiv 1707.06347, eq. 7), as a loss:

        −min(ρ A, clip(ρ, 1 − clip, 1 + clip_high) A)

    `clip_high` widens the upper side alone (arXiv 2503.14476, §3.1; default: the same as `clip`). `dual_clip` c > 1
    bounds the loss of tokens with A < 0 by −c A, however large ρ is (arXiv 1912.09729, eq. 5; default: no bound).
    """
    ratios = ratio(logprobs, old_logprobs)
    bounded = jnp.clip(ratios, 1.0 - clip, 1.0 + (clip if clip_high is None else clip_high))
    surrogate = jnp.minimum(ratios * advantages, bounded * advantages)
    if dual_clip is not None:
        surrogate = jnp.where(advantages < 0, jnp.maximum(surrogate, dual_clip * advantages), surrogate)
    return -surrogate


def truncated_importance(
    logprobs: Float[Array, "B R"], behaviour_logprobs: Float[Array, "B R"], *, cap: float = 2.0
) -> Float[Array, "B R"]:
    """min(π_old / π_behaviour, cap), detached: corrects for a sampler whose distribution is not the one trained
    (https://fengyao.notion.site/off-policy-rl; truncated importance sampling, Ionides 2008). Cap 2 is verl's default."""
    return jax.lax.stop_gradient(jnp.minimum(ratio(logprobs, behaviour_logprobs), cap))


def masked_importance(
    logprobs: Float[Array, "B R"], behaviour_logprobs: Float[Array, "B R"], *, floor: float = 0.5, cap: float = 5.0
) -> Float[Array, "B R"]:
    """π_old / π_behaviour where it lies in [floor, cap], else 0: a token on which the two disagree more is left out, not
    capped (IcePop, arXiv 2510.18855 and https://ringtech.notion.site/icepop, whose bounds these are; checked against
    the formulas in TRL's and OpenRLHF's documentation). Detached."""
    ratios = ratio(logprobs, behaviour_logprobs)
    return jax.lax.stop_gradient(jnp.where((ratios >= floor) & (ratios <= cap), ratios, 0.0))


def with_mask(loss: Callable[..., Array], mask: Bool[Array, "B R"]) -> Callable[..., Array]:
    """The loss as a function of (logprobs, old_logprobs, advantages): a parameter named `mask`, which a loss of whole
    sequences needs, is bound; one without it is returned as it is."""
    return functools.partial(loss, mask=mask) if "mask" in inspect.signature(loss).parameters else loss
