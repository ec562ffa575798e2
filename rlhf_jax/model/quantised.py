"""A frozen base in 8 or 4 bits (QLoRA, arXiv 2305.14314): the layers' matrices as small integers and scales.

A matrix is held as a `qwix.QArray` (https://github.com/google/qwix), a pytree of `qvalue`, of the matrix's own shape, and
`scale`, f32, of as many dimensions: the numbers are level(qvalue) · scale. It is made numbers again where it meets its
input, one layer at a time, and once more in the backward pass, so that no float copy of the stack is ever kept. Nothing here
is trained: gradients go through a matrix to its input, none to itself. Embeddings, norms, biases, routers and heads stay
floats. QLoRA's second quantisation, of the scales, is left out: in blocks of 64 they take half a bit a number.

Without the setting `compute.base` nothing of this runs, and qwix need not be installed.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.errors import UserError
from rlhf_jax.model.specs import Spec

BITS = {"int8": 8, "int4": 4, "nf4": 4}
"""Of a number, by how it is held: whole numbers, or the quantiles of a normal distribution ("nf4", arXiv 2305.14314)."""

BLOCK = 64
"""Numbers that share a scale in 4 bits (arXiv 2305.14314, section 3)."""

INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
"""How many dimensions of each matrix, after those of layers and experts, are contracted with its input."""


def check(held: str) -> None:
    """UserError where matrices cannot be held so, or the library for it is missing. Imports nothing."""
    if held not in ("float", *BITS):
        raise UserError(f"a base is held as one of float, {', '.join(BITS)}; got {held!r}")
    if held != "float" and importlib.util.find_spec("qwix") is None:
        raise UserError(f"a base held as {held} needs the extra quant: pip install -e '.[quant]'")


def inputs(path: str) -> tuple[int, ...]:
    """The contracted dimensions of a layer's matrix, stacked or not an expert's; empty for all other parameters."""
    name = path.removeprefix("layers/")
    first = 2 if name.startswith("expert_") else 1
    count = INPUTS.get(name.removeprefix("expert_"), 0) if path.startswith("layers/") else 0
    return tuple(range(first, first + count))


def scale_shape(path: str, shape: tuple[int, ...], held: str, block: int = BLOCK) -> tuple[int, ...]:
    """The shape of a matrix's scales. In 8 bits each output has one, over all its inputs (arXiv 2208.07339, section 3); in
    4 bits each block of its inputs, `block` of the last of their dimensions or the largest divisor of that below."""
    sizes = list(shape)
    for axis in inputs(path):
        if held == "int8":
            sizes[axis] = 1
        elif axis == inputs(path)[-1]:
            tile = next(size for size in range(min(block, shape[axis]), 0, -1) if shape[axis] % size == 0)
            sizes[axis] = shape[axis] // tile
    return tuple(sizes)


@functools.partial(jax.jit, static_argnames=("path", "held", "block"))
def quantise(x: Float[Array, "..."], path: str, held: str, block: int = BLOCK) -> Any:
    """The stacked matrix of that path [L, ...] as a QArray with f32 scales, symmetric about 0.

    A block whose largest magnitude is m has scale m / 127.5 in int8, m / 7.5 in int4, and m in nf4, so that no number is
    further from what it becomes than m / 255, m / 15, and m · 0.152 (half the widest gap between nf4's levels).
    """
    import qwix  # an optional extra

    tiles = {axis: x.shape[axis] // count for axis, count in enumerate(scale_shape(path, x.shape, held, block))}
    kind = held if held == "nf4" else jnp.dtype(held)
    return qwix.quantize(x.astype(jnp.float32), kind, tiled_axes=tiles)


def is_quantised(x: Any) -> bool:
    """Whether a parameter is held in few bits."""
    return hasattr(x, "qvalue")


def plain(x: Any) -> Array:
    """A parameter as numbers: those of a quantised one f32, any other as it is."""
    if not is_quantised(x):
        return x
    import qwix  # an optional extra

    return qwix.dequantize(x)


def meet(product: Callable[[Array, Array], Array], x: Array, weight: Any) -> Array:
    """product(x, weight in x's type), which is linear in x.

    The numbers of a quantised weight are made for this one product: for the backward pass they are made again, not kept
    (`jax.checkpoint`), and the barrier lets no compiler make them ahead of the loop that the product stands in.
    """
    if not is_quantised(weight):
        return product(x, weight.astype(x.dtype))

    @jax.checkpoint
    def fresh(x: Array, weight: Any) -> Array:
        x, weight = jax.lax.optimization_barrier((x, weight))
        return product(x, plain(weight).astype(x.dtype))

    return fresh(x, weight)


def specs(found: Mapping[str, Spec], held: str) -> dict[str, Spec]:
    """The parameters of a model whose base is held so."""
    if held == "float":
        return dict(found)
    return {path: spec._replace(held=held) if inputs(path) else spec for path, spec in found.items()}


def parts(path: str, spec: Spec, itemsize: int = 4) -> list[tuple[tuple[int, ...], int]]:
    """(shape, bits of a number) of each array that a parameter is held in; `itemsize` is the bytes of a float."""
    if spec.held == "float":
        return [(spec.shape, 8 * itemsize)]
    return [(spec.shape, BITS[spec.held]), (scale_shape(path, spec.shape, spec.held), 32)]


def struct(path: str, spec: Spec, dtype: Any) -> Any:
    """The parameter as shapes alone."""
    whole = jax.ShapeDtypeStruct(spec.shape, dtype)
    if spec.held == "float":
        return whole
    check(spec.held)
    return jax.eval_shape(functools.partial(quantise, path=path, held=spec.held), whole)
