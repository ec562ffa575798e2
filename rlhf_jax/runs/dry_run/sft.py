"""The plan of experiments/sft.py."""

from typing import Any

import jax

from rlhf_jax.feedback import formats
from rlhf_jax.model import cost, heads, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs.dry_run.given import adapted, base, both, trainer
from rlhf_jax.runs.dry_run.plan import Plan
from rlhf_jax.runs.dry_run.reckon import backward, counted, device_rows, mesh_of, read_model


def plan(cfg: Any) -> Plan:
    """The plan."""
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


def demonstrations(cfg: Any, notes: list[str]) -> int | None:
    """How many demonstrations the file holds for training, before those too long for the window are left out."""
    return counted(cfg.demonstrations, cfg, notes, lambda path: formats.load_demonstrations(path, cfg.format)[0])
