"""Rotary positions: the angle per position of each pair of dimensions, and the rotation."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlhf_jax.errors import UserError
from rlhf_jax.model.config import ModelConfig, RopeScaling


def stretch(periods: Float[np.ndarray, " h"], scaling: RopeScaling | None, long: bool) -> Float[np.ndarray, " h"]:
    """The angles per position of pairs that turn by one radian in `periods` positions, as `scaling` says; `long` picks
    the factors of "longrope"."""
    f32 = np.float32
    if scaling is not None and scaling.kind == "longrope":
        return f32(1) / (np.array(scaling.long_factors if long else scaling.short_factors, f32) * periods)
    frequencies = f32(1) / periods
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / f32(scaling.factor)
    turns = f32(scaling.original_max_positions / (2 * math.pi)) * frequencies  # within the trained context
    keep = (turns - f32(scaling.low_freq_factor)) / f32(scaling.high_freq_factor - scaling.low_freq_factor)
    keep = np.clip(keep, f32(0), f32(1))
    return keep * frequencies + (f32(1) - keep) * frequencies / f32(scaling.factor)


def frequencies(cfg: ModelConfig, *, rotates: bool = True, local: bool = False) -> Float[np.ndarray, " h"]:
    """Angle per position of each rotated pair of dimensions, for one kind of layer: a layer that `rotates` or one that
    knows no positions (all 0, which is the identity), a `local` one (with a window) or a global one.

    Worked out in NumPy's f32, so that they are constants of a compiled step: XLA's fused power is an ulp off, and the
    angle's error grows with the position (measured at 576 tokens: logits 4e-4 away from transformers', now 4e-5).
    """
    f32 = np.float32
    rotated = int(cfg.head_dim * cfg.rotary_fraction)
    own_base = local and cfg.rope_local_theta is not None
    theta = cfg.rope_local_theta if own_base else cfg.rope_theta
    periods = f32(theta) ** (np.arange(0, rotated, 2, dtype=f32) / f32(rotated))
    found = stretch(periods, None if own_base else cfg.rope_scaling, cfg.long_context)
    return found if rotates else 0 * found


def check_length(cfg: ModelConfig, length: int) -> None:
    """Raise UserError if rows of this many tokens need the long factors of "longrope" and `cfg` has the short ones."""
    scaling = cfg.rope_scaling
    if scaling and scaling.kind == "longrope" and length > scaling.original_max_positions and not cfg.long_context:
        raise UserError(
            f"rows of {length} tokens are longer than the {scaling.original_max_positions} that the model's short "
            "rotary factors are for; shorten them, or set long_context, which uses the long factors for all rows"
        )


def rotate(
    x: Float[Array, "*b n H"],
    positions: Int[Array, "*b"],
    frequencies: Float[Array | np.ndarray, " h"],
    scale: float = 1.0,
) -> Float[Array, "*b n H"]:
    """Rotary embedding (arXiv 2104.09864) of the first 2h dimensions, i paired with i + h, as Hugging Face stores it,
    times `scale`; the others pass. Angles in f32."""
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    turned, kept = jnp.split(x, [2 * angles.shape[-1]], axis=-1)
    first, second = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    cos, sin = scale * jnp.cos(angles), scale * jnp.sin(angles)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, kept], axis=-1) if kept.shape[-1] else turned
