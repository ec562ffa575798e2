"""Arrays built where they will live, piece by piece, so that the host never holds a large one whole."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

Spans = tuple[tuple[int, int], ...]
Read = Callable[[Spans], np.ndarray]

PIECE_BYTES = 2 * 2**20
"""A parameter above this size is read in pieces of about this size; one layer's tensor is the smallest piece of a
stacked one. glibc keeps some freed blocks of up to 32 MB for later, so that larger pieces would leave more memory taken."""


def build(shape: tuple[int, ...], dtype: np.dtype, place: NamedSharding | None, read: Read, axis: int) -> Array:
    """The array of `shape` whose numbers `read(spans)` returns for any box of it, one (low, high) a dimension.

    With `place`, every device gets its own slice, and each distinct slice is read once by a process; without, the array
    lies where JAX puts new ones. `axis` is the dimension along which pieces are cut: the one along which the numbers
    lie in the file, so that a piece is read in one go.
    """
    if place is None:
        return _fill(tuple((0, size) for size in shape), dtype, [None], read, axis)[0]
    holders: dict[Spans, list[Any]] = {}
    for device, index in place.addressable_devices_indices_map(shape).items():
        spans = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        holders.setdefault(spans, []).append(device)
    pieces = [array for spans, devices in holders.items() for array in _fill(spans, dtype, devices, read, axis)]
    return jax.make_array_from_single_device_arrays(shape, place, pieces)


def build_each(
    shape: tuple[int, ...],
    dtype: np.dtype,
    place: Callable[[tuple[int, ...]], NamedSharding] | None,
    read: Read,
    axis: int,
    change: Callable[[Array], Any],
) -> Any:
    """`build`, then `change`, of one index of the first dimension at a time: what `change` makes of a [1, ...], an array or
    a tree of arrays [1, ...], stacked. Never more than one index of the array itself is there. `place` tells where an array of
    a given shape goes."""
    whole: Any = None
    for index in range(shape[0]):

        def one(spans: Spans, index: int = index) -> np.ndarray:
            return read(((index, index + 1), *spans[1:]))

        first = (1, *shape[1:])
        pieces = change(build(first, dtype, None if place is None else place(first), one, axis))
        if place is not None:
            pieces = jax.tree.map(lambda x: jax.device_put(x, place(x.shape)), pieces)
        if whole is None:
            whole = jax.tree.map(
                lambda x: jnp.zeros((shape[0], *x.shape[1:]), x.dtype, device=place and x.sharding), pieces
            )
        write = functools.partial(_write, start=index, axis=0)
        whole = jax.tree.map(lambda x, piece, write=write: jax.block_until_ready(write(x, piece)), whole, pieces)
    return whole


def _fill(spans: Spans, dtype: np.dtype, devices: list[Any], read: Read, axis: int) -> list[Array]:
    """One copy on each device of the slice that the spans bound (None: wherever JAX puts new arrays)."""
    shape = tuple(high - low for low, high in spans)
    size = int(np.prod(shape)) * dtype.itemsize
    if size <= PIECE_BYTES:
        block = read(spans)
        return [jax.block_until_ready(_put(block, device)) for device in devices]
    low, high = spans[axis]
    step = max(1, (high - low) * PIECE_BYTES // size)
    arrays = [jnp.zeros(shape, dtype, device=device) for device in devices]
    for start in range(low, high, step):
        block = read((*spans[:axis], (start, min(start + step, high)), *spans[axis + 1 :]))
        arrays = [
            jax.block_until_ready(_write(array, _put(block, device), start - low, axis=axis))
            for array, device in zip(arrays, devices, strict=True)
        ]
    return arrays


def _put(block: np.ndarray, device: Any) -> Array:
    return jnp.asarray(block) if device is None else jax.device_put(block, device)


@functools.partial(jax.jit, static_argnames="axis", donate_argnums=0)
def _write(array: Array, block: Array, start: Any, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, block, start, axis)
