"""The plan of experiments/grpo.py: that of ppo.py without a critic (`runs.dry_run`)."""

from typing import Any

import jax

from rlhf_jax.model import cost, heads, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs.dry_run import base, judge, sampling
from rlhf_jax.runs.plan import Plan
from rlhf_jax.runs.reckon import add, backward, device_rows, gradients, mesh_of, read_model, state, trained


def grpo(cfg: Any) -> Plan:
    """The plan. A reward model that is yet to be made is taken to have the policy's size."""
    found, mesh, notes = read_model(cfg.policy, cfg.compute), mesh_of(cfg), list[str]()
    model, specs = found.cfg, base(cfg, transformer.param_specs(found.cfg))
    judges = {name: judge(part.model, found, cfg, notes) for name, part in cfg.rewards.items() if part.model}
    P, R, T = cfg.prompt_window, cfg.response_window, cfg.prompt_window + cfg.response_window
    rows = device_rows(cfg.rows // (cfg.grpo.minibatches * cfg.grpo.microbatches), mesh, notes)

    def policy(model: ModelConfig) -> Any:
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
    update = gradients(own, mesh, cfg.grpo.microbatches)
    add(update, backward(policy, model, (own, rest), rows, T, min(cfg.compute.chunk, R)))

    notes.append("sampling and rewards are reckoned at full windows: responses that end early cost less")
    if cfg.grpo.advantage == "remax":
        notes.append("the greedy response to each prompt, one more, is not counted")
    once = cost.trunk_flops(model, cfg.rows, T, T) + cost.head_flops(model, cfg.rows * R)
    windows = {name: cfg.rewards[name].window or T + 1 for name in judges}
    scored = (cost.trunk_flops(each.cfg, cfg.rows, windows[name], windows[name]) for name, each in judges.items())
    return Plan(
        models={found.base: model} | {part.base: part.cfg for part in judges.values() if part.base != found.base},
        mesh=cfg.mesh,
        held=held,
        phases=sampling(cfg, model, {**specs, **own}, mesh) | {"update": update},
        step=f"an iteration: {cfg.rows} responses of {R} tokens to prompts of {P}, "
        f"{cfg.grpo.epochs * cfg.grpo.minibatches} optimizer steps",
        steps=cfg.iterations,
        flops={
            "sampling": cost.sampling_flops(model, cfg.prompts_per_iteration, cfg.rows, P, R),
            "log-probabilities of policy and reference": 2 * once,
            "rewards": sum(scored),
            "update": cfg.grpo.epochs * cost.training_flops(model, cfg.rows, T, R, frozen=bool(cfg.lora.rank)),
        },
        notes=tuple(notes),
    )
