"""GRPO and its kin on a reward, without a critic: a Hugging Face policy in, an aligned one out.

python experiments/grpo.py --config experiments/configs/grpo.yaml --grpo.advantage rloo --grpo.policy_loss gspo
"""

import time
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
from grpo_parts import build_advantage, build_forward, build_greedy, build_targets
from ppo_parts import build_collect, build_reward, build_show, build_update, check, check_functions, open_policy

from rlhf_jax.algorithms import group, rollout
from rlhf_jax.algorithms.update import summarise
from rlhf_jax.generate import engine
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import kl
from rlhf_jax.runs import config, log, models, report, session, settings
from rlhf_jax.runs.dry_run import grpo as dry_run
from rlhf_jax.runs.grpo_settings import GRPO
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling, TrainState, overlay

GROUPED = ("grpo", "grpo_batch_std", "dr_grpo", "rloo", "reinforce_plus_plus_baseline", "opo", "pass_at_k")
"""Advantages that compare responses to the same prompt, so that one alone would teach nothing."""


@dataclass(frozen=True)
class Experiment:
    """One run of a critic-free policy gradient."""

    policy: str
    """Folder or hub name of the model to align; it is the reference too."""
    prompts: str
    """File of prompts; its other columns reach reward functions."""
    rewards: dict[str, Reward]
    """The parts of the reward, by name; their weighted sum is the score."""
    out: str = "runs/grpo"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the prompts' file, where its keys do not tell."""
    seed: int = 0
    """Decides prompts, samples and minibatches."""
    iterations: int = 100
    """Rollouts, each followed by an update."""
    prompts_per_iteration: int = 16
    """Prompts of a rollout."""
    samples_per_prompt: int = 8
    """Responses to each of them: the group that they are compared in."""
    prompt_window: int = 64
    """Tokens of a prompt at most."""
    long_prompts: str = "drop"
    """What happens to longer prompts: "drop", "truncate" or "refuse"."""
    response_window: int = 64
    """Tokens of a response at most."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    grpo: GRPO = GRPO()
    lora: Lora = Lora()
    optimizer: settings.Optimizer = settings.Optimizer()
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
        check(self, self.grpo, "grpo")
        least = self.grpo.k if self.grpo.advantage == "pass_at_k" else 2
        config.check(
            self.grpo.advantage not in GROUPED or self.samples_per_prompt >= least,
            f"samples_per_prompt must be at least {least} for {self.grpo.advantage}, which compares them; got "
            f"{self.samples_per_prompt}",
        )

    @property
    def rows(self) -> int:
        """B: responses an iteration."""
        return self.prompts_per_iteration * self.samples_per_prompt


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the last iteration's metrics, and under "folder" where the aligned model lies."""
    check_functions(cfg, cfg.grpo)
    advantage = build_advantage(cfg)
    if cfg.dry_run:
        return dry_run.plan(cfg).show()
    # old and new log-probabilities by one forward of one shape, so that the first ratio is 1
    rows = cfg.rows // (cfg.grpo.minibatches * cfg.grpo.microbatches)
    mesh = settings.make_mesh(cfg.mesh, rows)
    bases: models.Bases = {}
    opened, tokenizer, prompts = open_policy(cfg, mesh, bases)
    model, adapter = opened.cfg, models.settings_of(opened, cfg.lora)
    score = build_reward(cfg, mesh, bases)
    own, rest = models.trainable(opened, cfg.lora, jax.random.fold_in(jax.random.key(cfg.seed), 2**31 - 2), mesh)
    trained, frozen = {"policy": own}, {"policy": rest}
    forward, policy_row = build_forward(cfg, model)

    in_reward = cfg.grpo.kl_in == "reward"
    estimator = getattr(kl, cfg.grpo.kl_estimator or ("k1" if in_reward else "k3"))
    adam = settings.optimizer(cfg.optimizer, cfg.iterations * cfg.grpo.epochs * cfg.grpo.minibatches)
    targets, update = build_targets(cfg.grpo, advantage, estimator), build_update(cfg.grpo, forward, estimator, adam)
    policy_forward = jax.jit(rollout.in_chunks(policy_row, rows))
    collect = build_collect(cfg, prompts, model, tokenizer, score, policy_forward)
    greedy = build_greedy(cfg, prompts, model, tokenizer, score) if "greedy" in group.takes(advantage) else None
    group_metrics = jax.jit(group.metrics)
    show = build_show(cfg, prompts, tokenizer, score, model)
    generated = session.compilations(engine.generate)

    run_key, metrics = jax.random.key(cfg.seed), {}
    kept = {
        "train": models.placed(TrainState.create(trained, adam), mesh),
        "reference": own if cfg.grpo.reference_every else {},
    }
    with session.session(cfg, mesh) as current:
        start, kept = session.restore(cfg, current, kept)
        state, reference = kept["train"], kept["reference"] or own
        if start == 0:
            current.run.sample(show(overlay(frozen, trained)["policy"], iteration=0, stage="before"))

        with log.progress(cfg.iterations, start) as advance:
            for iteration in range(start, cfg.iterations):
                began = time.perf_counter()
                key = jax.random.fold_in(run_key, iteration)
                whole = overlay(frozen, state.params)
                experience = collect(whole, overlay(rest, reference), iteration, key)
                baseline = None if greedy is None else greedy(whole["policy"], iteration, key)
                collected = time.perf_counter()
                batch = targets(experience, greedy=baseline)
                state, steps = update(state, batch, jax.random.fold_in(key, 1), frozen)

                metrics = rollout.metrics(experience) | summarise(steps) | {"kl/coef": cfg.grpo.kl_coef}
                metrics |= {name: float(x) for name, x in group_metrics(experience, batch).items()}
                metrics["policy/first_ratio_deviation"] = float(steps["policy/ratio_deviation"][0])
                if baseline is not None:
                    metrics["rollout/greedy_score"] = float(baseline.mean())
                seconds, tokens = time.perf_counter() - began, int(experience.response_length.sum())
                current.run.log(iteration, metrics)
                phases = {"collect": collected - began, "update": seconds - (collected - began)}
                current.run.time(iteration, phases | {"tokens": tokens})
                advance({"reward": metrics["rollout/score"], "kl": metrics["rollout/kl"], "tokens/s": tokens / seconds})

                done = iteration + 1
                if cfg.grpo.reference_every and done % cfg.grpo.reference_every == 0:
                    reference = optax.incremental_update(state.params["policy"], reference, cfg.grpo.reference_share)
                kept = {"train": state, "reference": reference if cfg.grpo.reference_every else {}}
                session.save(cfg, current, done, cfg.iterations, kept)

        final = overlay(frozen, state.params)["policy"]
        current.run.sample(show(final, iteration=cfg.iterations, stage="after"))
    folder = models.save(cfg.out, opened, final, tokenizer, adapter)
    print(f"aligned model: {folder}   report: {report.write(cfg.out)}")
    compiled = {"update": session.compilations(update), "policy": session.compilations(policy_forward)}
    compiled["generate"] = session.compilations(engine.generate) - generated
    return metrics | {"folder": folder, "compilations": compiled}


if __name__ == "__main__":
    config.command(main, Experiment)
