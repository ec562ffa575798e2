"""What an adapter adds to a matrix (LoRA, arXiv 2106.09685): W + scale · A B, without ever making that sum.

An adapter of the matrix `name` is three more arrays beside it: `name_lora_a` [*rows, r], `name_lora_b` [r, *columns] and
the scalar `name_lora_scale`, those of a layer stacked as the matrix is. Where they are absent nothing is computed, so
that a model without an adapter is, bit for bit, the model it was.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.types import Params

GROUPS = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
"""Matrices that may share one A, as they must where a checkpoint holds them as one tensor."""

GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def factors(weights: Params, name: str) -> tuple[Array, Array, Array] | None:
    """(A, B, scale) of a matrix, its A its own or its group's; None where it is not adapted."""
    if f"{name}_lora_b" not in weights:
        return None
    owner = name if f"{name}_lora_a" in weights else GROUP_OF[name]
    return weights[f"{owner}_lora_a"], weights[f"{name}_lora_b"], weights[f"{owner}_lora_scale"]


def add(y: Array, x: Array, weights: Params, name: str, formula: str, **how: Any) -> Array:
    """y + scale · (x A) B, where y is the einsum `formula` of x with the matrix; y itself without an adapter.

    The scale meets the r numbers between A and B, in f32. `how` goes to both einsums. A matrix that is used transposed
    (the embedding as output matrix) meets B first.
    """
    found = factors(weights, name)
    if found is None:
        return y
    a, b, scale = (part.astype(x.dtype) if part.ndim else part for part in found)
    left, out = formula.split("->")
    into, letters = left.split(",")
    rows, columns = letters[: a.ndim - 1], letters[a.ndim - 1 :]
    first, second, pair = (
        (a, b, (rows + "z", "z" + columns)) if rows[0] in into else (b, a, ("z" + columns, rows + "z"))
    )
    between = jnp.einsum(f"{into},{pair[0]}->...z", x, first, **how)
    between = (between.astype(jnp.float32) * scale).astype(x.dtype)
    return y + jnp.einsum(f"...z,{pair[1]}->{out}", between, second, **how)


def look_up(weights: Params, name: str, ids: Int[Array, "*b"]) -> Float[Array, "*b D"]:
    """Rows of a matrix, those of its adapter added: W[ids] + scale · A[ids] B."""
    rows, found = weights[name][ids], factors(weights, name)
    if found is None:
        return rows
    a, b, scale = found
    return rows + scale * jnp.einsum("...z,zd->...d", a[ids], b)
