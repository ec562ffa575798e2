"""The plan of experiments/nash_md.py (`runs.dry_run`)."""

from typing import Any

import jax

from rlhf_jax.model import cost, heads, transformer
from rlhf_jax.runs.dry_run import base, judge, sampling
from rlhf_jax.runs.plan import Plan
from rlhf_jax.runs.reckon import add, backward, device_rows, gradients, mesh_of, read_model, state, trained

SCORES = "attention scores of a layer"


def nash(cfg: Any) -> Plan:
    """The plan. A reward model that is yet to be made is taken to have the policy's size."""
    found, mesh, notes = read_model(cfg.policy, cfg.compute), mesh_of(cfg), list[str]()
    model, specs = found.cfg, base(cfg, transformer.param_specs(found.cfg))
    judges = {name: judge(part.model, found, cfg, notes) for name, part in cfg.rewards.items() if part.model}
    G, P, R = cfg.prompts_per_iteration, cfg.prompt_window, cfg.response_window
    T = P + R
    rows = device_rows(G // (cfg.minibatches * cfg.microbatches), mesh, notes)

    def forward(model: Any) -> Any:
        def logprobs(params: Any, tokens: jax.Array, length: jax.Array) -> Any:
            return heads.policy(params, tokens, length, length, window=R, cfg=model, chunk=cfg.compute.chunk)[0]

        return logprobs

    own, rest = trained(model, specs, cfg.lora)
    bases = {each.base: base(cfg, transformer.param_specs(each.cfg)) for each in (*judges.values(), found)}
    held = {f"{name} as it was opened": cost.device_bytes(each, mesh) for name, each in bases.items()}
    adapters = [each.adapter for each in judges.values()] + ([own] if cfg.lora.rank else [])
    if any(adapters):
        held["adapters as they were opened"] = sum(cost.device_bytes(each, mesh) for each in adapters)
    held |= state("policy", own, mesh)
    update = gradients(own, mesh, cfg.microbatches)
    add(update, backward(forward, model, (own, rest), rows, T, min(cfg.compute.chunk, R)))

    models = 1 if cfg.mixture in (0, 1) else 2  # that the opponent is made of
    alone = sampling(cfg, model, {**specs, **own}, mesh)
    twice = {phase: {name: models * size for name, size in parts.items()} for phase, parts in alone.items()}
    twice["prefill"][SCORES] = alone["prefill"][SCORES]  # one model reads after the other
    notes.append("sampling and rewards are reckoned at full windows: responses that end early cost less")
    once = cost.trunk_flops(model, 2 * G, T, T) + cost.head_flops(model, 2 * G * R)
    windows = {name: cfg.rewards[name].window or T + 1 for name in judges}
    scored = (cost.trunk_flops(each.cfg, 2 * G, windows[name], windows[name]) for name, each in judges.items())
    return Plan(
        models={found.base: model} | {part.base: part.cfg for part in judges.values() if part.base != found.base},
        mesh=cfg.mesh,
        held=held,
        phases=twice | {"update": update},
        step=f"an iteration: {G} responses of {R} tokens to prompts of {P}, as many of the opponent, {cfg.minibatches} optimizer "
        "steps",
        steps=cfg.iterations,
        flops={
            "sampling": (1 + models) * cost.sampling_flops(model, G, G, P, R),
            "log-probabilities of policy and reference": 2 * once,
            "rewards": sum(scored),
            "update": cost.training_flops(model, G, T, R, frozen=bool(cfg.lora.rank)),
        },
        notes=tuple(notes),
    )
