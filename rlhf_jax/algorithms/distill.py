"""Distillation: a student learns, token by token, from a teacher's whole distribution (GKD, arXiv 2306.13649).

On texts that the student sampled itself or on given ones, the loss is the same; nothing is differentiated through sampling.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from rlhf_jax.masks import response_mask, rows_at, weighted_sum
from rlhf_jax.model import transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives import distillation
from rlhf_jax.types import Metrics, Params

Divergence = Callable[[Array, Array], Array]
"""divergence(student, teacher), log-probabilities [..., V] -> [...], nats; those of `objectives.distillation`, or yours."""


class Texts(NamedTuple):
    """Prompts with a response each, contiguous and right-padded."""

    tokens: Any
    """int32 [B, T]."""
    prompt_length: Any
    """int32 [B], ≥ 1."""
    response_length: Any
    """int32 [B]: the EOS included."""


def turns(iterations: int, share: float, *, seed: int) -> tuple[Bool[np.ndarray, " S"], np.ndarray]:
    """Whether each iteration learns from the student's own samples, and its number, from 0, among those of its kind.

    A coin an iteration, as in the paper's algorithm 1, that depends on the seed alone: own with probability `share` (λ).
    """
    own = np.random.default_rng(seed).random(iterations) < share
    return own, np.where(own, np.cumsum(own), np.cumsum(~own)) - 1


def token_divergences(
    student: Params,
    teacher: Params,
    states: Float[Array, "B R D"],
    teacher_states: Float[Array, "B R E"],
    *,
    divergence: Divergence,
    cfg: ModelConfig,
    teacher_cfg: ModelConfig,
    temperature: float = 1.0,
    chunk: int = 32,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"], Float[Array, "B R"]]:
    """The divergence at each position, and beside it forward and reverse KL, through which no gradient passes; nats.

    Both models' distributions are softmax(logits / temperature). `chunk` positions are done at a time and recomputed in the
    backward pass, so that no [B, R, V] array ever exists. Where one model's matrix has more rows than the other's, ids past
    the smaller are left out of both: they are padding, of no token.
    """
    B, R = states.shape[:2]
    chunk, size = min(chunk, R), min(cfg.vocab_size, teacher_cfg.vocab_size)
    pieces = -(-R // chunk)

    def cut(x: Array) -> Array:
        padded = jnp.pad(x, ((0, 0), (0, pieces * chunk - R), (0, 0)))
        return padded.reshape(B, pieces, chunk, x.shape[-1]).swapaxes(0, 1)

    @jax.checkpoint
    def one(states: Array, teacher_states: Array) -> tuple[Array, Array, Array]:
        own = transformer.logits(student, states, cfg=cfg)[..., :size]
        other = transformer.logits(teacher, teacher_states, cfg=teacher_cfg)[..., :size]
        logprobs = (jax.nn.log_softmax(own / temperature), jax.nn.log_softmax(other / temperature))
        told = [jax.lax.stop_gradient(x) for x in logprobs]
        return divergence(*logprobs), distillation.forward_kl(*told), distillation.reverse_kl(*told)

    xs = cut(states), cut(teacher_states)
    _, outputs = jax.lax.scan(lambda _, piece: (None, one(*piece)), None, xs)
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, -1)[:, :R], outputs)


def build_forward(
    *, window: int, cfg: ModelConfig, teacher_cfg: ModelConfig, **settings: Any
) -> Callable[[Any, Texts], tuple[Array, Array, Array]]:
    """forward({"student": …, "teacher": …}, texts) -> `token_divergences` of each response token, R = `window`; `settings` are
    its divergence, temperature and chunk."""

    def forward(params: Any, texts: Texts) -> tuple[Array, Array, Array]:
        length = texts.prompt_length + texts.response_length

        def states(role: str, model: ModelConfig) -> Array:
            found = transformer.hidden(params[role], texts.tokens, length, cfg=model)
            return rows_at(found, texts.prompt_length - 1, window)

        both = states("student", cfg), jax.lax.stop_gradient(states("teacher", teacher_cfg))
        fixed = jax.lax.stop_gradient(params["teacher"])
        return token_divergences(params["student"], fixed, *both, cfg=cfg, teacher_cfg=teacher_cfg, **settings)

    return forward


def weigh(texts: Texts, *, window: int, by: Callable[[Array], Array]) -> Float[Array, "B R"]:
    """`by` (of `objectives.weights`) over the responses' tokens."""
    return by(response_mask(texts.response_length, window))


def loss(
    params: Any, texts: Texts, weights: Float[Array, "B R"], *, forward: Callable[..., tuple[Array, Array, Array]]
) -> tuple[Float[Array, ""], Metrics]:
    """The divergence under the weights, nats a token; forward and reverse KL, so that runs with different divergences
    compare."""
    divergence, *both = forward(params, texts)
    total, (cover, seek) = weighted_sum(divergence, weights), (weighted_sum(each, weights) for each in both)
    return total, {"distill/loss": total, "distill/forward_kl": cover, "distill/reverse_kl": seek}


def build_loss(**settings: Any) -> Callable[..., tuple[Array, Metrics]]:
    """`loss` on `build_forward` with these settings, for `update.make_update`."""
    return functools.partial(loss, forward=build_forward(**settings))
