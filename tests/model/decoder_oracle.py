"""A decoder in NumPy float64, written from the papers' formulas with a loop over heads, and tiny models to compare on."""

import functools

import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from rlhf_jax.model.config import ModelConfig, RopeScaling
from rlhf_jax.model.transformer import param_specs

GPT2 = ModelConfig(
    family="gpt2",
    vocab_size=97,
    d_model=32,
    layers=2,
    heads=4,
    kv_heads=4,
    head_dim=8,
    d_ff=48,
    max_positions=640,
    norm="layer",
    norm_eps=1e-5,
    positions="learned",
    activation="gelu_tanh",
    gated_mlp=False,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    tied=True,
)
LLAMA = ModelConfig(
    family="llama",
    vocab_size=96,
    d_model=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_positions=640,
    norm="rms",
    norm_eps=1e-5,
    positions="rope",
    rope_theta=500.0,
    rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
)
QWEN2 = ModelConfig(
    family="qwen2",
    vocab_size=101,
    d_model=32,
    layers=2,
    heads=6,
    kv_heads=2,
    head_dim=12,  # not D / N
    d_ff=40,
    max_positions=640,
    norm="rms",
    norm_eps=1e-6,
    positions="rope",
    rope_theta=1_000_000.0,
    qkv_bias=True,
    tied=True,
)
FAMILIES = {"gpt2": GPT2, "llama": LLAMA, "qwen2": QWEN2}


@functools.cache
def parameters(cfg, seed=0):
    """Parameters that nothing cancels in: norms away from 1, biases away from 0, logits of order one."""
    rng = np.random.default_rng(seed)
    params = {}
    for path, spec in param_specs(cfg).items():
        noise = rng.standard_normal(spec.shape)
        if "norm" in path:
            x = 0.2 * noise + (0.0 if path.endswith("_bias") else 1.0)
        elif path.endswith("_bias"):
            x = 0.3 * noise
        else:
            x = noise / np.sqrt(cfg.d_ff if path.endswith("down") else cfg.d_model)
        params[path] = jnp.asarray(x, jnp.float32)
    return params


def rope_frequencies(cfg):
    """The llama3 rule in terms of wavelengths, as the Llama 3.1 report states it; one frequency at a time."""
    scaling, found = cfg.rope_scaling, []
    for i in range(cfg.head_dim // 2):
        frequency = cfg.rope_theta ** (-2 * i / cfg.head_dim)
        wavelength = 2 * np.pi / frequency
        if scaling is None:
            found.append(frequency)
        elif scaling.kind == "linear":
            found.append(frequency / scaling.factor)
        elif wavelength < scaling.original_max_positions / scaling.high_freq_factor:
            found.append(frequency)
        elif wavelength > scaling.original_max_positions / scaling.low_freq_factor:
            found.append(frequency / scaling.factor)
        else:
            span = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / span
            found.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return np.array(found)


def rotate(x, positions, cfg):
    """Dimensions i and i + H/2 as the real and imaginary part of a number that turns with its position. x [T, N, H]."""
    half = cfg.head_dim // 2
    numbers = x[..., :half] + 1j * x[..., half:]
    numbers = numbers * np.exp(1j * np.asarray(positions)[:, None, None] * rope_frequencies(cfg))
    return np.concatenate([numbers.real, numbers.imag], axis=-1)


def softmax(x):
    """Over the last axis."""
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def attend(q, k, v, mask):
    """q [t, N, H], k and v [s, K, H], mask [t, s]; query head n reads key head n // (N / K)."""
    out = np.zeros(q.shape)
    for t in range(q.shape[0]):
        for n in range(q.shape[1]):
            head = n // (q.shape[1] // k.shape[1])
            kept = np.flatnonzero(mask[t])
            weights = softmax(np.array([q[t, n] @ k[s, head] for s in kept]) / np.sqrt(q.shape[2]))
            out[t, n] = sum(w * v[s, head] for w, s in zip(weights, kept))
    return out


def attend_causal(q, k, v):
    """The same with the causal mask, one matrix product a head."""
    out = np.zeros(q.shape)
    for n in range(q.shape[1]):
        head = n // (q.shape[1] // k.shape[1])
        scores = q[:, n] @ k[:, head].T / np.sqrt(q.shape[2])
        out[:, n] = softmax(np.where(np.tri(len(scores), dtype=bool), scores, -np.inf)) @ v[:, head]
    return out


def norm(x, params, name, cfg):
    """RMSNorm, or LayerNorm where the family has it."""
    if cfg.norm == "rms":
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + cfg.norm_eps) * params[name]
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(x.var(axis=-1, keepdims=True) + cfg.norm_eps) * params[name] + params[f"{name}_bias"]


ACTIVATIONS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / np.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def mixture(h, layer, cfg):
    """(outputs [T, D], router logits [T, E]) of experts, token by token."""
    routed, out, act = h @ layer["router"], np.zeros(h.shape), ACTIVATIONS[cfg.activation]
    for t, one in enumerate(h):
        probs = softmax(routed[t])
        chosen = sorted(range(cfg.experts), key=lambda e: -probs[e])[: cfg.experts_used]
        total = sum(probs[e] for e in chosen) if cfg.renormalise else 1.0
        for e in chosen:
            inner = act(one @ layer["expert_gate"][e]) * (one @ layer["expert_up"][e])
            out[t] += probs[e] / total * (inner @ layer["expert_down"][e])
    return out, routed


def hidden(params, tokens, cfg, routed=None):
    """Hidden states [T, D] of one row without padding; the router logits of each layer are added to the list `routed`."""
    params = {path: np.asarray(x, np.float64) for path, x in params.items()}
    positions = np.arange(len(tokens))
    x = params["embed"][np.asarray(tokens)]
    if cfg.positions == "learned":
        x = x + params["positions"][positions]
    for index in range(cfg.layers):
        layer = {path[7:]: value[index] for path, value in params.items() if path.startswith("layers/")}
        h = norm(x, layer, "attention_norm", cfg)
        q, k, v = (np.einsum("td,dnh->tnh", h, layer[name]) + layer.get(f"{name}_bias", 0.0) for name in "qkv")
        if cfg.positions == "rope":
            q, k = rotate(q, positions, cfg), rotate(k, positions, cfg)
        x = x + np.einsum("tnh,nhd->td", attend_causal(q, k, v), layer["o"]) + layer.get("o_bias", 0.0)
        h = norm(x, layer, "mlp_norm", cfg)
        if cfg.experts:
            fed, logits = mixture(h, layer, cfg)
            x = x + fed
            if routed is not None:
                routed.append(logits)
            continue
        up = h @ layer["up"] + layer.get("up_bias", 0.0)
        act = ACTIVATIONS[cfg.activation]
        inner = act(h @ layer["gate"] + layer.get("gate_bias", 0.0)) * up if cfg.gated_mlp else act(up)
        x = x + inner @ layer["down"] + layer.get("down_bias", 0.0)
    return norm(x, params, "final_norm", cfg)


def logits(params, tokens, cfg):
    """Next-token logits [T, V] of one row without padding."""
    matrix = np.asarray(params["embed"], np.float64).T if cfg.tied else np.asarray(params["unembed"], np.float64)
    return hidden(params, tokens, cfg) @ matrix


def log_softmax(x):
    """Over the last axis."""
    return x - np.log(np.exp(x - x.max(axis=-1, keepdims=True)).sum(axis=-1, keepdims=True)) - x.max(-1, keepdims=True)
