"""A plan of a run and how it is told."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_jax.model import cost, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.runs.settings import Layout

LARGEST = 3
"""Arrays shown."""


@dataclass(frozen=True)
class Plan:
    """What a run would take: bytes on each device, operations of the whole mesh."""

    models: Mapping[str, ModelConfig]
    """By the name that the configuration gives them; the one to be trained first."""
    mesh: Layout
    held: Mapping[str, int]
    """Bytes from beginning to end."""
    phases: Mapping[str, Mapping[str, int]]
    """Bytes on top of these, one phase at a time."""
    step: str
    """What a step is."""
    steps: int | None
    """How many; None where the data are not here to be counted."""
    flops: Mapping[str, int]
    """Operations of a step, by part."""
    notes: tuple[str, ...] = ()

    @property
    def devices(self) -> int:
        """Of the mesh."""
        return self.mesh.data * self.mesh.fsdp * self.mesh.tensor

    @property
    def peak(self) -> int:
        """Bytes on each device in the largest phase."""
        return sum(self.held.values()) + max(sum(parts.values()) for parts in self.phases.values())

    def show(self) -> dict[str, Any]:
        """Print it; the same as plain numbers."""
        print(text(self))
        return result(self)


def result(plan: Plan) -> dict[str, Any]:
    """The plan as plain numbers, as a script's main returns them."""
    first = next(iter(plan.models.values()))
    return {
        "parameters": cost.parameters(transformer.param_specs(first)),
        "held_bytes": dict(plan.held),
        "phase_bytes": {name: dict(parts) for name, parts in plan.phases.items()},
        "peak_bytes": plan.peak,
        "steps": plan.steps,
        "flops_per_step": sum(plan.flops.values()),
    }


def text(plan: Plan) -> str:
    """The plan in words: models, largest arrays, memory a device, steps, operations, and what to know of the figures."""
    lines = ["dry run: no weights are read, nothing is trained"]
    for name, model in plan.models.items():
        lines += described(name, model)
    unit, name = (1e9, "GB of 1e9 bytes") if plan.peak >= 1e9 else (1e6, "MB of 1e6 bytes")
    sizes = f"data {plan.mesh.data} x fsdp {plan.mesh.fsdp} x tensor {plan.mesh.tensor}"
    lines.append(f"memory on each of {plan.devices} device{'s' * (plan.devices > 1)} ({sizes}), {name}:")
    lines += [f"  {size / unit:9.3f}  {what}" for what, size in plan.held.items()]
    for phase, parts in plan.phases.items():
        lines += [f"  {size / unit:9.3f}  {phase}: {what}" for what, size in parts.items()]
    lines.append(f"  {plan.peak / unit:9.3f}  at the most, what a compiler adds or saves left out")
    lines.append(f"steps: {'unknown' if plan.steps is None else f'{plan.steps:,}'}, each {plan.step}")
    total = sum(plan.flops.values())
    each = ", ".join(f"{name} {size:.3g}" for name, size in plan.flops.items())
    all_steps = "" if plan.steps is None else f", {total * plan.steps:.3g} in all"
    lines.append(f"FLOPs a step: {total:.3g}{all_steps} ({each}); formulas: rlhf_jax/model/cost.py")
    return "\n".join([*lines, *plan.notes])


def described(name: str, model: ModelConfig) -> list[str]:
    """A model's size and largest arrays."""
    specs = transformer.param_specs(model)
    kind = f"{model.axes} reward axes" if model.axes else f"vocabulary {model.vocab_size:,}"
    shape = f"{model.family}, {model.layers} layers of width {model.d_model}, {kind}, computed in {model.dtype}"
    largest = sorted(specs, key=lambda path: -math.prod(specs[path].shape))[:LARGEST]
    shown = ", ".join(f"{path} {list(specs[path].shape)}" for path in largest)
    return [f"{name}: {cost.parameters(specs):,} parameters; {shape}", f"  largest arrays: {shown}"]
