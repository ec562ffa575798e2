"""Masks from lengths, and reductions that cannot see a masked slot: `where`, never `* mask`, because 0 · NaN is NaN."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def response_mask(length: Int[Array, " B"], window: int) -> Bool[Array, "B R"]:
    """True for the first `length` of `window` slots: every sampled token, the EOS included."""
    return jnp.arange(window)[None, :] < length[:, None]


def blank(x: Shaped[Array, "*rows"], mask: Bool[Array, "*rows"]) -> Shaped[Array, "*rows"]:
    """Zero where the mask is False, whatever stood there, NaN and infinity included."""
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def weighted_sum(x: Float[Array, "*rows"], weights: Float[Array, "*rows"]) -> Float[Array, ""]:
    """Σ weights · x over slots with a positive weight; the others cannot matter, NaN included.

    With weights that sum to one this is a mean, and sums of it over micro-batches are the mean over all of them.
    """
    kept = weights > 0
    return jnp.sum(jnp.where(kept, blank(x, kept) * weights, 0.0))


def masked_mean(x: Float[Array, "*rows"], mask: Bool[Array, "*rows"]) -> Float[Array, ""]:
    """Mean over the slots where the mask is True; 0 when there is none."""
    return jnp.sum(blank(x, mask)) / jnp.maximum(jnp.sum(mask), 1)


def whiten(
    x: Float[Array, "*rows"], mask: Bool[Array, "*rows"], *, shift_mean: bool = True, eps: float = 1e-8
) -> Float[Array, "*rows"]:
    """Divide by the standard deviation over the masked slots, after subtracting their mean if `shift_mean`.

    The variance has Bessel's correction (n − 1), as in TRL's PPO; lm-human-preferences and its reproductions divide by
    n, which differs by a factor √(1 − 1/n). With fewer than two slots x is returned unscaled. Masked slots become 0.
    Under a mesh the reductions are global, as everywhere in one jitted program.
    """
    count = jnp.sum(mask)
    mean = masked_mean(x, mask)
    variance = jnp.sum(jnp.square(blank(x - mean, mask))) / jnp.maximum(count - 1, 1)
    white = (x - mean) * jnp.where(count > 1, (variance + eps) ** -0.5, 1.0)
    white = jnp.where(count > 1, white if shift_mean else white + mean, x)
    return blank(white, mask)


def restarted(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The place of each token in its own segment, from 0; a segment ends where the number changes."""
    place = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return place - jax.lax.cummax(jnp.where(begins, place, 0), axis=1)


def rows_at(x: Shaped[Array, "B T *rest"], start: Int[Array, " B"], window: int) -> Shaped[Array, "B R *rest"]:
    """x[b, start[b] : start[b] + window], positions past the end repeating the last one."""
    index = jnp.clip(start[:, None] + jnp.arange(window)[None, :], 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), axis=1)


def last_token(x: Shaped[Array, "B T *rest"], length: Int[Array, " B"]) -> Shaped[Array, "B *rest"]:
    """x[b, length[b] − 1]: what stands at the last real token."""
    return rows_at(x, length - 1, 1)[:, 0]
