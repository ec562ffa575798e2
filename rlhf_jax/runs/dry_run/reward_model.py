"""The plan of experiments/reward_model.py."""

from typing import Any

from rlhf_jax.feedback import formats
from rlhf_jax.model import cost, heads, hf, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs import judged
from rlhf_jax.runs.dry_run.given import adapted, base, both, trainer
from rlhf_jax.runs.dry_run.plan import Plan
from rlhf_jax.runs.dry_run.reckon import backward, counted, device_rows, mesh_of, read_model


def plan(cfg: Any) -> Plan:
    """The plan."""
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
