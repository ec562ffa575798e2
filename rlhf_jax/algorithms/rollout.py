"""Collect: prompts in, facts about sampled responses out."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from rlhf_jax.algorithms import rewards
from rlhf_jax.errors import UserError
from rlhf_jax.masks import response_mask, rows_at
from rlhf_jax.objectives import kl
from rlhf_jax.types import STOP_EOS, STOP_LENGTH, Prompts, Rollout, Samples, Sampling


def in_chunks(forward: Callable[..., Any], rows: int) -> Callable[..., Any]:
    """`forward(params, *arrays)` over `rows` rows at a time.

    At the micro-batch size of the update this makes old log-probabilities the very numbers that the first minibatch
    will compute: the ratio starts at exactly 1. It also bounds memory.
    """

    def mapped(params: Any, *arrays: Array) -> Any:
        total = arrays[0].shape[0]
        if total % rows:
            raise UserError(f"{total} rows do not divide into chunks of {rows}")
        chunks = [x.reshape(total // rows, rows, *x.shape[1:]) for x in arrays]
        outputs = jax.lax.map(lambda piece: forward(params, *piece), chunks)
        return jax.tree.map(lambda x: x.reshape(total, *x.shape[2:]), outputs)

    return mapped


def join(
    prompts: Int[Array, "B P"], prompt_length: Int[Array, " B"], responses: Int[Array, "B R"], length: Int[Array, " B"]
) -> Int[Array, "B T"]:
    """Prompt and response contiguous in one row of T = P + R, then zeros."""
    P, R = prompts.shape[1], responses.shape[1]
    position = jnp.arange(P + R)[None]
    start, end = prompt_length[:, None], (prompt_length + length)[:, None]
    from_prompt = jnp.pad(prompts, ((0, 0), (0, R)))
    offset = jnp.clip(position - start, 0, R - 1)
    from_response = jnp.take_along_axis(responses, offset, axis=1)
    return jnp.where(position < start, from_prompt, jnp.where(position < end, from_response, 0)).astype(jnp.int32)


def response_ids(responses: np.ndarray, length: np.ndarray) -> list[list[int]]:
    """The sampled ids of each row, without padding."""
    return [row[:size].tolist() for row, size in zip(responses, length, strict=True)]


def gather(
    params: Any,
    tokens: Int[Array, "G P"],
    lengths: Int[Array, " G"],
    ids: Int[Array, " G"],
    uids: Int[Array, "G n"],
    key: Array,
    *,
    sampling: Sampling,
    version: Int[Array, ""] | int,
    sample: Callable[..., Samples],
    policy: Callable[..., tuple[Array, Array]],
    reference: Callable[..., Array] | None = None,
    value: Callable[..., Array] | None = None,
    bootstrap_truncated: bool = False,
) -> Rollout:
    """What `collect` learns before anybody reads a text: the scores are zeros. A function of arrays, so it may stand inside
    `jax.jit`, `jax.lax.scan` or `jax.vmap`, beside a score that is one too: `dataclasses.replace(rollout, scores=scores)`.

    tokens, lengths, ids   of the prompts, as in `Prompts`; the rest as in `collect`
    """
    n = uids.shape[1]
    samples = sample(params, tokens, lengths, uids, key)
    prompt_length = jnp.repeat(lengths, n)
    joined = join(jnp.repeat(tokens, n, axis=0), prompt_length, samples.responses, samples.length)
    row = joined, prompt_length, samples.length
    logprobs, entropy = policy(params, *row)
    ref_logprobs = None if reference is None else reference(*row)
    values = None if value is None else value(params, *row)
    bootstrap = None
    if values is not None:
        after_last = jnp.take_along_axis(values, samples.length[:, None], axis=1)[:, 0]
        values = values[:, :-1]
        if bootstrap_truncated:
            bootstrap = jnp.where(samples.stop == STOP_LENGTH, after_last, 0.0)
    return Rollout(
        tokens=joined,
        prompt_length=prompt_length,
        response_length=samples.length,
        stop=samples.stop,
        prompt_id=jnp.repeat(ids, n).astype(jnp.int32),
        uid=uids.astype(jnp.int32).reshape(-1),
        version=jnp.full(samples.length.shape, version, jnp.int32),
        behaviour_logprobs=samples.behaviour_logprobs,
        logprobs=logprobs,
        entropy=entropy,
        ref_logprobs=ref_logprobs,
        values=values,
        bootstrap=bootstrap,
        scores=jnp.zeros(samples.length.shape, jnp.float32),
        score_parts={},
        sampling=sampling,
    )


def collect(
    params: Any,
    prompts: Prompts,
    uids: np.ndarray,
    key: Array,
    *,
    decode: Callable[[list[int]], str],
    score: rewards.Score,
    sampling: Sampling,
    **models: Any,
) -> Rollout:
    """Sample n = uids.shape[1] responses a prompt, and learn everything about them that PPO needs.

    sample(params, tokens, length, uids, key) -> Samples       decode(ids) -> the response's text, for `score` alone:
    policy(params, *row) -> log-probabilities, entropy [B, R]  training sees the sampled ids, never re-encoded text
    reference(*row) -> log-probabilities [B, R]                score(prompts, responses, meta) -> (scores, parts)
    value(params, *row) -> values [B, R + 1], the last column in use being the value after the last token
    where row = tokens [B, T], prompt_length, response_length [B]; what takes them is `gather`, as are

    version               how many updates the policy has seen
    bootstrap_truncated   a response cut at the window is taken to go on: the value after it is kept, instead of 0
    """
    if sampling.temperature == 0:
        raise UserError("training needs sampled responses: set sampling.temperature above 0 (greedy is for evaluation)")
    n = uids.shape[1]
    tokens, lengths, prompt_ids = jnp.asarray(prompts.tokens), jnp.asarray(prompts.length), jnp.asarray(prompts.ids)
    # dispatched before the host turns to the texts, so that an accelerator computes while they are scored
    found = gather(params, tokens, lengths, prompt_ids, jnp.asarray(uids), key, sampling=sampling, **models)

    texts, meta = prompts.repeat(n)
    sampled = rows_at(found.tokens, found.prompt_length, found.mask.shape[1])
    responses = [decode(ids) for ids in response_ids(np.asarray(sampled), np.asarray(found.response_length))]
    scores, parts = rewards.checked("score", score)(texts, responses, meta)
    return replace(
        found,
        scores=jnp.asarray(scores, jnp.float32),
        score_parts={name: jnp.asarray(x, jnp.float32) for name, x in parts.items()},
    )


def metrics(rollout: Rollout) -> dict[str, float]:
    """What a rollout says, as Python numbers: scores and their parts, KL to the reference in nats a response,
    entropy in nats a token, lengths in tokens, how responses ended, and how far the sampler's distribution is from
    the one trained."""
    mask = np.asarray(response_mask(rollout.response_length, rollout.logprobs.shape[1]))
    host = jax.device_get(rollout)
    stop = np.asarray(host.stop)
    found = {
        "rollout/score": host.scores.mean(),
        "rollout/score_std": host.scores.std(),
        "rollout/entropy": host.entropy[mask].mean(),
        "rollout/length": host.response_length.mean(),
        "rollout/eos": (stop == STOP_EOS).mean(),
        "rollout/truncated": (stop == STOP_LENGTH).mean(),
    }
    found |= {f"reward/{name}": values.mean() for name, values in host.score_parts.items()}
    if rollout.ref_logprobs is not None:
        kls = {}
        for name, estimator in (("kl", kl.k1), ("kl_k3", kl.k3)):
            terms = np.asarray(estimator(rollout.logprobs, rollout.ref_logprobs), np.float64)
            kls[name] = np.where(mask, terms, 0.0).sum(axis=1)
            found[f"rollout/{name}"] = kls[name].mean()
        error = kls["kl"].std() / np.sqrt(kls["kl"].size)
        if found["rollout/kl"] < -0.01 * found["rollout/length"] - 3 * error:
            warnings.warn(
                f"the mean KL to the reference is {found['rollout/kl']:.3g} nats a response, which no KL can be: do "
                "policy, sampler and reference share temperature, truncation and masks?",
                stacklevel=2,
            )
    difference = (host.logprobs - host.behaviour_logprobs)[mask].astype(np.float64)
    gap, ratio = np.abs(difference), np.exp(difference)
    found |= {
        "mismatch/mean": gap.mean(),
        "mismatch/p95": np.quantile(gap, 0.95),
        "mismatch/max": gap.max(),
        "mismatch/outside": ((ratio < 0.9) | (ratio > 1.1)).mean(),
    }
    return {name: float(x) for name, x in found.items()}
