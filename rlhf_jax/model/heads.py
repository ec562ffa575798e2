"""Three heads on one trunk: log-probabilities of the policy, values of states, rewards of texts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.masks import last_token, rows_at
from rlhf_jax.model import transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.types import Params


def token_logprobs(
    params: Params,
    hidden: Float[Array, "B S D"],
    targets: Int[Array, "B S"],
    *,
    cfg: ModelConfig,
    temperature: float = 1.0,
    chunk: int = 32,
) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """Log-probability of each target and entropy of its distribution, nats, f32, at softmax(logits / temperature).

    `chunk` positions are done at a time and recomputed in the backward pass, so that no [B, S, V] array ever exists:
    memory grows with B · chunk · V.
    """
    B, S, D = hidden.shape
    chunk = min(chunk, S)
    pieces = -(-S // chunk)
    padding = pieces * chunk - S
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(B, pieces, chunk, D)
    targets = jnp.pad(targets, ((0, 0), (0, padding))).reshape(B, pieces, chunk)

    @jax.checkpoint
    def one(hidden: Array, targets: Array) -> tuple[Array, Array]:
        # From log-probabilities, so that what all logits share (GPT-2's lie around -100) costs no precision and signs hold.
        logprobs = jax.nn.log_softmax(transformer.logits(params, hidden, cfg=cfg) / temperature, axis=-1)
        entropy = -jnp.sum(jnp.exp(logprobs) * logprobs, axis=-1)
        return jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0], entropy

    _, outputs = jax.lax.scan(lambda _, xs: (None, one(*xs)), None, (hidden.swapaxes(0, 1), targets.swapaxes(0, 1)))
    logprobs, entropy = (x.swapaxes(0, 1).reshape(B, -1)[:, :S] for x in outputs)
    return logprobs, entropy


def policy(
    params: Params,
    tokens: Int[Array, "B T"],
    prompt_length: Int[Array, " B"],
    response_length: Int[Array, " B"],
    *,
    window: int,
    cfg: ModelConfig,
    temperature: float = 1.0,
    chunk: int = 32,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Log-probability and entropy, nats, of each response token given all before it. R = `window`.

    The one function behind old, new and reference log-probabilities; slots past `response_length` mean nothing.
    """
    states = transformer.hidden(params, tokens, prompt_length + response_length, cfg=cfg)
    return policy_at(
        params, states, tokens, prompt_length, window=window, cfg=cfg, temperature=temperature, chunk=chunk
    )


def policy_at(
    params: Params,
    states: Float[Array, "B T D"],
    tokens: Int[Array, "B T"],
    prompt_length: Int[Array, " B"],
    *,
    window: int,
    cfg: ModelConfig,
    temperature: float,
    chunk: int,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """`policy` from the trunk's hidden states."""
    states = rows_at(states, prompt_length - 1, window)
    targets = rows_at(tokens, prompt_length, window)
    return token_logprobs(params, states, targets, cfg=cfg, temperature=temperature, chunk=chunk)


def value(
    params: Params,
    tokens: Int[Array, "B T"],
    prompt_length: Int[Array, " B"],
    response_length: Int[Array, " B"],
    *,
    window: int,
    cfg: ModelConfig,
) -> Float[Array, "B R"]:
    """The value before each response token, read where that token is predicted, so it cannot see it; f32, never
    scaled by a temperature. With window R + 1 the last column in use is the value after the last token."""
    states = transformer.hidden(params, tokens, prompt_length + response_length, cfg=cfg)
    return value_at(params, states, prompt_length, window=window)


def value_at(
    params: Params, states: Float[Array, "B T D"], prompt_length: Int[Array, " B"], *, window: int
) -> Float[Array, "B R"]:
    """`value` from the trunk's hidden states."""
    states = rows_at(states, prompt_length - 1, window).astype(jnp.float32)
    return jnp.einsum("brd,d->br", states, params["value"], precision="highest") + params["value_bias"]


def policy_and_value(
    params: Params,
    tokens: Int[Array, "B T"],
    prompt_length: Int[Array, " B"],
    response_length: Int[Array, " B"],
    *,
    window: int,
    cfg: ModelConfig,
    temperature: float = 1.0,
    chunk: int = 32,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"], Float[Array, "B R"]]:
    """`policy` and `value` of one trunk in one pass over it: log-probabilities, entropy, values. The value loss moves the
    trunk too. `params` hold the policy's and the value head's."""
    states = transformer.hidden(params, tokens, prompt_length + response_length, cfg=cfg)
    logprobs, entropy = policy_at(
        params, states, tokens, prompt_length, window=window, cfg=cfg, temperature=temperature, chunk=chunk
    )
    return logprobs, entropy, value_at(params, states, prompt_length, window=window)


def reward(
    params: Params, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], *, cfg: ModelConfig
) -> Float[Array, "B A"]:
    """One score an axis, read at the last real token; f32, normalised by `cfg.reward_mean` and `cfg.reward_std`."""
    states = last_token(transformer.hidden(params, tokens, lengths, cfg=cfg), lengths).astype(jnp.float32)
    scores = jnp.einsum("bd,da->ba", states, params["score"], precision="highest")
    if cfg.reward_mean:
        scores = scores - jnp.array(cfg.reward_mean, jnp.float32)
    if cfg.reward_std:
        scores = scores / jnp.array(cfg.reward_std, jnp.float32)
    return scores


def add_value_head(params: Params, cfg: ModelConfig, axis: int = 0) -> Params:
    """A value model on a copy of the trunk. From a reward model: its score head of that axis, normalisation
    included, so that the first value of a finished text is its reward. From a language model: zeros
    (https://github.com/openai/lm-human-preferences)."""
    return trunk(params) | value_head(params, cfg, axis)


def trunk(params: Params) -> Params:
    """The parameters, or those of an adapter, without score and output matrix. No array is copied."""
    return {path: x for path, x in params.items() if path != "score" and not path.startswith("unembed")}


def value_head(params: Params, cfg: ModelConfig, axis: int = 0) -> Params:
    """The head of `add_value_head` alone."""
    if not cfg.axes:
        return {"value": jnp.zeros((cfg.d_model,), jnp.float32), "value_bias": jnp.zeros((), jnp.float32)}
    std = cfg.reward_std[axis] if cfg.reward_std else 1.0
    mean = cfg.reward_mean[axis] if cfg.reward_mean else 0.0
    return {"value": params["score"][:, axis] / std, "value_bias": jnp.float32(-mean / std)}


def add_reward_head(key: Array, params: Params, cfg: ModelConfig) -> Params:
    """A reward model on a copy of a language model's trunk: the score head is drawn from N(0, 1/(D + 1)), as in
    https://github.com/openai/summarize-from-feedback and its reproductions. `cfg.axes` says how many."""
    return trunk(params) | {"score": transformer.param_specs(cfg)["score"].init(key, (cfg.d_model, cfg.axes))}
