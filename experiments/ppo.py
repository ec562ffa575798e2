"""PPO on a reward: a Hugging Face policy in, an aligned one out.

python experiments/ppo.py --config experiments/configs/ppo.yaml --seed 1 --ppo.clip 0.1
"""

import time
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ppo_parts import (
    build_collect,
    build_forward,
    build_optimizer,
    build_reward,
    build_show,
    build_targets,
    build_update,
    build_value,
    check,
    check_functions,
    open_policy,
    split_roles,
)

from rlhf_jax.algorithms import ppo, rollout
from rlhf_jax.algorithms.update import summarise
from rlhf_jax.generate import engine
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import kl
from rlhf_jax.runs import config, log, models, report, session, settings
from rlhf_jax.runs.dry_run import ppo as dry_run
from rlhf_jax.runs.ppo_settings import PPO, Reward
from rlhf_jax.types import Sampling, TrainState, overlay


@dataclass(frozen=True)
class Experiment:
    """One PPO run."""

    policy: str
    """Folder or hub name of the model to align; it is the reference too."""
    prompts: str
    """File of prompts; its other columns reach reward functions."""
    rewards: dict[str, Reward]
    """The parts of the reward, by name; their weighted sum is the score."""
    out: str = "runs/ppo"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the prompts' file, where its keys do not tell."""
    value: str = "reward"
    """Where the value model starts: "reward" (the first reward model), "policy", or a folder. "shared": none, but a head on
    the policy's own trunk, which then learns from both losses."""
    seed: int = 0
    """Decides prompts, samples and minibatches."""
    iterations: int = 100
    """Rollouts, each followed by an update."""
    prompts_per_iteration: int = 32
    """Prompts of a rollout."""
    samples_per_prompt: int = 4
    """Responses to each of them."""
    prompt_window: int = 64
    """Tokens of a prompt at most."""
    long_prompts: str = "drop"
    """What happens to longer prompts: "drop", "truncate" or "refuse"."""
    response_window: int = 64
    """Tokens of a response at most."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))
    ppo: PPO = PPO()
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
        check(self, self.ppo, "ppo")

    @property
    def rows(self) -> int:
        """B: responses an iteration."""
        return self.prompts_per_iteration * self.samples_per_prompt


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the last iteration's metrics, and under "folder" where the aligned model lies."""
    check_functions(cfg, cfg.ppo)
    if cfg.dry_run:
        return dry_run.plan(cfg).show()
    # old and new log-probabilities by one forward of one shape, so that the first ratio is 1
    rows = cfg.rows // (cfg.ppo.minibatches * cfg.ppo.microbatches)
    mesh = settings.make_mesh(cfg.mesh, rows)
    bases: models.Bases = {}
    opened, tokenizer, prompts = open_policy(cfg, mesh, bases)
    model, adapter = opened.cfg, models.settings_of(opened, cfg.lora)
    score = build_reward(cfg, mesh, bases)
    critic = build_value(cfg, opened, tokenizer, mesh, bases)
    trained, frozen = split_roles(cfg, opened, critic, mesh)
    forward, policy_row, value_row = build_forward(cfg, model, critic.cfg)

    in_reward = cfg.ppo.kl_in == "reward"
    estimator = getattr(kl, cfg.ppo.kl_estimator or ("k1" if in_reward else "k2"))
    adam = build_optimizer(cfg)
    targets, update = build_targets(cfg.ppo, estimator), build_update(cfg.ppo, forward, estimator, adam)
    policy_forward = jax.jit(rollout.in_chunks(policy_row, rows))
    value_forward = jax.jit(rollout.in_chunks(value_row, rows))
    critic_facts = {"value": value_forward, "bootstrap_truncated": cfg.ppo.bootstrap_truncated}
    collect = build_collect(cfg, prompts, model, tokenizer, score, policy_forward, **critic_facts)
    show = build_show(cfg, prompts, tokenizer, score, model)
    generated = session.compilations(engine.generate)

    run_key, metrics = jax.random.key(cfg.seed), {}
    kept = {
        "train": models.placed(TrainState.create(trained, adam), mesh),
        "reference": trained["policy"] if cfg.ppo.reference_every else {},
        "kl_coef": jnp.float32(cfg.ppo.kl_coef),
    }
    with session.session(cfg, mesh) as current:
        start, kept = session.restore(cfg, current, kept)
        state, reference, kl_coef = kept["train"], kept["reference"] or trained["policy"], float(kept["kl_coef"])
        if start == 0:
            current.run.sample(show(overlay(frozen, trained)["policy"], iteration=0, stage="before"))

        with log.progress(cfg.iterations, start) as advance:
            for iteration in range(start, cfg.iterations):
                began = time.perf_counter()
                key = jax.random.fold_in(run_key, iteration)
                ref_params = overlay(frozen["policy"], reference)
                experience = collect(overlay(frozen, state.params), ref_params, iteration, key)
                collected = time.perf_counter()
                batch = targets(experience, kl_coef=kl_coef if in_reward else 0.0)
                state, steps = update(state, batch, jax.random.fold_in(key, 1), frozen)

                metrics = rollout.metrics(experience) | summarise(steps) | {"kl/coef": kl_coef}
                metrics["policy/first_ratio_deviation"] = float(steps["policy/ratio_deviation"][0])
                explained = ppo.explained_variance(batch.values, batch.returns, batch.mask)
                metrics["value/explained_variance"] = float(explained)
                seconds, tokens = time.perf_counter() - began, int(experience.response_length.sum())
                current.run.log(iteration, metrics)
                phases = {"collect": collected - began, "update": seconds - (collected - began)}
                current.run.time(iteration, phases | {"tokens": tokens})
                advance({"reward": metrics["rollout/score"], "kl": metrics["rollout/kl"], "tokens/s": tokens / seconds})

                if cfg.ppo.adaptive_kl_target is not None:
                    target, horizon = cfg.ppo.adaptive_kl_target, cfg.ppo.adaptive_kl_horizon
                    kl_coef = kl.adapt(kl_coef, metrics["rollout/kl"], target=target, horizon=horizon, samples=cfg.rows)
                    kl_coef = float(np.float32(kl_coef))  # as checkpoints keep it, so that a resumed run is the same
                done = iteration + 1
                if cfg.ppo.reference_every and done % cfg.ppo.reference_every == 0:
                    reference = optax.incremental_update(state.params["policy"], reference, cfg.ppo.reference_share)
                kept = {"train": state, "reference": reference if cfg.ppo.reference_every else {}}
                kept["kl_coef"] = jnp.float32(kl_coef)
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
