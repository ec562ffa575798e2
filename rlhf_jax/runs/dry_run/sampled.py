"""What the plans share of scripts that sample from the policy, score what it wrote, and train on it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rlhf_jax.model import cost, heads, hf, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.cost import Specs
from rlhf_jax.runs.dry_run.given import base
from rlhf_jax.runs.dry_run.reckon import Found, add, backward, gradients, read_model, same_size, trained

SCORES = 3
"""Copies of a layer's attention scores at one time, f32: products, masked, their softmax."""

READING = "attention scores of a layer"
FULL = "sampling and rewards are reckoned at full windows: responses that end early cost less"


class Asked(NamedTuple):
    """The models of a run: the one to align, those that score, and what is trained."""

    policy: Found
    judges: dict[str, Found]
    """By the name of the reward's part."""
    specs: Specs
    """The policy as it was opened;"""
    own: Specs
    """of it and its adapters, what is trained;"""
    rest: Specs
    """and what is not."""

    @property
    def names(self) -> dict[str, ModelConfig]:
        """For `Plan.models`, the one to align first."""
        cfg, name = self.policy.cfg, self.policy.base
        return {name: cfg} | {part.base: part.cfg for part in self.judges.values() if part.base != name}


def asked(cfg: Any, notes: list[str]) -> Asked:
    """What the configuration names. A reward model that is yet to be made is taken to have the policy's size: an adapter on
    its base where adapters are trained, else a model of its own."""
    policy = read_model(cfg.policy, cfg.compute)
    judges = {name: judge(part.model, policy, cfg, notes) for name, part in cfg.rewards.items() if part.model}
    specs = base(cfg, transformer.param_specs(policy.cfg))
    return Asked(policy, judges, specs, *trained(policy.cfg, specs, cfg.lora))


def judge(name: str, policy: Found, cfg: Any, notes: list[str]) -> Found:
    """The reward or value model of that name; where its folder is yet to be made, one of the policy's size."""
    found = same_size(name, policy, cfg, notes)
    return found if found.cfg.axes else found._replace(cfg=hf.classifier(found.cfg, 1))


def opened(cfg: Any, found: Asked, mesh: AbstractMesh, critic: Found | None = None, others: Specs | None = None) -> Any:
    """Bytes of what was opened: every base once, and the adapters; `critic` is opened too, `others` are its own adapters."""
    models = (*([critic] if critic else []), *found.judges.values(), found.policy)
    bases = {each.base: base(cfg, transformer.param_specs(each.cfg)) for each in models}
    held = {f"{name} as it was opened": cost.device_bytes(each, mesh) for name, each in bases.items()}
    adapters = [each.adapter for each in found.judges.values()]
    adapters += [found.own, *([others] if others else [])] if cfg.lora.rank else []
    if any(adapters):
        held["adapters as they were opened"] = sum(cost.device_bytes(each, mesh) for each in adapters)
    return held


def policy_rows(cfg: Any) -> Any:
    """The differentiated function of a policy, as `reckon.backward` takes it: log-probabilities of a window of responses."""

    def forward(model: ModelConfig) -> Any:
        def logprobs(params: Any, tokens: jax.Array, length: jax.Array) -> Any:
            window = {"window": cfg.response_window, "cfg": model, "chunk": cfg.compute.chunk}
            return heads.policy(params, tokens, length, length, **window)[0]

        return logprobs

    return forward


def policy_update(
    cfg: Any, model: ModelConfig, specs: tuple[Specs, Specs], rows: int, pieces: int, mesh: AbstractMesh
) -> Any:
    """Bytes of the policy's own update: gradients, and the backward pass of `rows` rows; a minibatch is `pieces` of them."""
    window, logits = cfg.prompt_window + cfg.response_window, min(cfg.compute.chunk, cfg.response_window)
    update = gradients(specs[0], mesh, pieces)
    add(update, backward(policy_rows(cfg), model, specs, rows, window, logits))
    return update


def sampling(cfg: Any, model: ModelConfig, specs: Specs, mesh: AbstractMesh) -> dict[str, dict[str, int]]:
    """What sampling needs while it reads the prompts, and while it writes: then their keys and values exist twice, stacked
    and split by layer, as do those of the responses in the layer at work. (What a compiler makes of it, see the tests.)"""
    prompts = cost.device_rows(cfg.prompts_per_iteration, mesh)
    windows = cfg.prompt_window, cfg.response_window
    of_prompts, of_responses = cost.cache_bytes(model, prompts, cfg.samples_per_prompt, *windows)
    layers = {path: spec for path, spec in specs.items() if path.startswith("layers/")}
    both = {
        "keys and values of the prompts": of_prompts,
        "keys and values of the responses": of_responses,
        "layers cast for decoding": cost.device_bytes(layers, mesh, jnp.dtype(model.dtype).itemsize),
    }
    scores = SCORES * 4 * prompts * model.heads * cfg.prompt_window**2
    again = {"those of the prompts, stacked": of_prompts, "those of a layer's responses": of_responses // model.layers}
    return {"prefill": both | {READING: scores}, "decoding": both | again}


def scoring_flops(cfg: Any, found: Asked, rows: int) -> dict[str, int]:
    """Operations of learning what there is to know of `rows` responses."""
    R, T = cfg.response_window, cfg.prompt_window + cfg.response_window
    once = cost.trunk_flops(found.policy.cfg, rows, T, T) + cost.head_flops(found.policy.cfg, rows * R)
    windows = {name: cfg.rewards[name].window or T + 1 for name in found.judges}
    scored = (cost.trunk_flops(each.cfg, rows, windows[name], windows[name]) for name, each in found.judges.items())
    return {"log-probabilities of policy and reference": 2 * once, "rewards": sum(scored)}
