"""Prompts to responses: prefill once a prompt, then one decoding step a token until every row has stopped."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from rlhf_jax import sharding
from rlhf_jax.errors import UserError
from rlhf_jax.generate import sampling as rules
from rlhf_jax.model import transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.types import STOP_EOS, STOP_LENGTH, STOP_SEQUENCE, Params, Samples, Sampling


class Loop(NamedTuple):
    """What one decoding step hands to the next; arrays lead with [G, n]."""

    step: Array
    responses: Array
    logprobs: Array
    length: Array
    stop: Array
    done: Array
    caches: tuple[transformer.Cache, ...]
    """One a model."""


def ends(responses: Int[Array, "G n R"], step: Int[Array, ""], sequence: tuple[int, ...]) -> Bool[Array, "G n"]:
    """Whether the tokens up to and including `step` end with the sequence."""
    size = len(sequence)
    window = jnp.pad(responses, ((0, 0), (0, 0), (size - 1, 0)), constant_values=-1)
    tail = jax.lax.dynamic_slice_in_dim(window, step, size, axis=2)
    return jnp.all(tail == jnp.array(sequence, jnp.int32), axis=-1)


@functools.partial(jax.jit, static_argnames=("window", "cfg", "sampling"))
def generate(
    params: Params,
    prompts: Int[Array, "G P"],
    lengths: Int[Array, " G"],
    uids: Int[Array, "G n"],
    key: Array,
    *,
    window: int,
    cfg: ModelConfig,
    sampling: Sampling,
) -> Samples:
    """n responses of at most `window` tokens to each right-padded prompt.

    The noise of a token is keyed by (key, uid, index in the response) alone: a sample does not depend on its batch
    mates, its row or the prompt window. A row ends at an EOS id of `cfg` or at a stop sequence, both kept; the loop
    ends when every row has. Compiled once for each shape of (prompts, uids), window and sampling rule.
    """
    return _decode((params,), lambda logits: logits, prompts, lengths, uids, key, window, cfg, sampling)


@functools.partial(jax.jit, static_argnames=("share", "window", "cfg", "sampling"))
def generate_mixture(
    params: Params,
    reference: Params,
    prompts: Int[Array, "G P"],
    lengths: Int[Array, " G"],
    uids: Int[Array, "G n"],
    key: Array,
    *,
    share: float,
    window: int,
    cfg: ModelConfig,
    sampling: Sampling,
) -> Samples:
    """`generate` from the geometric mixture of two models of one configuration, token by token:

        p(y_t | x, y_<t) ∝ π(y_t | x, y_<t)^(1 − share) · π_ref(y_t | x, y_<t)^share

    the one-step-at-a-time mixture of Nash-MD (arXiv 2312.00886), not that of whole responses. Both models are at the
    sampling temperature, top-k, top-p and min-p cut the mixture, and at temperature 0 the mixture's likeliest token is
    taken; behaviour log-probabilities are the mixture's. At share 0 and 1 it is `generate` from one model, the other is
    not run. Checked against TRL's GeometricMixtureWrapper (https://github.com/huggingface/trl). UserError unless 0 ≤ share ≤ 1.
    """
    if not 0 <= share <= 1:
        raise UserError(f"the reference's share of a mixture must be between 0 and 1, got {share}")
    if share in (0, 1):
        one = reference if share else params
        return generate(one, prompts, lengths, uids, key, window=window, cfg=cfg, sampling=sampling)
    mix = functools.partial(rules.mixed, share=share)
    return _decode((params, reference), mix, prompts, lengths, uids, key, window, cfg, sampling)


def _decode(
    models: tuple[Params, ...],
    mix: Callable[..., Array],
    prompts: Array,
    lengths: Array,
    uids: Array,
    key: Array,
    window: int,
    cfg: ModelConfig,
    sampling: Sampling,
) -> Samples:
    """The loop: `mix` makes one set of logits of those of each model, which all read the tokens drawn from it."""
    G, n = uids.shape
    uid_keys = jax.vmap(lambda uid: jax.random.fold_in(key, uid))(uids.reshape(-1)).reshape(G, n)

    def token_keys(step: Array) -> Array:
        return jax.vmap(lambda k: jax.random.fold_in(k, step))(uid_keys.reshape(-1)).reshape(G, n)

    def advance(loop: Loop, logits: Array) -> Loop:
        """Draw the token of this step for the rows still running, and see which of them end with it."""
        token, logprob = rules.draw(logits, token_keys(loop.step), sampling)
        running = ~loop.done
        token = jnp.where(running, token, 0)
        responses = jax.lax.dynamic_update_index_in_dim(loop.responses, token, loop.step, axis=2)
        logprobs = jax.lax.dynamic_update_index_in_dim(
            loop.logprobs, jnp.where(running, logprob, 0.0), loop.step, axis=2
        )
        eos = jnp.isin(token, jnp.array(cfg.eos_ids, jnp.int32)) if cfg.eos_ids else jnp.zeros((G, n), bool)
        stopped = jnp.zeros((G, n), bool)
        for sequence in sampling.stop:
            stopped |= ends(responses, loop.step, sequence)
        stop = jnp.where(running & stopped, STOP_SEQUENCE, loop.stop)
        stop = jnp.where(running & eos, STOP_EOS, stop)
        return loop._replace(
            step=loop.step + 1,
            responses=responses,
            logprobs=logprobs,
            length=loop.length + running,
            stop=stop,
            done=loop.done | eos | stopped,
        )

    def mixed(states: Sequence[Array]) -> Array:
        return mix(*(transformer.logits(params, x, cfg=cfg) for params, x in zip(models, states, strict=True)))

    read = [transformer.prefill(params, prompts, lengths, n=n, window=window, cfg=cfg) for params in models]
    layers = [transformer.unstack(params, cfg) for params in models]
    caches = tuple(cache for _, cache in read)
    loop = Loop(
        step=jnp.zeros((), jnp.int32),
        responses=jnp.zeros((G, n, window), jnp.int32),
        logprobs=jnp.zeros((G, n, window), jnp.float32),
        length=jnp.zeros((G, n), jnp.int32),
        stop=jnp.full((G, n), STOP_LENGTH, jnp.int32),
        done=jnp.zeros((G, n), bool),
        caches=jax.tree.map(lambda x: sharding.constrain(x, "rows", *(None,) * (x.ndim - 1)), caches),
    )
    loop = advance(loop, mixed([jnp.broadcast_to(x[:, None], (G, n, x.shape[-1])) for x, _ in read]))

    def continues(loop: Loop) -> Array:
        return (loop.step < window) & ~jnp.all(loop.done)

    def step(loop: Loop) -> Loop:
        token = jax.lax.dynamic_index_in_dim(loop.responses, loop.step - 1, axis=2, keepdims=False)
        each = [
            transformer.decode(params, own, token, loop.step - 1, lengths, cache, cfg=cfg)
            for params, own, cache in zip(models, layers, loop.caches, strict=True)
        ]
        return advance(loop._replace(caches=tuple(cache for _, cache in each)), mixed([state for state, _ in each]))

    loop = jax.lax.while_loop(continues, step, loop)
    flat = [x.reshape(G * n, *x.shape[2:]) for x in (loop.responses, loop.length, loop.stop, loop.logprobs)]
    return Samples(*flat)


def check(
    prompts: np.ndarray,
    lengths: np.ndarray,
    *,
    window: int,
    cfg: ModelConfig,
    stop: tuple[tuple[int, ...], ...] = (),
) -> None:
    """Refuse what the compiled program would take silently: an empty prompt or window, ids outside the vocabulary
    (JAX clamps them; a stop sequence with one would never be met), rows past the model's positions. Raises UserError
    naming the rows."""
    if window < 1:
        raise UserError(f"the response window is {window}; it must be at least 1 token")
    empty = np.flatnonzero(np.asarray(lengths) < 1)
    if empty.size:
        raise UserError(f"prompts {name_rows(empty)} are empty; each needs at least one token")
    long = np.flatnonzero(np.asarray(lengths) > prompts.shape[1])
    if long.size:
        raise UserError(
            f"prompts {name_rows(long)} are longer than the prompt window of {prompts.shape[1]} tokens; "
            "widen the window or drop them when loading"
        )
    inside = np.arange(prompts.shape[1])[None] < np.asarray(lengths)[:, None]
    bad = np.flatnonzero((inside & ((prompts < 0) | (prompts >= cfg.vocab_size))).any(axis=1))
    if bad.size:
        raise UserError(
            f"prompts {name_rows(bad)} hold token ids outside the model's vocabulary of {cfg.vocab_size}; "
            "was another tokenizer used?"
        )
    strange = sorted({token for sequence in stop for token in sequence if not 0 <= token < cfg.vocab_size})
    if strange:
        raise UserError(f"sampling.stop holds {strange}; the model's token ids are 0 to {cfg.vocab_size - 1}")
    P = prompts.shape[1]
    transformer.check_window(cfg, P + window, f"prompt window {P} + response window {window}")


def name_rows(rows: np.ndarray, most: int = 5) -> str:
    """ "[3, 7]", or the first few and how many more."""
    more = f" and {rows.size - most} more" if rows.size > most else ""
    return f"{[int(row) for row in rows[:most]]}{more}"
