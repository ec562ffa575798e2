"""`--dry-run`: what a run would take, told from the configuration and from config.json alone.

No weights are read, nothing is compiled or trained, and the mesh may have more devices than this machine. Parameters,
optimizer state, gradients and cache are exact by shape and sharding rule; activations are what `jax.vjp` would keep
(`model.cost`), their share of each device by its rows alone, so an upper bound where `tensor` cuts them too. The scripts keep
what they opened alive beside the training state, which an update donates: both are counted, and what a compiler adds or
saves is not.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.model import cost, heads, hf, quantised, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.cost import Specs
from rlhf_jax.runs import judged, models
from rlhf_jax.runs.plan import Plan, result, text
from rlhf_jax.runs.reckon import (
    Found,
    add,
    backward,
    counted,
    device_rows,
    gradients,
    mesh_of,
    read_model,
    same_size,
    state,
    trained,
)

SCORES = 3
"""Copies of a layer's attention scores at one time, f32: products, masked, their softmax."""


def show(plan: Plan) -> dict[str, Any]:
    """Print the plan; the same as plain numbers."""
    print(text(plan))
    return result(plan)


def sft(cfg: Any) -> Plan:
    """The plan of experiments/sft.py."""
    found, mesh, notes = read_model(cfg.model, cfg.compute), mesh_of(cfg), adapted(cfg)
    model = found.cfg

    def forward(model: ModelConfig) -> Any:
        def logprobs(params: Any, tokens: jax.Array, length: jax.Array) -> Any:
            states = transformer.hidden(params, tokens, length, cfg=model)[:, :-1]
            return heads.token_logprobs(params, states, tokens[:, 1:], cfg=model, chunk=cfg.compute.chunk)[0]

        return logprobs

    specs = base(cfg, transformer.param_specs(model))
    rows = device_rows(cfg.batch // cfg.microbatches, mesh, notes)
    count, logits = demonstrations(cfg, notes), min(cfg.compute.chunk, cfg.window - 1)
    if cfg.pack:
        notes.append("how many rows demonstrations are packed into, and so the steps, is told once they are encoded")
    return Plan(
        models={found.base: model},
        mesh=cfg.mesh,
        **trainer(cfg, specs, model, mesh, backward(forward, model, *both(model, specs, cfg, rows), logits)),
        step=f"{cfg.batch} {'rows' if cfg.pack else 'demonstrations'} of {cfg.window} tokens",
        steps=None if count is None or cfg.pack else max(round(cfg.epochs * count / cfg.batch), 1),
        flops={"update": cost.training_flops(model, cfg.batch, cfg.window, cfg.window - 1, frozen=bool(cfg.lora.rank))},
        notes=tuple(notes),
    )


def reward_model(cfg: Any) -> Plan:
    """The plan of experiments/reward_model.py."""
    found, mesh, notes = read_model(cfg.model, cfg.compute), mesh_of(cfg), adapted(cfg)
    model = found.cfg if found.cfg.axes else hf.classifier(found.cfg, max(len(cfg.axes), 1), cfg.axes)
    kind = judged.kind_by_name(cfg.loss)

    def forward(model: ModelConfig) -> Any:
        return lambda params, tokens, length: heads.reward(params, tokens, length, cfg=model)

    specs = base(cfg, transformer.param_specs(model))
    count, texts = rows_judged(cfg, kind, notes)
    rows = texts * device_rows(cfg.batch // cfg.microbatches, mesh, notes)
    return Plan(
        models={found.base: model},
        mesh=cfg.mesh,
        **trainer(cfg, specs, model, mesh, backward(forward, model, *both(model, specs, cfg, rows))),
        step=f"{cfg.batch} {kind}, {texts} x {cfg.window} tokens each",
        steps=None if count is None else max(round(cfg.epochs * count / cfg.batch), 1),
        flops={"update": cost.training_flops(model, texts * cfg.batch, cfg.window, frozen=bool(cfg.lora.rank))},
        notes=tuple(notes),
    )


def base(cfg: Any, specs: Specs) -> Specs:
    """The parameters of an opened model, its matrices held as `compute.base` says."""
    return quantised.specs(specs, cfg.compute.base)


def both(model: ModelConfig, specs: Specs, cfg: Any, rows: int) -> tuple[tuple[Specs, Specs], int, int]:
    """What `backward` asks of a model that is trained alone."""
    return trained(model, specs, cfg.lora), rows, cfg.window


def trainer(cfg: Any, specs: Specs, model: ModelConfig, mesh: AbstractMesh, activations: dict[str, int]) -> Any:
    """Memory of a script that trains one model: `held` and `phases` of its plan."""
    own, frozen = trained(model, specs, cfg.lora)
    held = {"model as it was opened": cost.device_bytes({**specs, **own, **frozen}, mesh)} | state("model", own, mesh)
    return {"held": held, "phases": {"update": gradients(own, mesh, cfg.microbatches) | activations}}


def adapted(cfg: Any) -> list[str]:
    """A first note, of what is trained."""
    if not cfg.lora.rank:
        return []
    return [f"an adapter of rank {cfg.lora.rank} is trained; its own operations, some hundredths, are not counted"]


def demonstrations(cfg: Any, notes: list[str]) -> int | None:
    """How many demonstrations the file holds for training, before those too long for the window are left out."""
    return counted(cfg.demonstrations, cfg, notes, lambda path: formats.load_demonstrations(path, cfg.format)[0])


def rows_judged(cfg: Any, kind: str, notes: list[str]) -> tuple[int | None, int]:
    """How many training rows the file makes, before those too long for the window are left out; and texts a row, for rankings
    the most that the file has, or three where it is not here."""
    largest = [1 if kind == "ratings" else 2 if kind == "pairs" else 3]

    def load(path: str) -> list[Any]:
        if kind == "ratings":
            return judged.of_axes(formats.load_ratings(path, cfg.format)[0], cfg.axes)
        comparisons = judged.of_axes(formats.load(path, cfg.format)[0], cfg.axes)
        if kind == "rankings":
            largest.append(max(len(comparison.responses) for comparison in comparisons))
            return comparisons
        return [pair for pair in judged.pairs(comparisons, cfg.judgements) if not (pair.tie and cfg.ties == "drop")]

    return counted(cfg.comparisons, cfg, notes, load), largest[-1]


def ppo(cfg: Any) -> Plan:
    """The plan of experiments/ppo.py. A reward model that is yet to be made is taken to have the policy's size: an adapter on
    its base where adapters are trained, else a model of its own."""
    found, mesh, notes = read_model(cfg.policy, cfg.compute), mesh_of(cfg), adapted(cfg)
    model, specs = found.cfg, base(cfg, transformer.param_specs(found.cfg))
    judges = {name: judge(part.model, found, cfg, notes) for name, part in cfg.rewards.items() if part.model}
    critic = value_start(cfg, found, judges, notes)
    P, R, T = cfg.prompt_window, cfg.response_window, cfg.prompt_window + cfg.response_window
    rows = device_rows(cfg.rows // (cfg.ppo.minibatches * cfg.ppo.microbatches), mesh, notes)

    def policy(model: ModelConfig) -> Any:
        def logprobs(params: Any, tokens: jax.Array, length: jax.Array) -> Any:
            return heads.policy(params, tokens, length, length, window=R, cfg=model, chunk=cfg.compute.chunk)[0]

        return logprobs

    def value(model: ModelConfig) -> Any:
        return lambda params, tokens, length: heads.value(params, tokens, length, length, window=R, cfg=model)

    roles = {
        "policy": trained(model, specs, cfg.lora),
        "value model": trained(critic.cfg, base(cfg, cost.value_specs(critic.cfg)), cfg.lora),
    }
    if cfg.value == "shared":
        head = {path: spec for path, spec in cost.value_specs(critic.cfg).items() if path in models.HEADS}
        roles["value model"] = head, {}
    bases = {each.base: base(cfg, transformer.param_specs(each.cfg)) for each in (critic, *judges.values(), found)}
    held = {f"{name} as it was opened": cost.device_bytes(each, mesh) for name, each in bases.items()}
    adapters = [each.adapter for each in judges.values()] + [own for own, _ in roles.values() if cfg.lora.rank]
    if any(adapters):
        held["adapters as they were opened"] = sum(cost.device_bytes(each, mesh) for each in adapters)
    update: dict[str, int] = {}
    for name, (own, _) in roles.items():
        held |= state(name, own, mesh)
        add(update, gradients(own, mesh, cfg.ppo.microbatches))
    add(update, backward(policy, model, roles["policy"], rows, T, min(cfg.compute.chunk, R)))
    if cfg.value != "shared":
        add(update, backward(value, critic.cfg, roles["value model"], rows, T))

    notes.append("sampling and rewards are reckoned at full windows: responses that end early cost less")
    steps = cfg.ppo.epochs * cfg.ppo.minibatches
    return Plan(
        models={found.base: model} | {part.base: part.cfg for part in judges.values() if part.base != found.base},
        mesh=cfg.mesh,
        held=held,
        phases=sampling(cfg, model, {**specs, **roles["policy"][0]}, mesh) | {"update": update},
        step=f"an iteration: {cfg.rows} responses of {R} tokens to prompts of {P}, {steps} optimizer steps",
        steps=cfg.iterations,
        flops=ppo_flops(cfg, model, critic.cfg, {name: each.cfg for name, each in judges.items()}),
        notes=tuple(notes),
    )


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
    return {"prefill": both | {"attention scores of a layer": scores}, "decoding": both | again}


def value_start(cfg: Any, policy: Found, judges: dict[str, Found], notes: list[str]) -> Found:
    """Where the value model starts, as `value` says."""
    if cfg.value in ("policy", "shared"):
        return policy
    if cfg.value != "reward":
        return judge(cfg.value, policy, cfg, notes)
    if not judges:
        raise UserError("value: reward needs a reward model among the rewards; set value: policy")
    return next(iter(judges.values()))


def judge(name: str, policy: Found, cfg: Any, notes: list[str]) -> Found:
    """The reward or value model of that name; where its folder is yet to be made, one of the policy's size."""
    found = same_size(name, policy, cfg, notes)
    return found if found.cfg.axes else found._replace(cfg=hf.classifier(found.cfg, 1))


def ppo_flops(cfg: Any, model: ModelConfig, critic: ModelConfig, judges: dict[str, ModelConfig]) -> dict[str, int]:
    """Operations of an iteration, by part."""
    P, R, T = cfg.prompt_window, cfg.response_window, cfg.prompt_window + cfg.response_window
    frozen, shared = bool(cfg.lora.rank), cfg.value == "shared"
    once = cost.trunk_flops(model, cfg.rows, T, T) + cost.head_flops(model, cfg.rows * R)
    windows = {name: cfg.rewards[name].window or T + 1 for name in judges}
    update = cost.training_flops(model, cfg.rows, T, R, frozen=frozen)
    if not shared:
        update += cost.training_flops(critic, cfg.rows, T, frozen=frozen)
    return {
        "sampling": cost.sampling_flops(model, cfg.prompts_per_iteration, cfg.rows, P, R),
        "log-probabilities of policy and reference": 2 * once,
        "values": cost.trunk_flops(critic, cfg.rows, T, T),
        "rewards": sum(cost.trunk_flops(each, cfg.rows, windows[name], windows[name]) for name, each in judges.items()),
        "update": cfg.ppo.epochs * update,
    }
