"""On-policy distillation (GKD): a student learns from a teacher's distribution on its own samples, on given texts, or on both.

python experiments/distill.py --config experiments/configs/distill.yaml --student SMALL --teacher LARGE --prompts prompts.jsonl
"""

import functools
import time
from dataclasses import dataclass, field
from typing import Any

import jax
from distill_parts import build_divergence, build_read, build_sample, build_samples, open_teacher
from generate import load_prompts
from ppo_parts import check_samples

from rlhf_jax.algorithms import distill
from rlhf_jax.algorithms.update import check_division, make_update, summarise
from rlhf_jax.generate import engine
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import weights
from rlhf_jax.runs import config, log, models, report, session, settings
from rlhf_jax.runs.dry_run import distill as dry_run
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling, TrainState, overlay


@dataclass(frozen=True)
class Experiment:
    """One run of distillation."""

    student: str
    """Folder or hub name of the model that learns."""
    teacher: str
    """Folder or hub name of the model that it learns from; both must have one vocabulary."""
    prompts: str
    """File of prompts that the student answers."""
    demonstrations: str = ""
    """File of prompts with given responses; needed where on_policy is below 1."""
    out: str = "runs/distill"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of both files, where their keys do not tell."""
    seed: int = 0
    """Decides which texts an iteration learns from, and every sample."""
    iterations: int = 100
    """Optimizer steps, each on a batch of its own."""
    batch: int = 32
    """Texts an iteration."""
    microbatches: int = 1
    """Pieces a batch is cut into to save memory; gradients do not depend on it."""
    on_policy: float = 1.0
    """λ: how often an iteration learns from the student's own samples instead of given responses."""
    divergence: str = "jsd"
    """A function of rlhf_jax.objectives.distillation, or "file.py:function" of yours."""
    beta: float = 0.5
    """Of jsd: 0 is the forward KL, 1 the reverse KL."""
    temperature: float = 1.0
    """Divides the logits of both models before they are compared."""
    weights: str = "sequence_mean"
    """How tokens count: sequence_mean (the paper's) or token_mean."""
    prompt_window: int = 64
    """Tokens of a prompt at most."""
    long_prompts: str = "drop"
    """What happens to longer prompts: "drop", "truncate" or "refuse"."""
    response_window: int = 64
    """Tokens of a response at most; longer given ones are dropped and counted."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    rewards: dict[str, Reward] = field(default_factory=dict)
    """What the report scores samples by, by name; nothing is learnt from it."""
    lora: Lora = Lora()
    optimizer: settings.Optimizer = settings.Optimizer(lr=1e-5, schedule="cosine", warmup=0.03, eps=1e-8)
    compute: settings.Compute = settings.Compute()
    mesh: settings.Layout = settings.Layout()
    save_every: int = 10
    """Iterations between checkpoints; 0 saves none."""
    keep: int = 2
    """Checkpoints kept."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    dry_run: bool = False
    """Only tell what the run would take: shapes, memory, steps, FLOPs; --dry-run is short for it."""
    show: int = 20
    """Prompts answered before and after, for the report."""

    def __post_init__(self) -> None:
        check_samples(self)
        for name in ("batch", "microbatches"):
            config.at_least(name, getattr(self, name), 1)
        for name in ("on_policy", "beta"):
            config.fraction(name, getattr(self, name))
        config.positive("temperature", self.temperature)
        config.choice("weights", self.weights, ("sequence_mean", "token_mean"))
        config.check(
            self.on_policy == 1 or bool(self.demonstrations),
            f"demonstrations must name a file where on_policy is below 1 (it is {self.on_policy:g})",
        )
        check_division(self.batch, 1, self.microbatches)
        settings.check_base(self.compute, self.lora.rank)

    # what a batch of samples is called where rollouts are sampled and scored
    rows = prompts_per_iteration = property(lambda self: self.batch)
    samples_per_prompt = property(lambda self: 1)


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the last iteration's metrics, and under "folder" where the student lies."""
    if cfg.dry_run:
        return dry_run.plan(cfg).show()
    divergence = build_divergence(cfg)
    mesh = settings.make_mesh(cfg.mesh, cfg.batch // cfg.microbatches)
    bases: models.Bases = {}
    opened, tokenizer = session.language_model(cfg.student, cfg.compute, mesh, bases)
    teacher = open_teacher(cfg, opened, tokenizer, mesh, bases)
    model, adapter = opened.cfg, models.settings_of(opened, cfg.lora)
    prompts = load_prompts(
        cfg.prompts, tokenizer, window=cfg.prompt_window, long=cfg.long_prompts, format=cfg.format, root=cfg.data
    )
    engine.check(prompts.tokens, prompts.length, window=cfg.response_window, cfg=model, stop=cfg.sampling.stop)
    read: Any = build_read(cfg, tokenizer, model.eos_ids) if cfg.on_policy < 1 else None
    own, rest = models.trainable(opened, cfg.lora, jax.random.fold_in(jax.random.key(cfg.seed), 2**31 - 2), mesh)
    trained, frozen = {"student": own}, {"student": rest, "teacher": teacher.params}

    loss = distill.build_loss(
        window=cfg.response_window,
        cfg=model,
        teacher_cfg=teacher.cfg,
        divergence=divergence,
        temperature=cfg.temperature,
        chunk=cfg.compute.chunk,
    )
    weigh = functools.partial(distill.weigh, window=cfg.response_window, by=getattr(weights, cfg.weights))
    adam = settings.optimizer(cfg.optimizer, cfg.iterations)
    update = make_update(loss, adam, weigh=weigh, microbatches=cfg.microbatches)
    sample = build_sample(cfg, prompts, model)
    show = build_samples(cfg, prompts, tokenizer, model, mesh, bases)
    generated = session.compilations(engine.generate)

    run_key, metrics = jax.random.key(cfg.seed), {}
    is_own, number = distill.turns(cfg.iterations, cfg.on_policy, seed=cfg.seed)
    state = models.placed(TrainState.create(trained, adam), mesh)
    with session.session(cfg, mesh) as current:
        start, state = session.restore(cfg, current, state)
        if start == 0:
            current.run.sample(show(overlay(frozen, trained)["student"], iteration=0, stage="before"))

        with log.progress(cfg.iterations, start) as advance:
            for iteration in range(start, cfg.iterations):
                began = time.perf_counter()
                key = jax.random.fold_in(run_key, iteration)
                metrics = {"distill/own": float(is_own[iteration])}
                if is_own[iteration]:
                    student = overlay(frozen, state.params)["student"]
                    texts, told = sample(student, int(number[iteration]), jax.random.fold_in(key, 0))
                    metrics |= told
                else:
                    texts = read(int(number[iteration]))
                collected = time.perf_counter()
                state, steps = update(state, texts, jax.random.fold_in(key, 1), frozen)
                metrics |= summarise(steps)
                seconds, tokens = time.perf_counter() - began, int(texts.response_length.sum())
                current.run.log(iteration, metrics)
                phases = {"collect": collected - began, "update": seconds - (collected - began)}
                current.run.time(iteration, phases | {"tokens": tokens})
                shown = {name: metrics[f"distill/{name}"] for name in ("loss", "reverse_kl")}
                advance(shown | {"tokens/s": tokens / seconds})
                session.save(cfg, current, iteration + 1, cfg.iterations, state)

        final = overlay(frozen, state.params)["student"]
        current.run.sample(show(final, iteration=cfg.iterations, stage="after"))
    folder = models.save(cfg.out, opened, final, tokenizer, adapter)
    print(f"student: {folder}   report: {report.write(cfg.out)}")
    compiled = {"update": session.compilations(update)}
    compiled["generate"] = session.compilations(engine.generate) - generated
    return metrics | {"folder": folder, "compilations": compiled}


if __name__ == "__main__":
    config.command(main, Experiment)
