"""Attention over a whole row, and over a cache whose prompt part is stored once for all samples of a prompt."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def soft_cap(x: Array, cap: float | None) -> Array:
    """c · tanh(x / c), which bends x into (−c, c) (arXiv 2408.00118); x itself without a cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def scores(
    q: Float[Array, "*b t N H"], k: Float[Array, "*b s K H"], *, scale: int | None = None, cap: float | None = None
) -> Float[Array, "*b K g t s"]:
    """Dot products in f32 over the root of `scale` (default H), softly capped, query heads gathered by the key head
    that they share (arXiv 2305.13245)."""
    q = q.reshape(*q.shape[:-2], k.shape[-2], -1, q.shape[-1])
    products = jnp.einsum("...tkgh,...skh->...kgts", q, k, preferred_element_type=jnp.float32)
    return soft_cap(products * (q.shape[-1] if scale is None else scale) ** -0.5, cap)


def masked_softmax(scores: Float[Array, "*b s"], mask: Bool[Array, "*#b s"]) -> Float[Array, "*b s"]:
    """Softmax over the kept scores, in f32. A row with nothing kept stays finite, and so does its gradient."""
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1)


def mix(weights: Float[Array, "*b K g t s"], v: Float[Array, "*b s K H"]) -> Float[Array, "*b t N H"]:
    """Weighted values, heads in their first order."""
    mixed = jnp.einsum("...kgts,...skh->...tkgh", weights.astype(v.dtype), v)
    return mixed.reshape(*mixed.shape[:-3], -1, mixed.shape[-1])


def causal(length: int, window: int | Int[Array, ""] | None = None) -> Bool[Array, "1 T T"]:
    """Which keys each query of a row of this length sees: those up to itself, the last `window` of them if given."""
    mask = jnp.tril(jnp.ones((length, length), bool))
    if window is not None:
        places = jnp.arange(length)
        mask = mask & (places[:, None] - places < window)
    return mask[None]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Bool[Array, "#B T T"],
    *,
    scale: int | None = None,
    cap: float | None = None,
) -> Float[Array, "B T N H"]:
    """Softmax attention (arXiv 1706.03762) over the positions that `mask[b, query, key]` keeps."""
    return mix(masked_softmax(scores(q, k, scale=scale, cap=cap), mask[:, None, None]), v)


def attend_cache(
    q: Float[Array, "G n N H"],
    prompt_k: Float[Array, "G P K H"],
    prompt_v: Float[Array, "G P K H"],
    k: Float[Array, "G n R K H"],
    v: Float[Array, "G n R K H"],
    prompt_length: Int[Array, " G"],
    step: Int[Array, ""],
    *,
    window: int | None = None,
    scale: int | None = None,
    cap: float | None = None,
) -> Float[Array, "G n N H"]:
    """One new query a sample, over its prompt (stored once a group) and the first step + 1 slots of its own
    response; of all these, over the last `window` if given."""
    P, R = prompt_k.shape[1], k.shape[2]
    on_prompt = scores(q, prompt_k, scale=scale, cap=cap)  # the n samples are the queries: one matrix product a prompt
    on_response = scores(q[:, :, None], k, scale=scale, cap=cap)
    G, n = q.shape[:2]
    on_prompt = jnp.moveaxis(on_prompt, -2, 1)[..., None, :]
    mask = jnp.concatenate(
        [jnp.arange(P)[None] < prompt_length[:, None], jnp.broadcast_to(jnp.arange(R)[None] <= step, (G, R))], axis=-1
    )
    if window is not None:
        places = jnp.concatenate(
            [jnp.broadcast_to(jnp.arange(P), (G, P)), prompt_length[:, None] + jnp.arange(R)], axis=-1
        )
        mask = mask & (prompt_length[:, None] + step - places < window)
    weights = masked_softmax(jnp.concatenate([on_prompt, on_response], axis=-1), mask[:, None, None, None, None])
    from_prompt = mix(jnp.moveaxis(weights[..., 0, :P], 1, -2), prompt_v)
    return from_prompt + mix(weights[..., P:], v)[:, :, 0]
