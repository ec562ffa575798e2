"""Online DPO and XPO: two samples a prompt from the policy of the moment, judged by a reward, learnt by a preference loss.

python experiments/online_dpo.py --config experiments/configs/online_dpo.yaml --policy MODEL --prompts prompts.jsonl
python experiments/online_dpo.py --config experiments/configs/online_dpo.yaml --loss ipo --exploration 1e-5
"""

import functools
import time
from dataclasses import dataclass, field
from typing import Any

import jax
from dpo_parts import losses_of
from online_parts import build_collect, build_forward
from ppo_parts import build_reward, build_show, check_functions, open_policy

from rlhf_jax.algorithms import offline, online, rollout
from rlhf_jax.algorithms.update import check_division, make_update, summarise
from rlhf_jax.generate import engine
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import config, log, models, report, session, settings
from rlhf_jax.runs.dry_run import grpo as dry_run
from rlhf_jax.runs.grpo_settings import GRPO
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling, TrainState, overlay


@dataclass(frozen=True)
class Experiment:
    """One run of online preference learning."""

    policy: str
    """Folder or hub name of the model to align; it is the reference too."""
    prompts: str
    """File of prompts; its other columns reach reward functions."""
    rewards: dict[str, Reward]
    """The parts of the reward, by name; of two responses the one with the higher weighted sum is the better."""
    out: str = "runs/online_dpo"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the prompts' file, where its keys do not tell."""
    loss: str = "sigmoid"
    """A loss of pairs of rlhf_jax.objectives.preference (sigmoid is DPO), or "file.py:function" of yours."""
    also: dict[str, float] = field(default_factory=dict)
    """Further losses added to it, by name with what each counts."""
    beta: float | None = None
    """How strongly the policy is held to the reference; empty: each loss's own default."""
    options: dict[str, float] = field(default_factory=dict)
    """Other numbers that the losses take."""
    per_token: bool | None = None
    """Mean log-probabilities over tokens instead of sums, or the other way round; empty: as each loss wants them."""
    ld_alpha: float = 1.0
    """What tokens past the pair's shorter response count (LD-DPO, arXiv 2409.06411); 1 is plain."""
    exploration: float = 0.0
    """XPO's α (arXiv 2405.21046; 1e-5, say): above 0 one of the two responses is the reference's, and becomes less likely."""
    judge_temperature: float = 0.0
    """0: the higher score wins. Above 0: with the probability that Bradley and Terry give scores over it, as a soft label."""
    missing_eos_penalty: float | None = None
    """The score of a response cut at the window; None leaves it its own."""
    seed: int = 0
    """Decides prompts, samples and minibatches."""
    iterations: int = 100
    """Rollouts, each followed by an update."""
    prompts_per_iteration: int = 32
    """Prompts of a rollout, and so pairs."""
    minibatches: int = 1
    """Optimizer steps an iteration."""
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
        for name in ("seed", "save_every", "show", "exploration", "judge_temperature"):
            config.non_negative(name, getattr(self, name))
        if self.beta is not None:
            config.positive("beta", self.beta)
        config.fraction("ld_alpha", self.ld_alpha)
        config.choice("long_prompts", self.long_prompts, ("drop", "truncate", "refuse"))
        config.check(bool(self.rewards), "rewards must name a part, as in rewards: {helpful: {model: FOLDER}}")
        config.check(
            self.sampling.temperature > 0, "sampling.temperature must be > 0: two equal responses have no better"
        )
        check_division(self.prompts_per_iteration, self.minibatches, self.microbatches)
        settings.check_base(self.compute, self.lora.rank)

    # what rollouts are called elsewhere
    samples_per_prompt = property(lambda self: 2)
    rows = property(lambda self: 2 * self.prompts_per_iteration)
    grpo = property(lambda self: GRPO(minibatches=self.minibatches, microbatches=self.microbatches))


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the last iteration's metrics, and under "folder" where the aligned model lies."""
    losses = losses_of(cfg)
    spans = any(offline.says(each, "spans_rows") for each, _ in losses.objectives.values())
    config.check(losses.kind == "pairs", f"loss must be one of pairs; {cfg.loss} learns from single responses")
    config.check(not spans or cfg.microbatches == 1, f"microbatches must be 1: {cfg.loss} compares rows of a batch")
    check_functions(cfg)
    if cfg.dry_run:
        return dry_run.plan(cfg).show()
    rows = cfg.rows // (cfg.minibatches * cfg.microbatches)
    mesh = settings.make_mesh(cfg.mesh, rows)
    bases: models.Bases = {}
    opened, tokenizer, prompts = open_policy(cfg, mesh, bases)
    model, adapter = opened.cfg, models.settings_of(opened, cfg.lora)
    score = build_reward(cfg, mesh, bases)
    trained, frozen = models.trainable(opened, cfg.lora, jax.random.fold_in(jax.random.key(cfg.seed), 2**31 - 2), mesh)
    forward, policy_row = build_forward(cfg, model)
    loss = functools.partial(
        online.loss,
        forward=forward,
        objectives=losses.objectives,
        beta=losses.beta,
        per_token=cfg.per_token,
        ld_alpha=cfg.ld_alpha,
        exploration=cfg.exploration,
    )
    adam = settings.optimizer(cfg.optimizer, cfg.iterations * cfg.minibatches)
    update = make_update(loss, adam, weigh=online.weigh, minibatches=cfg.minibatches, microbatches=cfg.microbatches)
    settled: dict[str, Any] = {"temperature": cfg.judge_temperature, "missing_eos_penalty": cfg.missing_eos_penalty}
    judge = jax.jit(functools.partial(online.judge, ld_alpha=cfg.ld_alpha, **settled))
    told = jax.jit(online.told)
    policy_forward = jax.jit(rollout.in_chunks(policy_row, rows))
    collect = build_collect(cfg, prompts, model, tokenizer, score, policy_forward)
    show = build_show(cfg, prompts, tokenizer, score, model)
    generated = session.compilations(engine.generate)

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
                batch = judge(experience)
                state, steps = update(state, batch, jax.random.fold_in(key, 1), frozen)

                # what the reference wrote says nothing of the policy
                own = jax.tree.map(lambda x: x[::2], experience) if cfg.exploration else experience
                metrics = rollout.metrics(own) | summarise(steps)
                metrics |= {name: float(x) for name, x in told(batch).items()}
                seconds, tokens = time.perf_counter() - began, int(experience.response_length.sum())
                current.run.log(iteration, metrics)
                phases = {"collect": collected - began, "update": seconds - (collected - began)}
                current.run.time(iteration, phases | {"tokens": tokens})
                advance({"reward": metrics["rollout/score"], "kl": metrics["rollout/kl"], "tokens/s": tokens / seconds})
                session.save(cfg, current, iteration + 1, cfg.iterations, state)

        final = overlay(frozen, state.params)
        current.run.sample(show(final, iteration=cfg.iterations, stage="after"))
    folder = models.save(cfg.out, opened, final, tokenizer, adapter)
    print(f"aligned model: {folder}   report: {report.write(cfg.out)}")
    compiled = {"update": session.compilations(update), "policy": session.compilations(policy_forward)}
    compiled["generate"] = session.compilations(engine.generate) - generated
    return metrics | {"folder": folder, "compilations": compiled}


if __name__ == "__main__":
    config.command(main, Experiment)
