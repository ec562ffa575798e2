"""What the plans share of scripts that train one model on given texts."""

from typing import Any

from jax.sharding import AbstractMesh

from rlhf_jax.model import cost, quantised
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.cost import Specs
from rlhf_jax.runs.dry_run.reckon import gradients, state, trained


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
