"""The trunk: one decoder over a dict of arrays. `specs.param_specs` is the whole truth about what it holds.

Layers are stacked on a leading axis and scanned. Weights are cast to `cfg.dtype` where they are used; the ones
handed in stay as they are (float32 masters).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlhf_jax import masks, sharding
from rlhf_jax.errors import UserError
from rlhf_jax.model import attention, experts, low_rank, quantised, rope
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.specs import Initialiser, Spec, init, normal, ones, param_specs, zeros
from rlhf_jax.types import Params

__all__ = [
    "Initialiser",
    "Spec",
    "init",
    "normal",
    "ones",
    "param_specs",
    "zeros",
]  # for callers that know only the trunk


def norm(x: Float[Array, "*b D"], weights: Params, name: str, cfg: ModelConfig) -> Float[Array, "*b D"]:
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450), computed in f32."""
    h = x.astype(jnp.float32)
    if cfg.norm == "layer":
        h = h - jnp.mean(h, axis=-1, keepdims=True)
    h = h * jax.lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + cfg.norm_eps)
    weight = weights[name].astype(jnp.float32)
    h = h * (1 + weight if cfg.norm_offset else weight)
    if cfg.norm == "layer":
        h = h + weights[f"{name}_bias"].astype(jnp.float32)
    return h.astype(x.dtype)


def norm_heads(x: Float[Array, "*b n H"], weights: Params, name: str, cfg: ModelConfig) -> Float[Array, "*b n H"]:
    """The norm of queries or keys: of each head by itself, or of all of them as one vector."""
    if cfg.qk_norm == "head":
        return norm(x, weights, name, cfg)
    flat = norm(x.reshape(*x.shape[:-2], -1), {name: weights[name].reshape(-1)}, name, cfg)
    return flat.reshape(x.shape)


def linear(x: Array, weights: Params, name: str, formula: str) -> Array:
    """The einsum of x with one weight in x's dtype, plus what an adapter adds, plus its bias, if it has them."""
    y = quantised.meet(lambda x, weight: jnp.einsum(formula, x, weight), x, weights[name])
    y = low_rank.add(y, x, weights, name, formula)
    bias = weights.get(f"{name}_bias")
    return y if bias is None else y + bias.astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def mlp(x: Float[Array, "*b D"], layer: Params, cfg: ModelConfig) -> Float[Array, "*b D"]:
    """The feed-forward half of a block, gated (arXiv 2002.05202) or plain."""
    activation = ACTIVATIONS[cfg.activation]
    up = linear(x, layer, "up", "...d,df->...f")
    hidden = activation(linear(x, layer, "gate", "...d,df->...f")) * up if cfg.gated_mlp else activation(up)
    return linear(hidden, layer, "down", "...f,fd->...d")


class Traits(NamedTuple):
    """What differs between layers besides their weights: rotary angles per position, and the window (None: no layer has
    one; a layer without one among others has the largest number)."""

    frequencies: Any
    window: Any


def traits(cfg: ModelConfig) -> list[Traits]:
    """Those of each layer, as constants."""
    windowed = cfg.window_layers or (True,) * cfg.layers
    rotates = cfg.rope_layers or (True,) * cfg.layers
    found = []
    for index in range(cfg.layers):
        local = cfg.window is not None and windowed[index]
        angles = None
        if cfg.positions == "rope":
            angles = rope.frequencies(cfg, rotates=rotates[index], local=local)
        window = None if cfg.window is None else cfg.window if local else np.iinfo(np.int32).max
        found.append(Traits(angles, window))
    return found


def block(
    x: Float[Array, "*b D"],
    layer: Params,
    trait: Traits,
    positions: Int[Array, "*b"],
    mix: Callable[[Array, Array, Array], tuple[Array, Any]],
    cfg: ModelConfig,
) -> tuple[Float[Array, "*b D"], Any, Float[Array, "*b E"] | None]:
    """One layer, for whole rows and for single steps alike: `mix(q, k, v)` attends and returns what it wants
    remembered. Returned last: the router's logits of a mixture of experts."""
    h = x if cfg.norms == "post" else norm(x, layer, "attention_norm", cfg)
    q, k, v = (linear(h, layer, name, "...d,dnh->...nh") for name in ("q", "k", "v"))
    if cfg.qk_norm:
        q, k = norm_heads(q, layer, "q_norm", cfg), norm_heads(k, layer, "k_norm", cfg)
    if cfg.positions == "rope":
        scale = cfg.rope_scaling.attention_factor if cfg.rope_scaling else 1.0
        q, k = (rope.rotate(each, positions, trait.frequencies, scale) for each in (q, k))
    attended, memory = mix(q, k, v)
    attended = linear(attended, layer, "o", "...nh,nhd->...d")
    if cfg.norms != "pre":
        attended = norm(attended, layer, "attention_post_norm", cfg)
    between = x if cfg.parallel else x + attended
    h = between if cfg.norms == "post" else norm(between, layer, "mlp_norm", cfg)
    routed: Array | None = None
    if cfg.experts:
        fed, routed = experts.mlp(h, layer, ACTIVATIONS[cfg.activation], cfg)
    else:
        fed = mlp(h, layer, cfg)
    if cfg.norms != "pre":
        fed = norm(fed, layer, "mlp_post_norm", cfg)
    return (x + attended if cfg.parallel else between) + fed, memory, routed


def layers_of(params: Params) -> Params:
    """The stacked parameters of the blocks, without their prefix."""
    return {path.removeprefix("layers/"): x for path, x in params.items() if path.startswith("layers/")}


def check_window(cfg: ModelConfig, tokens: int, what: str) -> None:
    """UserError, which begins with `what`, unless rows of so many tokens have a position each: JAX clamps an index, so
    that all tokens past the learned positions would share the last one. Rotary positions have no end."""
    if cfg.positions == "learned" and tokens > cfg.max_positions:
        raise UserError(f"{what} exceeds the model's {cfg.max_positions} learned positions")


def embed(params: Params, tokens: Int[Array, "*b"], positions: Int[Array, "*b"], cfg: ModelConfig) -> Array:
    """Token embeddings, with learned positions where the family has them. Ids out of range are refused on the host."""
    x = low_rank.look_up(params, "embed", tokens)
    if cfg.positions == "learned":
        x = x + params["positions"][positions]
    x = x.astype(cfg.dtype)
    return x * jnp.asarray(cfg.d_model**0.5, x.dtype) if cfg.embed_scale else x


REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda f: f,
    "dots": lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable),
    "full": jax.checkpoint,
}


Segments = Int[Array, "B T"] | None


def run_layers(
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    cfg: ModelConfig,
    keep: str,
    segments: Segments,
) -> tuple[Float[Array, "B T D"], Any]:
    """All blocks over right-padded rows, and what of every layer to `keep`: "cache", its keys and values, [L, B, T, K, H]
    each; "routing", its router's logits, [L, B, T, E]; nothing. `segments` as in `hidden`."""
    T = tokens.shape[1]
    rope.check_length(cfg, T)
    positions = jnp.broadcast_to(jnp.arange(T), tokens.shape)
    real = positions < lengths[:, None]
    same = None
    if segments is not None:
        positions, same = masks.restarted(segments), segments[:, :, None] == segments[:, None, :]
    each = traits(cfg)
    alike = all(np.array_equal(t.frequencies, each[0].frequencies) and t.window == each[0].window for t in each)
    varying = None if alike else jax.tree.map(lambda *values: jnp.stack(values), *each)
    shared = attention.causal(T, each[0].window) if alike else None

    def body(x: Array, scanned: tuple[Params, Traits | None]) -> tuple[Array, Any]:
        layer, trait = scanned[0], scanned[1] or each[0]
        mask = attention.causal(T, trait.window) if shared is None else shared
        mask = mask if same is None else mask & same

        def mix(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
            attended = attention.attend(q, k, v, mask, scale=cfg.query_scale, cap=cfg.attention_softcap)
            return attended, (k, v) if keep == "cache" else None

        x, memory, routed = block(x, layer, trait, positions, mix, cfg)
        return sharding.constrain(x, "rows", None, None), routed if keep == "routing" else memory

    x = embed(params, jnp.where(real, tokens, 0), positions, cfg)
    x = sharding.constrain(x, "rows", None, None)
    return jax.lax.scan(REMAT[cfg.remat](body), x, (layers_of(params), varying), unroll=min(cfg.unroll, cfg.layers))


def hidden(
    params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, cfg: ModelConfig, segments: Segments = None
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm. Rows are right-padded, so causal attention never sees padding; what
    stands at a padded position is finite and means nothing. Rows of several texts say in `segments` which text each
    token is of, by numbers that differ from one text to the next: each is then read as if it stood alone."""
    x, _ = run_layers(params, tokens, lengths, cfg, "", segments)
    return norm(x, params, "final_norm", cfg)


def hidden_and_routing(
    params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, cfg: ModelConfig, segments: Segments = None
) -> tuple[Float[Array, "B T D"], Float[Array, "L B T E"]]:
    """`hidden` of a mixture of experts, and the logits of every layer's router, f32, in the same pass: what
    `objectives.routing` wants. Those at a padded position mean nothing."""
    x, routed = run_layers(params, tokens, lengths, cfg, "routing", segments)
    return norm(x, params, "final_norm", cfg), routed


def logits(params: Params, hidden: Float[Array, "*b D"], *, cfg: ModelConfig) -> Float[Array, "*b V"]:
    """Next-token logits, f32, accumulated in f32 at full precision whatever the compute dtype; softly capped where the
    family has it."""
    name, formula = ("embed", "...d,vd->...v") if cfg.tied else ("unembed", "...d,dv->...v")
    exact: Any = dict(
        preferred_element_type=jnp.float32,
        precision=jax.lax.Precision.HIGHEST,
    )
    y = jnp.einsum(formula, hidden, params[name].astype(hidden.dtype), **exact)
    return attention.soft_cap(low_rank.add(y, hidden, params, name, formula, **exact), cfg.logit_softcap)


def unstack(params: Params, cfg: ModelConfig) -> list[Params]:
    """One dict a layer, cast to the compute dtype, so that a decoding loop neither slices nor casts. Norms keep their own
    type: `norm` reads it in f32, and sampling must be from the model that is trained. What is quantised stays so, and is
    made numbers at every step: the loop's memory is that of the small base."""
    stacked = {
        name: x if quantised.is_quantised(x) or x.ndim == 1 or "norm" in name else x.astype(cfg.dtype)
        for name, x in layers_of(params).items()
    }
    return [jax.tree.map(lambda x, index=index: x[index], stacked) for index in range(cfg.layers)]


class Cache(NamedTuple):
    """Keys and values a layer: of the prompts [G, P, K, H], stored once, and of the responses [G, n, R, K, H]."""

    prompt_k: tuple[Array, ...]
    prompt_v: tuple[Array, ...]
    k: tuple[Array, ...]
    v: tuple[Array, ...]


def prefill(
    params: Params, prompts: Int[Array, "G P"], lengths: Int[Array, " G"], *, n: int, window: int, cfg: ModelConfig
) -> tuple[Float[Array, "G D"], Cache]:
    """Run the prompts once; the hidden state at each one's last token, and a cache with room for n responses of
    `window`."""
    rope.check_length(cfg, prompts.shape[1] + window)
    x, (k, v) = run_layers(params, prompts, lengths, cfg, "cache", None)
    last = x[jnp.arange(x.shape[0]), lengths - 1]
    room = jnp.zeros((x.shape[0], n, window, cfg.kv_heads, cfg.head_dim), x.dtype)
    split = tuple(range(cfg.layers))
    cache = Cache(
        tuple(k[i] for i in split), tuple(v[i] for i in split), tuple(room for _ in split), tuple(room for _ in split)
    )
    return norm(last, params, "final_norm", cfg), cache


def decode(
    params: Params,
    layers: list[Params],
    tokens: Int[Array, "G n"],
    step: Int[Array, ""],
    lengths: Int[Array, " G"],
    cache: Cache,
    *,
    cfg: ModelConfig,
) -> tuple[Float[Array, "G n D"], Cache]:
    """Feed response token number `step` of every sample; the hidden state that predicts the next one, and the cache.
    `layers` is `unstack(params, cfg)`, made once outside the decoding loop."""
    positions = jnp.broadcast_to(lengths[:, None] + step, tokens.shape)
    x = embed(params, tokens, positions, cfg)
    new_k, new_v = [], []
    for index, (layer, trait) in enumerate(zip(layers, traits(cfg), strict=True)):

        def mix(q: Array, k: Array, v: Array, index: int = index, trait: Traits = trait) -> tuple[Array, Any]:
            k = jax.lax.dynamic_update_slice_in_dim(cache.k[index], k[:, :, None], step, axis=2)
            v = jax.lax.dynamic_update_slice_in_dim(cache.v[index], v[:, :, None], step, axis=2)
            prompt = cache.prompt_k[index], cache.prompt_v[index]
            how = dict(window=trait.window, scale=cfg.query_scale, cap=cfg.attention_softcap)
            return attention.attend_cache(q, *prompt, k, v, lengths, step, **how), (k, v)

        x, (k, v), _ = block(x, layer, trait, positions, mix, cfg)
        new_k.append(k)
        new_v.append(v)
    return norm(x, params, "final_norm", cfg), Cache(cache.prompt_k, cache.prompt_v, tuple(new_k), tuple(new_v))
