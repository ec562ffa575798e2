"""From logits to a token: temperature, truncation, one draw. Everything in f32 (noise drawn in bf16 is badly wrong)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.types import Sampling

BLOCK = 128
"""Tokens a block in the two-level draw; the vector width of the accelerators at hand."""


def truncate(logits: Float[Array, "*b V"], sampling: Sampling) -> Float[Array, "*b V"]:
    """Logits at the sampling temperature, −inf where a token is ruled out.

    Top-k, then top-p, then min-p, each over what the last one kept, as transformers does. The likeliest token always
    stays. Tokens tied with the last one kept stay too.
    """
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k and sampling.top_k < logits.shape[-1]:
        smallest = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if sampling.top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        smallest = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < smallest, -jnp.inf, logits)
    if sampling.min_p > 0:
        # the difference keeps digits that large logits would lose
        below = logits - jnp.max(logits, axis=-1, keepdims=True)
        logits = jnp.where(below < jnp.log(jnp.float32(sampling.min_p)), -jnp.inf, logits)
    return logits


def mixed(own: Float[Array, "*b V"], other: Float[Array, "*b V"], share: float) -> Float[Array, "*b V"]:
    """Logits of the geometric mixture p^(1 − share) q^share of p = softmax(own) and q = softmax(other), f32.

    At a temperature it is the same whether p and q are taken at it or the mixture: both are softmax of these over it.
    """
    return (1.0 - share) * own.astype(jnp.float32) + share * other.astype(jnp.float32)


def first_beyond(mass: Float[Array, "*b s"], target: Float[Array, "*b 1"]) -> Int[Array, "*b 1"]:
    """The first slot whose cumulated mass exceeds the target, never one without mass, whatever the rounding."""
    beyond = (jnp.cumsum(mass, axis=-1) > target) & (mass > 0)
    fallback = jnp.argmax(mass, axis=-1, keepdims=True)
    return jnp.where(jnp.any(beyond, axis=-1, keepdims=True), jnp.argmax(beyond, axis=-1, keepdims=True), fallback)


def categorical(logits: Float[Array, "*b V"], uniform: Float[Array, "*b"]) -> Int[Array, "*b"]:
    """One draw from softmax(logits) by inverting its distribution function at a uniform number in [0, 1).

    First the block, then the token inside it: one pass and one random number a row, instead of V of them.
    """
    V = logits.shape[-1]
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, -V % BLOCK)])
    blocks = weights.reshape(*weights.shape[:-1], -1, BLOCK)
    mass = jnp.sum(blocks, axis=-1)
    target = uniform[..., None] * jnp.sum(mass, axis=-1, keepdims=True)
    block = first_beyond(mass, target)
    before = jnp.take_along_axis(jnp.cumsum(mass, axis=-1) - mass, block, axis=-1)
    inside = jnp.take_along_axis(blocks, block[..., None], axis=-2)[..., 0, :]
    token = block * BLOCK + first_beyond(inside, target - before)
    return token[..., 0].astype(jnp.int32)


def draw(logits: Float[Array, "*b V"], keys: Array, sampling: Sampling) -> tuple[Int[Array, "*b"], Float[Array, "*b"]]:
    """A token a row and its log-probability, nats, under the distribution drawn from. `keys` has one key a row."""
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
        return token, jnp.zeros(token.shape, jnp.float32)
    kept = truncate(logits, sampling)
    uniform = jnp.reshape(jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32))(keys.reshape(-1)), keys.shape)
    # 0 would draw the first token whatever its probability; the smallest other draw is 2⁻²³
    token = categorical(kept, jnp.maximum(uniform, 2.0**-24))
    logprobs = jax.nn.log_softmax(kept, axis=-1)
    return token, jnp.take_along_axis(logprobs, token[..., None], axis=-1)[..., 0]
