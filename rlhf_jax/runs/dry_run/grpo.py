"""The plan of experiments/grpo.py: that of ppo.py without a critic. experiments/online_dpo.py has the same."""

from typing import Any

from rlhf_jax.model import cost
from rlhf_jax.runs.dry_run.plan import Plan
from rlhf_jax.runs.dry_run.reckon import device_rows, mesh_of, state
from rlhf_jax.runs.dry_run.sampled import FULL, asked, opened, policy_update, sampling, scoring_flops


def plan(cfg: Any) -> Plan:
    """The plan."""
    mesh, notes = mesh_of(cfg), list[str]()
    found = asked(cfg, notes)
    model = found.policy.cfg
    P, R, T = cfg.prompt_window, cfg.response_window, cfg.prompt_window + cfg.response_window
    rows = device_rows(cfg.rows // (cfg.grpo.minibatches * cfg.grpo.microbatches), mesh, notes)

    notes.append(FULL)
    if cfg.grpo.advantage == "remax":
        notes.append("the greedy response to each prompt, one more, is not counted")
    update = policy_update(cfg, model, (found.own, found.rest), rows, cfg.grpo.microbatches, mesh)
    trains = cost.training_flops(model, cfg.rows, T, R, frozen=bool(cfg.lora.rank))
    return Plan(
        models=found.names,
        mesh=cfg.mesh,
        held=opened(cfg, found, mesh) | state("policy", found.own, mesh),
        phases=sampling(cfg, model, {**found.specs, **found.own}, mesh) | {"update": update},
        step=f"an iteration: {cfg.rows} responses of {R} tokens to prompts of {P}, "
        f"{cfg.grpo.epochs * cfg.grpo.minibatches} optimizer steps",
        steps=cfg.iterations,
        flops={
            "sampling": cost.sampling_flops(model, cfg.prompts_per_iteration, cfg.rows, P, R),
            **scoring_flops(cfg, found, cfg.rows),
            "update": cfg.grpo.epochs * trains,
        },
        notes=tuple(notes),
    )
