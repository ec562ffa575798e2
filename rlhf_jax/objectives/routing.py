"""Keeping the experts of a mixture evenly used. Supervised fine-tuning may add it; PPO does not: its rewards and the KL to the
reference say nothing of experts, and the reference was balanced when it was trained."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def load_balancing(logits: Float[Array, "L B T E"], mask: Bool[Array, "B T"], *, used: int) -> Float[Array, ""]:
    """E · Σₑ fₑ · pₑ over the E experts (arXiv 2101.03961, eq. 4 to 6, with the top `used` experts of each token in place of
    the first, as transformers computes it for Mixtral and Qwen3-MoE).

    Over all layers' masked tokens together, fₑ is how often expert e is chosen per token (Σ f = `used`), pₑ its mean
    softmax. Even use gives `used`; every token to the same few, up to E. f has no gradient: the choice is piecewise
    constant. `logits` are those of the routers, f32; 0 where the mask holds no token.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    experts = logits.shape[-1]
    # Not top_k, for which the compiler gathers the rows of all devices; a sort it cuts by rows.
    chosen = jnp.argsort(-probs, axis=-1, stable=True)[..., :used]
    hits = jnp.sum(jax.nn.one_hot(chosen, experts), axis=-2)
    weights = jnp.broadcast_to(mask, logits.shape[:-1]).astype(jnp.float32)
    tokens = jnp.maximum(jnp.sum(weights), 1)
    often = jnp.einsum("lbt,lbte->e", weights, hits, precision="highest") / tokens
    mean = jnp.einsum("lbt,lbte->e", weights, probs, precision="highest") / tokens
    return experts * jnp.sum(often * mean)
