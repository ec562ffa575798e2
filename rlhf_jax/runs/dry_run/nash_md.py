"""The plan of experiments/nash_md.py."""

from typing import Any

from rlhf_jax.model import cost
from rlhf_jax.runs.dry_run.plan import Plan
from rlhf_jax.runs.dry_run.reckon import device_rows, mesh_of, state
from rlhf_jax.runs.dry_run.sampled import FULL, READING, asked, opened, policy_update, sampling, scoring_flops


def plan(cfg: Any) -> Plan:
    """The plan."""
    mesh, notes = mesh_of(cfg), list[str]()
    found = asked(cfg, notes)
    model = found.policy.cfg
    G, P, R = cfg.prompts_per_iteration, cfg.prompt_window, cfg.response_window
    rows = device_rows(G // (cfg.minibatches * cfg.microbatches), mesh, notes)

    models = 1 if cfg.mixture in (0, 1) else 2  # that the opponent is made of
    alone = sampling(cfg, model, {**found.specs, **found.own}, mesh)
    twice = {phase: {name: models * size for name, size in parts.items()} for phase, parts in alone.items()}
    twice["prefill"][READING] = alone["prefill"][READING]  # one model reads after the other
    notes.append(FULL)
    update = policy_update(cfg, model, (found.own, found.rest), rows, cfg.microbatches, mesh)
    return Plan(
        models=found.names,
        mesh=cfg.mesh,
        held=opened(cfg, found, mesh) | state("policy", found.own, mesh),
        phases=twice | {"update": update},
        step=f"an iteration: {G} responses of {R} tokens to prompts of {P}, as many of the opponent, {cfg.minibatches} optimizer "
        "steps",
        steps=cfg.iterations,
        flops={
            "sampling": (1 + models) * cost.sampling_flops(model, G, G, P, R),
            **scoring_flops(cfg, found, 2 * G),
            "update": cost.training_flops(model, G, P + R, R, frozen=bool(cfg.lora.rank)),
        },
        notes=tuple(notes),
    )
