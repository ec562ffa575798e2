"""The plan of experiments/distill.py."""

from typing import Any

from rlhf_jax.model import cost, transformer
from rlhf_jax.runs.dry_run.given import adapted, base
from rlhf_jax.runs.dry_run.plan import Plan
from rlhf_jax.runs.dry_run.reckon import device_rows, mesh_of, read_model, state, trained
from rlhf_jax.runs.dry_run.sampled import policy_update, sampling


def plan(cfg: Any) -> Plan:
    """The plan; its memory is that of an iteration on the student's own samples."""
    found, mesh, notes = read_model(cfg.student, cfg.compute), mesh_of(cfg), adapted(cfg)
    teacher = read_model(cfg.teacher, cfg.compute)
    model, specs = found.cfg, base(cfg, transformer.param_specs(found.cfg))
    P, R, T = cfg.prompt_window, cfg.response_window, cfg.prompt_window + cfg.response_window
    rows, chunk = device_rows(cfg.batch // cfg.microbatches, mesh, notes), min(cfg.compute.chunk, R)

    own, rest = trained(model, specs, cfg.lora)
    held = {"student as it was opened": cost.device_bytes({**specs, **own, **rest}, mesh)}
    shared = teacher.base == found.base
    above = {} if shared else base(cfg, transformer.param_specs(teacher.cfg))
    held["teacher"] = cost.device_bytes({**above, **teacher.adapter}, mesh)
    held |= state("student", own, mesh)
    update = policy_update(cfg, model, (own, rest), rows, cfg.microbatches, mesh)
    update["a chunk of the teacher's logits"] = 2 * 4 * rows * chunk * teacher.cfg.vocab_size
    notes.append("sampling is reckoned at full windows: responses that end early cost less")
    if cfg.on_policy < 1:
        notes.append(
            f"of 100 iterations {100 * (1 - cfg.on_policy):.0f} sample nothing: they learn from given responses"
        )
    judged = cost.trunk_flops(teacher.cfg, cfg.batch, T, T) + cost.head_flops(teacher.cfg, cfg.batch * R)
    return Plan(
        models={found.base: model} | ({} if shared else {teacher.base: teacher.cfg}),
        mesh=cfg.mesh,
        held=held,
        phases=sampling(cfg, model, {**specs, **own}, mesh) | {"update": update},
        step=f"an iteration: {cfg.batch} responses of {R} tokens to prompts of {P}, one optimizer step",
        steps=cfg.iterations,
        flops={
            "sampling": round(cfg.on_policy * cost.sampling_flops(model, cfg.batch, cfg.batch, P, R)),
            "teacher": judged,
            "update": cost.training_flops(model, cfg.batch, T, R, frozen=bool(cfg.lora.rank)),
        },
        notes=tuple(notes),
    )
