"""Nash-MD (arXiv 2312.00886): the policy's own sample against one of the geometric mixture of policy and reference.

A rollout holds two responses to each prompt: the policy's, and one of `engine.generate_mixture`. Sampling and judging are outside
of the gradient, and only the policy's response is learnt from.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.algorithms import offline, ppo
from rlhf_jax.errors import UserError
from rlhf_jax.masks import blank, response_mask, weighted_sum
from rlhf_jax.objectives import kl, nash
from rlhf_jax.types import Metrics, Rollout


class Contests(NamedTuple):
    """The policy's responses, and how they did against the mixture's."""

    tokens: Array
    """int32 [G, T]: prompt and response, contiguous."""
    prompt_length: Array
    """int32 [G]."""
    response_length: Array
    """int32 [G]."""
    ref_logprobs: Array
    """f32 [G, R], nats."""
    probability: Array
    """f32 [G]: that the response is preferred to its opponent."""


def judge(rollout: Rollout, *, temperature: float = 1.0, missing_eos_penalty: float | None = None) -> Contests:
    """The first response to each prompt, and the probability that it is preferred to the second.

    temperature           σ((first − second) / temperature) of their scores, as Bradley and Terry have it; 0: 1 for the higher
                          score, ½ for equal ones
    missing_eos_penalty   the score of a response cut at the window; None leaves it its own

    The reference's log-probabilities are the rollout's, so at the sampling temperature; the loss's forward must be too.
    UserError for a rollout without them.
    """
    if rollout.ref_logprobs is None:
        raise UserError("Nash-MD needs the reference's log-probabilities; collect the rollout with a reference")
    scores = ppo.shaped_scores(rollout, missing_eos_penalty=missing_eos_penalty).reshape(-1, 2)
    ahead = scores[:, 0] - scores[:, 1]
    return Contests(
        tokens=rollout.tokens[::2],
        prompt_length=rollout.prompt_length[::2],
        response_length=rollout.response_length[::2],
        ref_logprobs=rollout.ref_logprobs[::2],
        probability=(1.0 + jnp.sign(ahead)) / 2.0 if temperature == 0 else jax.nn.sigmoid(ahead / temperature),
    )


def loss(
    params: Any,
    batch: Contests,
    weights: Float[Array, " B"],
    *,
    forward: offline.Forward,
    objective: Callable[..., Array] = nash.nash_md,
) -> tuple[Float[Array, ""], Metrics]:
    """The objective summed under the weights.

    forward(params, tokens, prompt_length, response_length) -> log-probabilities [B, R], at the sampling temperature
    objective   one of `objectives.nash`, or yours: (logprobs, ref_logprobs, probability, mask) -> [B]; bind settings with
                functools.partial, as in partial(nash.nash_md, beta=0.05)
    """
    logprobs = forward(params, batch.tokens, batch.prompt_length, batch.response_length)
    mask = response_mask(batch.response_length, logprobs.shape[1])
    terms = objective(logprobs, batch.ref_logprobs, batch.probability, mask)
    if jnp.shape(terms) != batch.probability.shape:
        raise UserError(
            f"the loss returned shape {jnp.shape(terms)}; it must return one number a response, {batch.probability.shape}"
        )
    total = weighted_sum(terms, weights)
    spread = {
        "nash/loss": terms,
        "nash/probability": batch.probability,
        "nash/kl": jnp.sum(blank(kl.k1(logprobs, batch.ref_logprobs), mask), axis=1),
    }
    return total, jax.lax.stop_gradient({name: weighted_sum(x, weights) for name, x in spread.items()})


def weigh(batch: Contests) -> Array:
    """f32 [B]: every response counts the same, whatever its length."""
    return jnp.full(batch.probability.shape, 1.0 / batch.probability.size)


def told(rollout: Rollout) -> Metrics:
    """Mean score and length of the opponents."""
    return {
        "opponent/score": jnp.mean(rollout.scores[1::2]),
        "opponent/length": jnp.mean(rollout.response_length[1::2]),
    }
