"""Low-rank adapters (LoRA, arXiv 2106.09685): what is trained in place of a model's matrices.

Parameters are one dict of arrays, an adapter is another with paths of its own (`low_rank`), and the adapted model is
`{**base, **adapter}`. Policy, reference, value and reward can so stand on the buffers of one base, each with an adapter
of its own rank, scale and targets.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax import sharding
from rlhf_jax.errors import UserError
from rlhf_jax.model import quantised, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf import tensors as hf_tensors
from rlhf_jax.model.low_rank import GROUPS, factors
from rlhf_jax.model.transformer import Initialiser, Spec, normal, zeros
from rlhf_jax.types import Params

PARTS = ("_lora_a", "_lora_b", "_lora_scale")
TWO_INPUTS = ("o",)
"""Matrices whose first two dimensions (after the layer) are contracted with their input; of all others, one is."""


@dataclass(frozen=True)
class Lora:
    """An adapter that is trained in place of the weights; rank 8 is a usual one."""

    rank: int = 0
    """r; 0 trains the whole model."""
    alpha: float = 16.0
    """What A B is multiplied by is alpha / rank."""
    targets: str = "all"
    """Matrices, by comma: q, k, v, o, gate, up, down, embed, unembed. "all": every one inside the layers (arXiv 2305.14314),
    of a mixture of experts those of its attention: experts and their router take no adapter.
    Where a checkpoint holds several as one tensor: qkv, gate_up, which share their A."""
    rank_stabilised: bool = False
    """Divide alpha by the root of the rank instead (rsLoRA, arXiv 2312.03732)."""
    merge: bool = False
    """Also save the model with the adapter added to its matrices."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"rank must be 0 (no adapter) or above, got {self.rank}")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"alpha must be above 0 and finite, got {self.alpha}")
        if not all(name.strip() for name in self.targets.split(",")):
            raise UserError(f"targets must name matrices, as in q,v, or be all; got {self.targets!r}")
        if self.merge and not self.rank:
            raise UserError("merge needs an adapter; set rank above 0")

    @property
    def scale(self) -> float:
        """What A B is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)


def adaptable(cfg: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Every target of this model: the paths of the matrices that it names (several where they share their A)."""
    present = transformer.param_specs(cfg)
    found = {}
    for name in ("q", "k", "v", "o", "gate", "up", "down", *GROUPS):
        paths = tuple(f"layers/{part}" for part in GROUPS.get(name, (name,)))
        if all(path in present for path in paths):
            found[name] = paths
    return found | {name: (name,) for name in ("embed", "unembed") if name in present}


def targets_of(cfg: ModelConfig, lora: Lora) -> tuple[str, ...]:
    """The targets in a fixed order, "all" spelled out as the family's checkpoints hold it. Raises UserError for a name that
    this model has not, and for a matrix named twice."""
    known = adaptable(cfg)
    if lora.targets == "all":
        inside = {paths for paths in known.values() if paths[0].startswith("layers/")}
        stored = {tensor.row.paths for tensor in hf_tensors.tensors(cfg, transformer.param_specs(cfg)).values()}
        return tuple(name for name, paths in known.items() if paths in inside & stored)
    names = {name.strip() for name in lora.targets.split(",")}
    unknown = sorted(names - known.keys())
    if cfg.experts and names & {"gate", "up", "down", "gate_up", "router"}:
        raise UserError(
            f"targets: the experts of a {cfg.family} model and their router take no adapter; use {', '.join(known)}"
        )
    if unknown:
        raise UserError(
            f"targets: a {cfg.family} model of this shape has no {', '.join(unknown)}; it has {', '.join(known)}"
        )
    for group in GROUPS.keys() & names:
        twice = sorted(names & set(GROUPS[group]))
        if twice:
            raise UserError(f"targets: {', '.join(twice)} is in {group} already; name the one or the other")
    return tuple(name for name in known if name in names)


def uniform(fan_in: int) -> Initialiser:
    """Draws from U(−1/√fan_in, 1/√fan_in), as the authors' code does (https://github.com/microsoft/LoRA)."""
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -(fan_in**-0.5), fan_in**-0.5)


def constant(value: float) -> Initialiser:
    """All of one value, f32."""
    return lambda key, shape: jnp.full(shape, value, jnp.float32)


def specs(cfg: ModelConfig, lora: Lora) -> dict[str, Spec]:
    """Every array of the adapter by path: A [L, *rows, r] drawn, B [L, r, *columns] zero, so that the adapted model starts as
    the base; of the embedding, whose rows are looked up, A zero and B drawn from N(0, 1), as in the authors' code."""
    matrices = transformer.param_specs(cfg)
    found: dict[str, Spec] = {}
    for target in targets_of(cfg, lora):
        paths = adaptable(cfg)[target]
        prefix, layered = paths[0].rpartition("/")[0], paths[0].startswith("layers/")
        owner = f"{prefix}/{target}" if layered else target
        stack, axis = ((cfg.layers,), (None,)) if layered else ((), ())
        for path in paths:
            matrix = matrices[path]
            first = len(stack)
            cut = first + (2 if target in TWO_INPUTS else 1)
            rows, columns = matrix.shape[first:cut], matrix.shape[cut:]
            a, b = (zeros, normal(1.0)) if target == "embed" else (uniform(math.prod(rows)), zeros)
            found[f"{owner}_lora_a"] = Spec((*stack, *rows, lora.rank), (*axis, *matrix.axes[first:cut], None), a)
            found[f"{path}_lora_b"] = Spec((*stack, lora.rank, *columns), (*axis, None, *matrix.axes[cut:]), b)
        found[f"{owner}_lora_scale"] = Spec(stack, axis, constant(lora.scale))
    return found


def init(key: Array, cfg: ModelConfig, lora: Lora) -> Params:
    """A new adapter, f32, whose product is 0: each array from a key folded with its place in the sorted list of paths."""
    wanted = specs(cfg, lora)
    return {
        path: wanted[path].init(jax.random.fold_in(key, index), wanted[path].shape)
        for index, path in enumerate(sorted(wanted))
    }


def place(adapter: Params, cfg: ModelConfig, lora: Lora, mesh: jax.sharding.Mesh | None) -> Params:
    """The adapter on the mesh, cut as its matrices are."""
    if mesh is None:
        return adapter
    return sharding.place(adapter, {path: spec.axes for path, spec in specs(cfg, lora).items()}, mesh)


def is_adapter(path: str) -> bool:
    """Whether a path belongs to an adapter, and not to a plain model."""
    return path.endswith(PARTS)


def split(base: Params, adapter: Params) -> tuple[Params, Params]:
    """(what is trained, what is not): the adapter with its heads, but for its scales, and the base with those. No array is
    copied; `types.overlay(frozen, trained)` is `{**base, **adapter}`."""
    trained = {path: x for path, x in adapter.items() if not path.endswith("_lora_scale")}
    return trained, {path: x for path, x in (base | adapter).items() if path not in trained}


def merge(params: Mapping[str, Any]) -> Params:
    """The plain model W + scale · A B of an adapted one, each matrix in its own type, the sum in f32.

    Of a quantised base, W is what its integers stand for, as f32: the merged model is the one that was trained, with the
    rounding of its base in it. The adapter on the float base, as its files name it, is another model by that rounding.
    """
    return {
        path: merged(params, path) if f"{path}_lora_b" in params else quantised.plain(x)
        for path, x in params.items()
        if not is_adapter(path)
    }


def merged(params: Mapping[str, Any], path: str) -> Float[Array, "..."]:
    """One matrix of a merged model."""
    prefix, _, name = path.rpartition("/")
    own = {key.rpartition("/")[2]: x for key, x in params.items() if key.rpartition("/")[0] == prefix}
    found = factors(own, name)
    assert found is not None
    a, b, scale = (part.astype(jnp.float32) for part in found)
    stack = scale.shape
    a, b = a.reshape(*stack, -1, a.shape[-1]), b.reshape(*stack, b.shape[len(stack)], -1)
    product = jnp.matmul(a, b, precision="highest")
    matrix = quantised.plain(params[path])
    product = product.reshape(matrix.shape) * scale.reshape(*stack, *(1,) * (matrix.ndim - len(stack)))
    return (matrix.astype(jnp.float32) + product).astype(matrix.dtype)
