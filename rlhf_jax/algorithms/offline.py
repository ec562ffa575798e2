"""Preference optimisation on data that are there already: DPO and its kin, from pairs or from single judged responses.

Facts are tokens and lengths (`types.Preferences`), targets the reference's log-probabilities, made once for all steps or anew at
each (`reference_logprobs`). Policy and reference go through the same forward pass, all responses of a row in one.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.errors import UserError
from rlhf_jax.masks import response_mask, weighted_sum
from rlhf_jax.types import Metrics, Preferences

Forward = Callable[[Any, Array, Array, Array], Array]
"""forward(params, tokens [N, T], prompt_length [N], response_length [N]) -> log-probability of each response token [N, R]."""

Objectives = Mapping[str, tuple[Callable[..., Array], float]]
"""Losses of `objectives.preference` by name, with what each counts."""

KINDS = {("chosen", "rejected"): "pairs", ("logprobs", "desirable"): "verdicts"}
"""What a loss learns from, by its first two parameters: pairs of responses, or single ones called good or bad."""

OFFERED = {
    "pairs": ("ref_chosen", "ref_rejected"),
    "verdicts": ("ref_logprobs", "mismatched", "ref_mismatched"),
}
"""What else a loss of each kind may ask for by name; its other parameters are numbers with a default."""


def kind_of(objective: Callable[..., Any]) -> str:
    """ "pairs" or "verdicts". UserError for a function that is a loss of neither, or needs what there is not."""
    parameters = list(inspect.signature(objective).parameters.values())
    firsts = tuple(parameter.name for parameter in parameters[:2])
    if firsts not in KINDS:
        known = "; ".join(f"{' and '.join(names)} for {kind}" for names, kind in KINDS.items())
        raise UserError(f"a preference loss begins with {known}; got {', '.join(firsts) or 'no parameter'}")
    kind = KINDS[firsts]
    for parameter in parameters[2:]:
        if parameter.default is parameter.empty and parameter.name not in OFFERED[kind]:
            raise UserError(f"a loss of {kind} may ask for {', '.join(OFFERED[kind])}; got {parameter.name}")
    return kind


def takes(objective: Callable[..., Any]) -> set[str]:
    """The names of what a loss takes besides its first two arguments."""
    return set(list(inspect.signature(objective).parameters)[2:])


def needs_reference(objectives: Objectives) -> bool:
    """Whether any of the losses reads log-probabilities of a reference."""
    return any(name.startswith("ref_") for objective, _ in objectives.values() for name in takes(objective))


def says(objective: Any, name: str) -> bool:
    """Whether a loss has the attribute `per_token` or `spans_rows` set, also through `functools.partial`."""
    while isinstance(objective, functools.partial) and not hasattr(objective, name):
        objective = objective.func
    return bool(getattr(objective, name, False))


def weigh(batch: Preferences) -> Array:
    """f32 [B]: the rows' own weights, scaled to sum to one."""
    return batch.weight / jnp.maximum(jnp.sum(batch.weight), 1e-8)


def summed(logprobs: Float[Array, "B K R"], length: Int[Array, "B K"], *, ld_alpha: float = 1.0) -> Float[Array, "B K"]:
    """Log-probability, nats, of each whole response.

    `ld_alpha` below 1 is LD-DPO (arXiv 2409.06411): tokens past the length of the row's shortest response count α, so that
    length by itself is no reward. Checked against TRL's ld_alpha, which multiplies log-probabilities so, as the paper's
    π^α does; turbo-alignment (https://github.com/turbo-llm/turbo-alignment) raises the log-probability itself to α, which is NaN.
    """
    B, K, R = logprobs.shape
    mask = response_mask(length.reshape(B * K), R).reshape(B, K, R)
    shared = jnp.arange(R) < jnp.min(length, axis=1)[:, None, None]
    return jnp.sum(jnp.where(mask, jnp.where(shared, 1.0, ld_alpha) * logprobs, 0.0), axis=2)


def sequence_logprobs(
    params: Any, batch: Preferences, *, forward: Forward, ld_alpha: float = 1.0
) -> Float[Array, "B K"]:
    """`summed` of all responses of the batch, in one forward pass over B · K rows."""
    B, K, T = batch.tokens.shape
    rows = batch.tokens.reshape(B * K, T), jnp.repeat(batch.prompt_length, K), batch.response_length.reshape(B * K)
    return summed(forward(params, *rows).reshape(B, K, -1), batch.response_length, ld_alpha=ld_alpha)


def reference_logprobs(
    params: Any, batch: Preferences, *, forward: Forward, ld_alpha: float = 1.0
) -> Float[Array, "B K"]:
    """What `batch.ref_logprobs` should be under these parameters; no gradient passes."""
    return jax.lax.stop_gradient(sequence_logprobs(params, batch, forward=forward, ld_alpha=ld_alpha))


def loss(
    params: Any,
    batch: Preferences,
    weights: Float[Array, " B"],
    *,
    forward: Forward,
    objectives: Objectives,
    beta: float = 0.1,
    ld_alpha: float = 1.0,
    per_token: bool | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """Σ of each objective times what it counts, over pairs: a row's label mixes its loss with that of the pair turned round.

    Each objective is given sums over tokens, or means where it says `per_token`; `per_token` here overrides them all. `beta`
    scales the implicit rewards β log π/π_ref of the metrics (β log π without a reference), sums or means as the first
    objective has them: their accuracy, margin and means, beside the log-probabilities, nats a response.
    """
    logprobs = sequence_logprobs(params, batch, forward=forward, ld_alpha=ld_alpha)
    total: Array = jnp.zeros(())
    metrics: Metrics = {}
    rewards: Array | None = None
    for name, (objective, counts) in objectives.items():
        mean = says(objective, "per_token") if per_token is None else per_token
        policy, reference, drift = _scaled(logprobs, batch, mean)
        rewards = beta * drift if rewards is None else rewards
        terms = batch.label * _pairs(objective, policy, reference, 0)
        terms = terms + (1.0 - batch.label) * _pairs(objective, policy, reference, 1)
        part = weighted_sum(terms, weights)
        total = total + counts * part
        metrics[f"preference/{name}"] = part
    assert rewards is not None, "no objective was given"
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    right = jnp.where((chosen == rejected) | (batch.label == 0.5), 0.5, (chosen > rejected) == (batch.label > 0.5))
    return total, metrics | {
        "preference/loss": total,
        "preference/accuracy": weighted_sum(right, weights),
        "preference/margin": weighted_sum(chosen - rejected, weights),
        "preference/chosen_reward": weighted_sum(chosen, weights),
        "preference/rejected_reward": weighted_sum(rejected, weights),
        "preference/chosen_logprob": weighted_sum(logprobs[:, 0], weights),
        "preference/rejected_logprob": weighted_sum(logprobs[:, 1], weights),
    }


def verdict_loss(
    params: Any,
    batch: Preferences,
    weights: Float[Array, " B"],
    *,
    forward: Forward,
    objectives: Objectives,
    beta: float = 0.1,
    per_token: bool | None = None,
) -> tuple[Float[Array, ""], Metrics]:
    """The same of single responses. Where a row has a second response, to another prompt, the objectives that ask for it are
    told its log-probabilities, through which no gradient passes. `preference/good_reward` and `preference/bad_reward` are
    sums over the rows of each kind under the weights: divide by their shares, `preference/good`, for means."""
    first = replace(batch, tokens=batch.tokens[:, :1], response_length=batch.response_length[:, :1])
    judged = sequence_logprobs(params, first, forward=forward)
    if batch.tokens.shape[1] > 1:
        other = replace(batch, tokens=batch.tokens[:, 1:], response_length=batch.response_length[:, 1:])
        judged = jnp.concatenate([judged, reference_logprobs(params, other, forward=forward)], axis=1)
    total: Array = jnp.zeros(())
    metrics: Metrics = {}
    rewards: Array | None = None
    for name, (objective, counts) in objectives.items():
        mean = says(objective, "per_token") if per_token is None else per_token
        policy, reference, drift = _scaled(judged, batch, mean)
        rewards = beta * drift if rewards is None else rewards
        offered = {"mismatched": policy[:, -1]}
        if reference is not None:
            offered |= {"ref_logprobs": reference[:, 0], "ref_mismatched": reference[:, -1]}
        part = weighted_sum(objective(policy[:, 0], batch.label, **_taken(objective, offered)), weights)
        total = total + counts * part
        metrics[f"preference/{name}"] = part
    assert rewards is not None, "no objective was given"
    reward, label = rewards[:, 0], batch.label
    return total, metrics | {
        "preference/loss": total,
        "preference/good": weighted_sum(label, weights),
        "preference/good_reward": weighted_sum(label * reward, weights),
        "preference/bad_reward": weighted_sum((1.0 - label) * reward, weights),
        "preference/drift": weighted_sum(rewards[:, -1], weights),
        "preference/logprob": weighted_sum(judged[:, 0], weights),
    }


def build_loss(kind: str, objectives: Objectives, **settings: Any) -> Callable[..., tuple[Array, Metrics]]:
    """`loss` or `verdict_loss`, whichever learns from this kind, bound to its settings, for `update.make_update`. It
    `spans_rows` where an objective does."""
    found = functools.partial({"pairs": loss, "verdicts": verdict_loss}[kind], objectives=objectives, **settings)
    found.spans_rows = any(says(objective, "spans_rows") for objective, _ in objectives.values())  # type: ignore[attr-defined]
    return found


def _scaled(logprobs: Array, batch: Preferences, mean: bool) -> tuple[Array, Array | None, Array]:
    """The policy's log-probabilities, the reference's if there are any, and how far the two are apart (or the policy's own):
    sums as they are, or over the number of tokens."""
    tokens = jnp.maximum(batch.response_length, 1) if mean else 1
    policy = logprobs / tokens
    if batch.ref_logprobs is None:
        return policy, None, policy
    reference = batch.ref_logprobs / tokens
    return policy, reference, policy - reference


def _pairs(objective: Callable[..., Array], policy: Array, reference: Array | None, first: int) -> Array:
    """The loss [B] of pairs whose chosen response is number `first` of the two."""
    offered = {}
    if reference is not None:
        offered = {"ref_chosen": reference[:, first], "ref_rejected": reference[:, 1 - first]}
    return objective(policy[:, first], policy[:, 1 - first], **_taken(objective, offered))


def _taken(objective: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """What the loss takes of what is offered."""
    names = takes(objective)
    return {name: x for name, x in offered.items() if name in names}
