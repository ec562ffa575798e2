"""The plan of experiments/ppo.py."""

from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.model import cost, heads
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs import models
from rlhf_jax.runs.dry_run.given import adapted, base
from rlhf_jax.runs.dry_run.plan import Plan
from rlhf_jax.runs.dry_run.reckon import Found, add, backward, device_rows, gradients, mesh_of, state, trained
from rlhf_jax.runs.dry_run.sampled import FULL, Asked, asked, judge, opened, policy_update, sampling, scoring_flops


def plan(cfg: Any) -> Plan:
    """The plan."""
    mesh, notes = mesh_of(cfg), adapted(cfg)
    found = asked(cfg, notes)
    model, critic = found.policy.cfg, value_start(cfg, found, notes)
    P, R, T = cfg.prompt_window, cfg.response_window, cfg.prompt_window + cfg.response_window
    rows = device_rows(cfg.rows // (cfg.ppo.minibatches * cfg.ppo.microbatches), mesh, notes)

    def value(model: ModelConfig) -> Any:
        return lambda params, tokens, length: heads.value(params, tokens, length, length, window=R, cfg=model)

    valued = trained(critic.cfg, base(cfg, cost.value_specs(critic.cfg)), cfg.lora)
    if cfg.value == "shared":
        valued = {path: spec for path, spec in cost.value_specs(critic.cfg).items() if path in models.HEADS}, {}
    held = opened(cfg, found, mesh, critic, valued[0])
    held |= state("policy", found.own, mesh) | state("value model", valued[0], mesh)
    update = policy_update(cfg, model, (found.own, found.rest), rows, cfg.ppo.microbatches, mesh)
    add(update, gradients(valued[0], mesh, cfg.ppo.microbatches))
    if cfg.value != "shared":
        add(update, backward(value, critic.cfg, valued, rows, T))

    notes.append(FULL)
    steps = cfg.ppo.epochs * cfg.ppo.minibatches
    return Plan(
        models=found.names,
        mesh=cfg.mesh,
        held=held,
        phases=sampling(cfg, model, {**found.specs, **found.own}, mesh) | {"update": update},
        step=f"an iteration: {cfg.rows} responses of {R} tokens to prompts of {P}, {steps} optimizer steps",
        steps=cfg.iterations,
        flops=flops(cfg, found, critic.cfg),
        notes=tuple(notes),
    )


def value_start(cfg: Any, found: Asked, notes: list[str]) -> Found:
    """Where the value model starts, as `value` says."""
    if cfg.value in ("policy", "shared"):
        return found.policy
    if cfg.value != "reward":
        return judge(cfg.value, found.policy, cfg, notes)
    if not found.judges:
        raise UserError("value: reward needs a reward model among the rewards; set value: policy")
    return next(iter(found.judges.values()))


def flops(cfg: Any, found: Asked, critic: ModelConfig) -> dict[str, int]:
    """Operations of an iteration, by part."""
    P, R, T = cfg.prompt_window, cfg.response_window, cfg.prompt_window + cfg.response_window
    frozen, model = bool(cfg.lora.rank), found.policy.cfg
    update = cost.training_flops(model, cfg.rows, T, R, frozen=frozen)
    if cfg.value != "shared":
        update += cost.training_flops(critic, cfg.rows, T, frozen=frozen)
    return {
        "sampling": cost.sampling_flops(model, cfg.prompts_per_iteration, cfg.rows, P, R),
        **scoring_flops(cfg, found, cfg.rows),
        "values": cost.trunk_flops(critic, cfg.rows, T, T),
        "update": cfg.ppo.epochs * update,
    }
