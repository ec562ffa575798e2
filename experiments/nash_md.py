"""Nash-MD: the policy learns to win against a mixture of itself and the reference, by policy gradient.

python experiments/nash_md.py --config experiments/configs/nash_md.yaml --policy MODEL --prompts prompts.jsonl
"""

import functools
import time
from dataclasses import dataclass, field
from typing import Any

import jax
from online_parts import build_collect, build_contest, build_forward
from ppo_parts import bound, build_reward, build_show, check_functions, named, open_policy

from rlhf_jax.algorithms import nash, rollout
from rlhf_jax.algorithms.update import check_division, make_update, summarise
from rlhf_jax.generate import engine
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import nash as objectives
from rlhf_jax.runs import config, log, models, report, session, settings
from rlhf_jax.runs.dry_run import nash_md as dry_run
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling, TrainState, overlay


@dataclass(frozen=True)
class Experiment:
    """One run of Nash-MD."""

    policy: str
    """Folder or hub name of the model to align; it is the reference too."""
    prompts: str
    """File of prompts; its other columns reach reward functions."""
    rewards: dict[str, Reward]
    """The parts of the reward, by name; the judge prefers the response with the higher weighted sum."""
    out: str = "runs/nash_md"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the prompts' file, where its keys do not tell."""
    mixture: float = 0.125
    """The reference's share of the opponent: 0 is self-play, 1 plays the reference; its paper's best is 0.125, TRL's 0.5."""
    loss: str = "nash_md"
    """nash_md (the paper's), nash_md_token (TRL's: each token has its own KL alone), or "file.py:function" of yours."""
    beta: float = 0.1
    """The paper's τ: nats of KL to the reference against the probability of winning; its best is 0.008, TRL's default 0.1."""
    judge_temperature: float = 1.0
    """The probability of winning is σ(difference of scores / temperature); 0: 1 for the higher score, ½ for equal ones."""
    missing_eos_penalty: float | None = None
    """The score of a response cut at the window; None leaves it its own."""
    seed: int = 0
    """Decides prompts, samples and minibatches."""
    iterations: int = 100
    """Rollouts, each followed by an update."""
    prompts_per_iteration: int = 32
    """Prompts of a rollout: one response of the policy and one of the opponent to each."""
    minibatches: int = 1
    """Optimizer steps an iteration; from the second on the policy is no longer quite the one that sampled."""
    microbatches: int = 1
    """Pieces a minibatch is cut into to save memory; gradients do not depend on it."""
    prompt_window: int = 64
    """Tokens of a prompt at most."""
    long_prompts: str = "drop"
    """What happens to longer prompts: "drop", "truncate" or "refuse"."""
    response_window: int = 64
    """Tokens of a response at most."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    lora: Lora = Lora()
    optimizer: settings.Optimizer = settings.Optimizer(lr=5e-7, schedule="linear", warmup=0.1, eps=1e-8)
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
        counts = ("iterations", "prompts_per_iteration", "minibatches", "microbatches", "prompt_window")
        for name in (*counts, "response_window", "keep"):
            config.at_least(name, getattr(self, name), 1)
        for name in ("seed", "save_every", "show", "beta", "judge_temperature"):
            config.non_negative(name, getattr(self, name))
        config.fraction("mixture", self.mixture)
        config.choice("long_prompts", self.long_prompts, ("drop", "truncate", "refuse"))
        config.check(bool(self.rewards), "rewards must name a part, as in rewards: {helpful: {model: FOLDER}}")
        config.check(
            not self.sampling.truncates,
            "sampling must be at a temperature above 0, without top_k, top_p and min_p: a policy gradient is of the "
            "distribution that is sampled",
        )
        check_division(self.prompts_per_iteration, self.minibatches, self.microbatches)
        settings.check_base(self.compute, self.lora.rank)

    # what rollouts are called elsewhere
    samples_per_prompt = property(lambda self: 1)
    rows = property(lambda self: 2 * self.prompts_per_iteration)


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the last iteration's metrics, and under "folder" where the aligned model lies."""
    objective = bound(named(cfg.loss, "loss", objectives, objectives.LOSSES), cfg, ("beta",))
    check_functions(cfg)
    if cfg.dry_run:
        return dry_run.plan(cfg).show()
    rows = cfg.prompts_per_iteration // (cfg.minibatches * cfg.microbatches)
    mesh = settings.make_mesh(cfg.mesh, rows)
    bases: models.Bases = {}
    opened, tokenizer, prompts = open_policy(cfg, mesh, bases)
    model, adapter = opened.cfg, models.settings_of(opened, cfg.lora)
    score = build_reward(cfg, mesh, bases)
    trained, frozen = models.trainable(opened, cfg.lora, jax.random.fold_in(jax.random.key(cfg.seed), 2**31 - 2), mesh)
    forward, policy_row = build_forward(cfg, model)
    loss = functools.partial(nash.loss, forward=forward, objective=objective)
    adam = settings.optimizer(cfg.optimizer, cfg.iterations * cfg.minibatches)
    update = make_update(loss, adam, weigh=nash.weigh, minibatches=cfg.minibatches, microbatches=cfg.microbatches)
    settled: dict[str, Any] = {"temperature": cfg.judge_temperature, "missing_eos_penalty": cfg.missing_eos_penalty}
    judge, told = jax.jit(functools.partial(nash.judge, **settled)), jax.jit(nash.told)
    policy_forward = jax.jit(rollout.in_chunks(policy_row, rows))
    collect = build_collect(cfg, prompts, model, tokenizer, score, policy_forward, build_contest)
    show = build_show(cfg, prompts, tokenizer, score, model)
    samplers = {"generate": engine.generate, "mixture": engine.generate_mixture}
    before = {name: session.compilations(function) for name, function in samplers.items()}

    run_key, metrics, begun = jax.random.key(cfg.seed), {}, overlay(frozen, trained)
    state = models.placed(TrainState.create(trained, adam), mesh)
    with session.session(cfg, mesh) as current:
        start, state = session.restore(cfg, current, state)
        if start == 0:
            current.run.sample(show(begun, iteration=0, stage="before"))

        with log.progress(cfg.iterations, start) as advance:
            for iteration in range(start, cfg.iterations):
                began = time.perf_counter()
                key = jax.random.fold_in(run_key, iteration)
                experience = collect(overlay(frozen, state.params), begun, iteration, key)
                collected = time.perf_counter()
                state, steps = update(state, judge(experience), jax.random.fold_in(key, 1), frozen)

                # what the mixture wrote says nothing of the policy
                metrics = rollout.metrics(jax.tree.map(lambda x: x[::2], experience)) | summarise(steps)
                metrics |= {name: float(x) for name, x in told(experience).items()}
                seconds, tokens = time.perf_counter() - began, int(experience.response_length.sum())
                current.run.log(iteration, metrics)
                phases = {"collect": collected - began, "update": seconds - (collected - began)}
                current.run.time(iteration, phases | {"tokens": tokens})
                advance(
                    {"wins": metrics["nash/probability"], "kl": metrics["rollout/kl"], "tokens/s": tokens / seconds}
                )
                session.save(cfg, current, iteration + 1, cfg.iterations, state)

        final = overlay(frozen, state.params)
        current.run.sample(show(final, iteration=cfg.iterations, stage="after"))
    folder = models.save(cfg.out, opened, final, tokenizer, adapter)
    print(f"aligned model: {folder}   report: {report.write(cfg.out)}")
    compiled = {"update": session.compilations(update), "policy": session.compilations(policy_forward)}
    compiled |= {name: session.compilations(function) - before[name] for name, function in samplers.items()}
    return metrics | {"folder": folder, "compilations": compiled}


if __name__ == "__main__":
    config.command(main, Experiment)
