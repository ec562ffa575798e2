"""Saved reward models as scores of texts, one by one or as an ensemble, and how well they order held-out pairs."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from reward_parts import Data
from scipy import stats

from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms.rewards import Score
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import baselines
from rlhf_jax.feedback.statistics import agreement
from rlhf_jax.model import heads, hf, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs import data, models, ranges, settings


class Reader(NamedTuple):
    """A saved reward model, opened."""

    cfg: ModelConfig
    params: Any
    encode: Callable[..., tuple[np.ndarray, np.ndarray]]


def raw_scores(forward: Callable[..., Any], params: Any, tokens: Any, length: Any, rows: int) -> np.ndarray:
    """f32 [B, A] of any number of texts, `rows` at a time through one program."""
    found = []
    for start in range(0, len(length), rows):
        index = np.arange(start, start + rows) % len(length)
        found.append(np.asarray(forward(params, jnp.asarray(tokens[index]), jnp.asarray(length[index]))))
    return np.concatenate(found)[: len(length)]


def open_reader(
    folder: str, *, window: int, compute: Any = None, mesh: Any = None, bases: models.Bases | None = None
) -> Reader:
    """The reward model of a folder, to read texts of up to `window` tokens. Where it is an adapter, its base is taken from
    `bases` and put there. UserError for a language model, or a window past its positions."""
    opened = models.open_model(folder, mesh, bases, compute.base if compute else "float")
    model, tokenizer = opened.cfg, hf.tokenizer(folder)
    hf.check_tokenizer(tokenizer, model)
    if not model.axes:
        raise UserError(f"{folder} has 0 reward axes: it is a causal language model; name a reward model")
    transformer.check_window(model, window, f"{folder} reads {window} tokens of prompt, response and EOS: that")
    model = settings.apply_compute(model, compute or settings.Compute())
    return Reader(model, opened.params, data.score_encoder(tokenizer, window=window, stops=model.eos_ids))


def scorer(
    folder: str,
    *,
    window: int,
    rows: int,
    axis: int = 0,
    axes: Mapping[str, float] | None = None,
    compute: Any = None,
    mesh: Any = None,
    bases: models.Bases | None = None,
) -> Score:
    """A saved reward model as a reward: score(prompts, responses, meta) -> f32 [B], normalised as it was saved.

    With `axes`, {name: weight}, the weighted sum of these axes, and every axis of the model by name as a part of it.
    UserError for an axis that the model has not.
    """
    model, params, encode = open_reader(folder, window=window, compute=compute, mesh=mesh, bases=bases)
    if axis >= model.axes:
        raise UserError(f"{folder} has {model.axes} reward axes; axis {axis} is not one")
    weight = mixture(folder, model, axes) if axes else np.zeros(0)
    forward = jax.jit(functools.partial(heads.reward, cfg=model))

    def score(prompts: Sequence[Any], responses: Sequence[str], meta: Sequence[Any]) -> Any:
        tokens, length = encode(prompts, responses)
        found = raw_scores(forward, params, tokens, length, min(rows, len(length)))
        if not axes:
            return found[:, axis]
        return found @ weight, {name: found[:, number] for number, name in enumerate(model.axis_names)}

    return score


def mixture(folder: str, model: ModelConfig, axes: Mapping[str, float]) -> np.ndarray:
    """f32 [A]: what each axis of the model counts. UserError for a name that is none of its axes'."""
    for name in axes:
        if name not in model.axis_names:
            listed = ", ".join(model.axis_names) or f"{model.axes} without names: choose with axis: 0"
            raise UserError(f"{folder} has no axis {name!r}{ranges.nearest(name, model.axis_names)}; it has {listed}")
    return np.array([axes.get(name, 0.0) for name in model.axis_names], np.float32)


def ensemble(folders: Sequence[str], *, window: int, rows: int, axis: int = 0, compute: Any = None) -> Score:
    """score(prompts, responses, meta) -> f32 [M, B]: what each of M saved reward models says, normalised as it was saved. How
    far they disagree is what to ask people about next (`feedback.selection`).

    Members differ by seed (`member` of reward_model.py); whole models of one shape are read in one program, others one
    after another. UserError where one lacks the axis, or reads other tokens.
    """
    bases: models.Bases = {}
    members = [open_reader(folder, window=window, compute=compute, bases=bases) for folder in folders]
    for folder, member in zip(folders, members, strict=True):
        if axis >= member.cfg.axes:
            raise UserError(f"{folder} has {member.cfg.axes} reward axes; axis {axis} is not one")
        if hf.tokenizer(folder).get_vocab() != hf.tokenizer(folders[0]).get_vocab():
            raise UserError(f"{folder} and {folders[0]} have different vocabularies; members read the same tokens")
    plain = [replace(member.cfg, axis_names=(), reward_mean=(), reward_std=()) for member in members]
    mean = np.array([member.cfg.reward_mean[axis] if member.cfg.reward_mean else 0.0 for member in members], np.float32)
    std = np.array([member.cfg.reward_std[axis] if member.cfg.reward_std else 1.0 for member in members], np.float32)
    alike = len(bases) == len(members) and all(cfg == plain[0] for cfg in plain)
    if alike:
        together = reward_model.ensemble(functools.partial(heads.reward, cfg=plain[0]))
        stacked = reward_model.stack([member.params for member in members])
    forwards = [jax.jit(functools.partial(heads.reward, cfg=cfg)) for cfg in plain]

    def score(prompts: Sequence[Any], responses: Sequence[str], meta: Sequence[Any]) -> np.ndarray:
        tokens, length = members[0].encode(prompts, responses)
        size = min(rows, len(length))
        if alike:
            found = raw_scores(lambda *row: together(*row).swapaxes(0, 1), stacked, tokens, length, size)[:, :, axis].T
        else:
            each = zip(forwards, members, strict=True)
            found = np.stack([raw_scores(f, m.params, tokens, length, size)[:, axis] for f, m in each])
        return (found - mean[:, None]) / std[:, None]

    return score


def evaluate(
    scores_of: Callable[..., np.ndarray], found: Data, axes: Sequence[str]
) -> tuple[dict[str, Any], dict[str, float]]:
    """(accuracies on decided held-out pairs, beside a length-only model, a bag of words, and what people agree on; Spearman's
    correlation with held-out ratings), over all axes and on each. scores_of(tokens, length) -> f32 [B, A]."""
    accuracies: dict[str, Any] = {}
    rows, held = found.held_rows, np.array([not pair.tie for pair in found.held])
    strict = [pair for pair in found.pairs if not pair.tie]
    if rows is not None and strict:
        chosen, rejected = scores_of(rows.chosen, rows.chosen_length), scores_of(rows.rejected, rows.rejected_length)
        margins = np.take_along_axis(chosen - rejected, np.asarray(rows.axis)[:, None], axis=1)[:, 0]
        decided = [pair for pair in found.held if not pair.tie]
        accuracies["reward model"] = baselines.accuracy(margins[held])
        for number, axis in enumerate(axes):
            if (held & (rows.axis == number)).any():
                accuracies[f"reward model, {axis}"] = baselines.accuracy(margins[held & (rows.axis == number)])
        accuracies["longer or shorter"] = baselines.length_only(strict, decided)
        accuracies["bag of words"] = baselines.bag_of_words(strict, decided)
    if found.kind != "ratings":
        return accuracies | {"annotators": agreement.annotator_ceiling(found.records)}, {}
    assert found.held_ratings is not None
    rated, _ = found.held_ratings
    scores = np.take_along_axis(scores_of(rated.tokens, rated.length), rated.axis[:, None], axis=1)[:, 0]
    parts = {"correlation": np.ones(scores.size, bool)}
    parts |= {f"correlation, {axis}": rated.axis == number for number, axis in enumerate(axes)}
    return accuracies, {name: correlation(scores[rows], rated.rating[rows]) for name, rows in parts.items()}


def correlation(scores: np.ndarray, ratings: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one of the two does not vary."""
    if len(set(scores.tolist())) < 2 or len(set(ratings.tolist())) < 2:
        return 0.0
    return float(stats.spearmanr(scores, ratings).statistic)
