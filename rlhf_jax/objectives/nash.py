"""Nash-MD's policy gradient: a response learns from how often it beats one of its opponent's, and stays near the reference.

Both functions take log-probabilities of the policy's own response tokens, [B, R], nats, under policy and reference, the
probability [B] that the response is preferred to the opponent's, and the mask [B, R]; both return one loss a response, [B].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.masks import blank

LOSSES = ("nash_md", "nash_md_token")
"""The functions that a configuration may name."""


def nash_md(
    logprobs: Float[Array, "B R"],
    ref_logprobs: Float[Array, "B R"],
    probability: Float[Array, " B"],
    mask: Bool[Array, "B R"],
    *,
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """Nash-MD-PG (arXiv 2312.00886): −Σ_t log π(y_t) · sg[P(y ≻ y′) − ½ − β Σ_{m ≥ t} log π(y_m)/π_ref(y_m)].

    sg is detached: the gradient is that of P − β KL(π ‖ π_ref), times −1, with ½, the probability against oneself, as its
    baseline. It is unbiased: a token answers for the log-ratios from it on; those before it do not depend on it, and leaving
    them out only lowers the variance. β is the paper's τ. For one token it is the tabular
    estimate of https://github.com/zhourunlong/EGPO less the baseline, and for more the paper's, whose whole log-ratio has
    the same expectation; `nash_md_token` is what TRL has instead.
    """
    log_ratio = _log_ratio(logprobs, ref_logprobs, mask)
    return _losses(logprobs, probability, mask, beta * jnp.cumsum(log_ratio[:, ::-1], axis=1)[:, ::-1])


def nash_md_token(
    logprobs: Float[Array, "B R"],
    ref_logprobs: Float[Array, "B R"],
    probability: Float[Array, " B"],
    mask: Bool[Array, "B R"],
    *,
    beta: float = 0.1,
) -> Float[Array, " B"]:
    """The same with a token's own log-ratio alone: −Σ_t log π(y_t) · sg[P(y ≻ y′) − ½ − β log π(y_t)/π_ref(y_t)].

    What a token does to the KL of later ones is left out: "partial" in the words of arXiv 2506.09477, and of less variance.
    Checked against TRL's NashMDTrainer (https://github.com/huggingface/trl) and EasyDeL's (https://github.com/erfanzar/EasyDeL),
    which agree; β = 0.1 is theirs.
    """
    return _losses(logprobs, probability, mask, beta * _log_ratio(logprobs, ref_logprobs, mask))


def _log_ratio(logprobs: Array, ref_logprobs: Array, mask: Array) -> Array:
    return blank(logprobs, mask) - blank(ref_logprobs, mask)


def _losses(logprobs: Array, probability: Array, mask: Array, penalty: Array) -> Array:
    gain = blank(probability[:, None] - 0.5 - penalty, mask)
    return -jnp.sum(blank(logprobs, mask) * jax.lax.stop_gradient(gain), axis=1)
