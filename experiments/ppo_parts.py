"""What ppo.py builds before its loop: reward, value model, optimizer, targets, update. `cfg` is its Experiment, or that of
grpo.py, which shares all but the critic."""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax
from generate import decoder, load_prompts, scored
from reward_scores import mixture, scorer

from rlhf_jax.algorithms import ppo, rewards, rollout
from rlhf_jax.algorithms.update import check_division, make_update
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import heads, hf, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.objectives import policy_zoo, weights
from rlhf_jax.runs import config, data, models, session, settings
from rlhf_jax.runs.grpo_settings import GRPO
from rlhf_jax.runs.ppo_settings import PPO
from rlhf_jax.types import Batch, Params, Prompts, Rollout

Roles = dict[str, Params]
"""The parameters of "policy" and, in PPO, "value"."""


def check_samples(cfg: Any) -> None:
    """UserError for sizes that no script can have which samples, scores and saves iteration by iteration."""
    for count in ("iterations", "prompt_window", "response_window", "keep"):
        config.at_least(count, getattr(cfg, count), 1)
    for number in ("seed", "save_every", "show"):
        config.non_negative(number, getattr(cfg, number))
    config.choice("long_prompts", cfg.long_prompts, ("drop", "truncate", "refuse"))
    for part_name, part in cfg.rewards.items():
        config.check(
            not part.model or not part.window or part.window > cfg.response_window + 1,
            f"rewards.{part_name}.window must be at least {cfg.response_window + 2}, for a whole response, its EOS and a "
            f"token of the prompt; got {part.window}",
        )
    config.check(cfg.sampling.temperature > 0, "sampling.temperature must be > 0: training samples")


def check(cfg: Any, chosen: PPO | GRPO, name: str) -> None:
    """UserError for sizes and settings of rollouts that do not fit; `name` is that of the algorithm's settings."""
    check_samples(cfg)
    for count in ("prompts_per_iteration", "samples_per_prompt"):
        config.at_least(count, getattr(cfg, count), 1)
    config.check(bool(cfg.rewards), "rewards must name a part, as in rewards: {helpful: {model: FOLDER}}")
    if cfg.sampling.truncates and chosen.importance_cap is None:
        raise UserError(
            f"sampling with top_k, top_p or min_p is not the distribution {name.upper()} trains; turn them off, or set "
            f"{name}.importance_cap (2.0, say) to correct for it"
        )
    config.check(
        not cfg.lora.rank or chosen.reference_share == 1,
        f"{name}.reference_share must be 1 with lora: half way between two adapters is not half way between two models",
    )
    check_division(cfg.rows, chosen.minibatches, chosen.microbatches)
    settings.check_base(cfg.compute, cfg.lora.rank)


def open_policy(cfg: Any, mesh: Any, bases: models.Bases) -> tuple[models.Opened, Any, Prompts]:
    """The model to align, its tokenizer, and the prompts that it can be asked."""
    opened, tokenizer = session.language_model(cfg.policy, cfg.compute, mesh, bases)
    prompts = load_prompts(
        cfg.prompts, tokenizer, window=cfg.prompt_window, long=cfg.long_prompts, format=cfg.format, root=cfg.data
    )
    engine.check(prompts.tokens, prompts.length, window=cfg.response_window, cfg=opened.cfg, stop=cfg.sampling.stop)
    return opened, tokenizer, prompts


def build_show(cfg: Any, prompts: Prompts, tokenizer: Any, score: rewards.Score, model: ModelConfig) -> Any:
    """show(params, iteration, stage) -> rows of samples.jsonl: the first prompts, always answered with the same noise."""
    return functools.partial(
        scored,
        prompts=data.take_prompts(prompts, np.arange(min(cfg.show, prompts.length.size))),
        tokenizer=tokenizer,
        score=score,
        model=model,
        window=cfg.response_window,
        sampling=cfg.sampling,
        key=jax.random.fold_in(jax.random.key(cfg.seed), 2**31 - 1),
    )


def pick(cfg: Any, prompts: Prompts, iteration: int) -> Prompts:
    """The prompts of an iteration."""
    size = prompts.length.size
    return data.take_prompts(prompts, data.batch_rows(size, cfg.prompts_per_iteration, seed=cfg.seed, step=iteration))


def build_collect(
    cfg: Any, prompts: Prompts, model: ModelConfig, tokenizer: Any, score: rewards.Score, policy: Any, **critic: Any
) -> Callable[..., Rollout]:
    """collect(params of each role, those of the reference, iteration, key) -> Rollout. `policy` is its jitted forward; what
    else `rollout.collect` takes of a critic is `critic`."""
    sample = functools.partial(engine.generate, window=cfg.response_window, cfg=model, sampling=cfg.sampling)
    decode = decoder(tokenizer)

    def collect(params: Roles, reference: Params, iteration: int, key: jax.Array) -> Rollout:
        uids = iteration * cfg.rows + np.arange(cfg.rows, dtype=np.int32).reshape(cfg.prompts_per_iteration, -1)
        return rollout.collect(
            params,
            pick(cfg, prompts, iteration),
            uids,
            jax.random.fold_in(key, 0),
            sampling=cfg.sampling,
            version=iteration,
            sample=lambda params, *rest: sample(params["policy"], *rest),
            policy=lambda params, *row: policy(params["policy"], *row),
            reference=lambda *row: policy(reference, *row)[0],
            decode=decode,
            score=score,
            **critic,
        )

    return collect


def named(spec: str, name: str, module: Any, known: Sequence[str]) -> Callable[..., Any]:
    """The function that the setting `name` names: one of those `known` in the module, or "file.py:function"."""
    if ":" in spec:
        return config.resolve_function(spec, name)
    config.choice(name, spec, known)
    found: Callable[..., Any] = getattr(module, spec)
    return found


def bound(function: Callable[..., Any], cfg: Any, names: Sequence[str]) -> Any:
    """The function with those of the settings bound that it takes; None leaves a keyword its default."""
    parameters = inspect.signature(function).parameters
    taken = [name for name in names if name in parameters and hasattr(cfg, name)]
    needed = {name for name in taken if parameters[name].default is inspect.Parameter.empty}
    given = {name: getattr(cfg, name) for name in taken if name in needed or getattr(cfg, name) is not None}
    return functools.partial(function, **given)


def policy_loss(cfg: PPO | GRPO) -> Any:
    """The function that `policy_loss` names, with those of the settings bound that it takes."""
    name = f"{'ppo' if isinstance(cfg, PPO) else 'grpo'}.policy_loss"
    return bound(named(cfg.policy_loss, name, policy_zoo, policy_zoo.LOSSES), cfg, policy_zoo.SETTINGS)


def check_functions(cfg: Any, *chosen: PPO | GRPO) -> None:
    """UserError for a reward or a policy loss of the user's own that is not there: a dry run tells it too."""
    for name, part in cfg.rewards.items():
        if part.function:
            config.resolve_function(part.function, f"rewards.{name}.function")
    for each in chosen:
        policy_loss(each)


def build_optimizer(cfg: Any) -> optax.GradientTransformation:
    """One Adam for the policy, frozen while the critic warms up, one for the value model, each with its own clip."""
    per_iteration = cfg.ppo.epochs * cfg.ppo.minibatches
    steps = cfg.iterations * per_iteration
    value_lr = cfg.optimizer.lr if cfg.ppo.value_lr is None else cfg.ppo.value_lr
    return optax.partition(
        {
            "policy": settings.optimizer(cfg.optimizer, steps, frozen=cfg.ppo.critic_warmup * per_iteration),
            "value": settings.optimizer(replace(cfg.optimizer, lr=value_lr), steps),
        },
        {"policy": "policy", "value": "value"},
    )


def build_reward(cfg: Any, mesh: Any, bases: models.Bases) -> rewards.Score:
    """The weighted mix of the parts that the configuration names."""
    parts = {}
    for name, part in cfg.rewards.items():
        window = part.window or cfg.prompt_window + cfg.response_window + 1
        parts[name] = (
            scorer(
                part.model,
                window=window,
                rows=cfg.rows,
                axis=part.axis,
                axes=part.axes,
                compute=cfg.compute,
                mesh=mesh,
                bases=bases,
            )
            if part.model
            else config.resolve_function(part.function, f"rewards.{name}.function"),
            part.weight,
        )
    return rewards.mix(parts)


def build_value(cfg: Any, policy: models.Opened, tokenizer: Any, mesh: Any, bases: models.Bases) -> models.Opened:
    """The value model: the policy's trunk, or that of a reward model with its score as the first value. Trained whole, it
    is a copy; with adapters, it has one of its own on a base that roles share."""
    opened, folder, axis, axes = policy, cfg.value, 0, {}
    if cfg.value not in ("policy", "shared"):
        scored = [part for part in cfg.rewards.values() if part.model]
        if cfg.value == "reward" and not scored:
            raise UserError("value: reward needs a reward model among the rewards; set value: policy")
        folder = scored[0].model if cfg.value == "reward" else cfg.value
        axis, axes = (scored[0].axis, scored[0].axes) if cfg.value == "reward" else (0, {})
        opened = models.open_model(folder, mesh, bases, cfg.compute.base)
        if hf.tokenizer(folder).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{folder} and {cfg.policy} have different vocabularies; set value: policy")
        windows = f"prompt window {cfg.prompt_window} + response window {cfg.response_window}"
        transformer.check_window(
            opened.cfg, cfg.prompt_window + cfg.response_window, f"value model {folder}: {windows}"
        )
        opened = opened._replace(cfg=settings.apply_compute(opened.cfg, cfg.compute))
    head = heads.value_head(opened.params, opened.cfg, axis)
    if axes:
        each = [heads.value_head(opened.params, opened.cfg, number) for number in range(opened.cfg.axes)]
        weight = mixture(folder, opened.cfg, axes).tolist()
        head = jax.tree.map(lambda *parts: sum(w * x for w, x in zip(weight, parts, strict=True)), *each)
    return opened._replace(base=heads.trunk(opened.base) | head, adapter=heads.trunk(opened.adapter))


def split_roles(cfg: Any, policy: models.Opened, value: models.Opened, mesh: Any) -> tuple[Roles, Roles]:
    """What is trained of each role and what is not. A value head on the policy's own trunk is all there is of its role."""
    key = jax.random.fold_in(jax.random.key(cfg.seed), 2**31 - 2)
    trained, frozen = models.trainable(policy, cfg.lora, jax.random.fold_in(key, 0), mesh)
    if cfg.value == "shared":
        head = {path: x for path, x in value.base.items() if path in models.HEADS}
        return {"policy": trained, "value": head}, {"policy": frozen, "value": {}}
    critic, base = models.trainable(value, cfg.lora, jax.random.fold_in(key, 1), mesh)
    return {"policy": trained, "value": critic}, {"policy": frozen, "value": base}


def build_forward(cfg: Any, model: ModelConfig, value_model: ModelConfig) -> tuple[Any, Any, Any]:
    """(forward, policy, value): what the loss differentiates, forward(params, batch) -> log-probabilities, entropy, values;
    and the halves of it that a rollout asks for, policy(params["policy"], *row) and value(params, *row)."""
    sizes: dict[str, Any] = {"window": cfg.response_window, "cfg": model}
    sizes |= {"temperature": cfg.sampling.temperature, "chunk": cfg.compute.chunk}
    policy_row: Any = functools.partial(heads.policy, **sizes)

    def critic(params: Roles) -> Params:
        return params["policy"] | params["value"] if cfg.value == "shared" else params["value"]

    def forward(params: Roles, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
        row = batch.tokens, batch.prompt_length, batch.response_length
        if cfg.value == "shared":
            return heads.policy_and_value(critic(params), *row, **sizes)
        values = heads.value(critic(params), *row, window=cfg.response_window, cfg=value_model)
        return *policy_row(params["policy"], *row), values

    def value_row(params: Roles, *row: jax.Array) -> jax.Array:
        return heads.value(critic(params), *row, window=cfg.response_window + 1, cfg=value_model)

    return forward, policy_row, value_row


def build_targets(cfg: PPO, estimator: Any) -> Any:
    """`ppo.targets` with these settings, compiled; β stays an argument, so that it can adapt."""
    names = ["gamma", "lam", "value_lam", "length_adaptive_alpha", "whiten_advantages", "whiten_rewards"]
    names += ["missing_eos_penalty", "reward_clip", "overlong_buffer", "mask_truncated"]
    chosen = {name: getattr(cfg, name) for name in names}
    return jax.jit(functools.partial(ppo.targets, kl_estimator=estimator, **chosen))


def build_update(cfg: PPO | GRPO, forward: ppo.Forward, estimator: Any, adam: optax.GradientTransformation) -> Any:
    """PPO's loss, with a critic or without, in the update that all stages share."""
    critic: dict[str, Any] = (
        {"value_clip": cfg.value_clip, "value_coef": cfg.value_coef} if isinstance(cfg, PPO) else {}
    )
    loss = functools.partial(
        ppo.loss,
        forward=forward,
        policy_loss=policy_loss(cfg),
        **critic,
        entropy_coef=cfg.entropy_coef,
        kl_coef=cfg.kl_coef if cfg.kl_in == "loss" else 0.0,
        kl_estimator=estimator,
        importance_cap=cfg.importance_cap,
        importance_floor=cfg.importance_floor,
    )
    weigh = getattr(weights, cfg.weights)
    return make_update(
        loss,
        adam,
        weigh=lambda batch: weigh(batch.mask),
        epochs=cfg.epochs,
        minibatches=cfg.minibatches,
        microbatches=cfg.microbatches,
        stop=None if cfg.target_kl is None else ppo.target_kl(cfg.target_kl),
    )
