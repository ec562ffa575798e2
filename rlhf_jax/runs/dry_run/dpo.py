"""The plan of experiments/dpo.py."""

from typing import Any

import jax

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats
from rlhf_jax.model import cost, heads, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs import judged
from rlhf_jax.runs.dry_run.given import adapted, base, both, trainer
from rlhf_jax.runs.dry_run.plan import Plan
from rlhf_jax.runs.dry_run.reckon import backward, counted, device_rows, mesh_of, read_model, trained


def plan(cfg: Any, kind: str, texts: int, reference: bool) -> Plan:
    """The plan for losses of "pairs" or of "verdicts" (single responses) that read `texts` responses a row, with or without a
    reference. Responses are reckoned at the full window: how long they are is only known once they are encoded."""
    found, mesh, notes = read_model(cfg.model, cfg.compute), mesh_of(cfg), adapted(cfg)
    model = found.cfg

    def forward(model: ModelConfig) -> Any:
        def logprobs(params: Any, tokens: jax.Array, length: jax.Array) -> Any:
            sizes: dict[str, Any] = {"window": cfg.window - 1, "cfg": model, "chunk": cfg.compute.chunk}
            return heads.policy(params, tokens, length, length, **sizes)[0]

        return logprobs

    specs = base(cfg, transformer.param_specs(model))
    rows = texts * device_rows(cfg.batch // cfg.microbatches, mesh, notes)
    logits = min(cfg.compute.chunk, cfg.window - 1)
    plan = trainer(cfg, specs, model, mesh, backward(forward, model, *both(model, specs, cfg, rows), logits))
    if reference and cfg.reference_every:
        plan["held"]["reference that moves"] = cost.device_bytes(trained(model, specs, cfg.lora)[0], mesh)
    count = counted(cfg.comparisons, cfg, notes, lambda path: rows_of(path, cfg, kind))
    once = cost.trunk_flops(model, texts * cfg.batch, cfg.window, cfg.window)
    once += cost.head_flops(model, texts * cfg.batch * (cfg.window - 1))
    update = cost.training_flops(model, texts * cfg.batch, cfg.window, cfg.window - 1, frozen=bool(cfg.lora.rank))
    return Plan(
        models={found.base: model},
        mesh=cfg.mesh,
        **plan,
        step=f"{cfg.batch} {kind}, {texts} x {cfg.window} tokens each",
        steps=None if count is None else max(round(cfg.epochs * count / cfg.batch), 1),
        flops=({"log-probabilities of the reference": once} if reference else {}) | {"update": update},
        notes=tuple(notes),
    )


def rows_of(path: str, cfg: Any, kind: str) -> list[Any]:
    """The records that become rows of training, before those too long for the window are left out."""
    try:
        found = formats.load(path, cfg.format)[0]
    except UserError:
        if kind == "pairs":
            raise
        return judged.of_axes(formats.load_ratings(path, cfg.format)[0], cfg.axes)
    pairs = judged.pairs(judged.of_axes(found, cfg.axes), cfg.judgements)
    kept = [pair for pair in pairs if not (pair.tie and cfg.ties == "drop")]
    return kept if kind == "pairs" else [pair for pair in kept for _ in range(2)]
