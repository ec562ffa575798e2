"""What distill.py builds before its loop: divergence, teacher, given texts, the student's own. `cfg` is its Experiment."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ppo_parts import bound, build_reward, build_show, named, pick

from rlhf_jax.algorithms.distill import Divergence, Texts
from rlhf_jax.algorithms.rollout import join
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.generate import engine
from rlhf_jax.model import hf, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives import distillation
from rlhf_jax.runs import data, models, settings
from rlhf_jax.types import STOP_EOS, Params, Prompts


def build_divergence(cfg: Any) -> Divergence:
    """The function that `divergence` names, with β bound if it takes one."""
    found = named(cfg.divergence, "divergence", distillation, distillation.DIVERGENCES)
    divergence: Divergence = bound(found, cfg, ("beta",))
    return divergence


def open_teacher(cfg: Any, student: models.Opened, tokenizer: Any, mesh: Any, bases: models.Bases) -> models.Opened:
    """The teacher, whose ids must mean what the student's do. UserError where they do not, or where texts would be too long
    for it."""
    opened = models.open_model(cfg.teacher, mesh, bases, cfg.compute.base)
    if opened.cfg.axes:
        raise UserError(f"{cfg.teacher} is a reward model; a causal language model is needed here")
    vocabulary = tokenizer.get_vocab()
    if hf.tokenizer(cfg.teacher).get_vocab() != vocabulary:
        raise UserError(
            f"{cfg.teacher} and {cfg.student} have different vocabularies; distil between models of one family"
        )
    size = min(opened.cfg.vocab_size, student.cfg.vocab_size)
    if max(vocabulary.values()) >= size:
        raise UserError(f"{cfg.teacher} or {cfg.student} has {size} rows, fewer than their tokenizer has ids")
    windows = f"prompt window {cfg.prompt_window} + response window {cfg.response_window}"
    transformer.check_window(opened.cfg, cfg.prompt_window + cfg.response_window, f"teacher {cfg.teacher}: {windows}")
    return opened._replace(cfg=settings.apply_compute(opened.cfg, cfg.compute))


def build_read(cfg: Any, tokenizer: Any, stops: Any) -> Callable[[int], Texts]:
    """read(number) -> batch `number` of the given responses, those whose prompt and response fit; what was left out is
    printed."""
    found, told = formats.load_demonstrations(data.find(cfg.demonstrations, cfg.data), cfg.format)
    rows, counts = data.encode_demonstrations(
        found, tokenizer, window=cfg.prompt_window + cfg.response_window, stops=stops
    )
    prompt_length = np.argmax(rows.loss_mask, axis=1).astype(np.int32)
    texts = Texts(rows.tokens, prompt_length, rows.length - prompt_length)
    long = texts.response_length > cfg.response_window
    counts["empty prompt: dropped"] += int((texts.prompt_length == 0).sum())
    counts[f"response longer than {cfg.response_window} tokens: dropped"] += int(long.sum())
    texts = data.take(texts, np.flatnonzero((texts.prompt_length > 0) & ~long))
    if not texts.prompt_length.size:
        raise UserError(f"no given response is left of {len(found)} ({data.counted(+counts)}); widen the windows")
    print(f"{told.text()}\n{texts.prompt_length.size} given responses; left out: {data.counted(+counts)}")

    def read(number: int) -> Texts:
        index = data.batch_rows(texts.prompt_length.size, cfg.batch, seed=cfg.seed, step=number)
        return jax.tree.map(jnp.asarray, data.take(texts, index))

    return read


def build_sample(cfg: Any, prompts: Prompts, model: ModelConfig) -> Callable[..., tuple[Texts, dict[str, float]]]:
    """sample(student, number, key) -> the student's responses to batch `number` of the prompts, and how long they are."""
    generate = functools.partial(engine.generate, window=cfg.response_window, cfg=model, sampling=cfg.sampling)
    joined = jax.jit(join)

    def sample(student: Params, number: int, key: jax.Array) -> tuple[Texts, dict[str, float]]:
        picked = pick(cfg, prompts, number)
        rows, length = jnp.asarray(picked.tokens), jnp.asarray(picked.length)
        uids = number * cfg.batch + np.arange(cfg.batch, dtype=np.int32)[:, None]
        found = generate(student, rows, length, jnp.asarray(uids), key)
        texts = Texts(joined(rows, length, found.responses, found.length), length, found.length)
        told = {"own/length": found.length.mean(), "own/eos": (found.stop == STOP_EOS).mean()}
        return texts, {name: float(x) for name, x in told.items()}

    return sample


def build_samples(
    cfg: Any, prompts: Prompts, tokenizer: Any, model: ModelConfig, mesh: Any, bases: models.Bases
) -> Callable[..., list[dict[str, Any]]]:
    """show(params, iteration, stage) -> rows of samples.jsonl, with scores where there are rewards to give them."""
    if cfg.rewards:
        scored: Any = build_show(cfg, prompts, tokenizer, build_reward(cfg, mesh, bases), model)
        return scored
    show = build_show(cfg, prompts, tokenizer, lambda *texts: (np.zeros(len(texts[1])), {}), model)

    def unscored(*given: Any, **named: Any) -> list[dict[str, Any]]:
        return [
            {key: row[key] for key in ("iteration", "stage", "prompt", "response")} for row in show(*given, **named)
        ]

    return unscored
