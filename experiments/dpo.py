"""Preference optimisation without a reward model: any loss of `objectives.preference` on a Hugging Face model.

python experiments/dpo.py --config experiments/configs/dpo.yaml --model MODEL --comparisons judged.jsonl
python experiments/dpo.py --model MODEL --comparisons judged.jsonl --loss simpo --also.sft 0.1 --options.gamma 1.0
"""

import functools
import time
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from dpo_parts import build_forward, evaluate, in_batches, load, losses_of, readable

from rlhf_jax.algorithms import offline
from rlhf_jax.algorithms.update import check_division, make_update, summarise
from rlhf_jax.errors import UserError
from rlhf_jax.model import transformer
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import (
    config,
    data,
    held_out,
    judged,
    log,
    models,
    report,
    session,
    settings,
    who_judged,
)
from rlhf_jax.runs.dry_run import dpo as dry_run
from rlhf_jax.types import TrainState, overlay


@dataclass(frozen=True)
class Experiment:
    """One run of preference optimisation."""

    model: str
    """Folder or hub name of the policy to align; it is the reference too."""
    comparisons: str
    """File of comparisons, or of ratings and thumbs up or down for the losses of single responses (kto, bco)."""
    out: str = "runs/dpo"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the comparisons' file, where its keys do not tell."""
    loss: str = "sigmoid"
    """A function of rlhf_jax.objectives.preference (sigmoid is DPO), or "file.py:function" of yours."""
    also: dict[str, float] = field(default_factory=dict)
    """Further losses added to it, by name with what each counts: {sft: 0.2}."""
    beta: float | None = None
    """How strongly the policy is held to the reference; empty: each loss's own default."""
    options: dict[str, float] = field(default_factory=dict)
    """Other numbers that the losses take: label_smoothing, gamma, alpha, tau, desirable_weight …"""
    per_token: bool | None = None
    """Mean log-probabilities over tokens instead of sums, or the other way round; empty: as each loss wants them."""
    ld_alpha: float = 1.0
    """What tokens past the pair's shorter response count (LD-DPO, arXiv 2409.06411); 1 is plain."""
    axes: tuple[str, ...] = ()
    """Axes whose judgements are learnt from; empty: all."""
    judgements: str = "votes"
    """"votes": judgements of one item become one pair with their share as its label; "each": every one is a pair;
    "dawid_skene", "crowd_bt": one pair, its label by how reliable each judge is."""
    ties: str = "drop"
    """Pairs judged equal: "drop", or "half" (label 1/2, which holds the policy where it is)."""
    window: int = 256
    """Tokens of prompt, response and EOS at most; longer pairs are dropped and counted."""
    seed: int = 0
    """Decides which prompts are held out and the order of the rest."""
    epochs: float = 1.0
    """Passes over the rows; may be fractional."""
    batch: int = 32
    """Pairs, or single responses, an optimizer step."""
    microbatches: int = 1
    """Pieces a batch is cut into to save memory; gradients do not depend on it."""
    held_out: float = 0.1
    """Share of the prompts kept for evaluation."""
    leaks: str = "drop"
    """Held-out judgements of prompts that share 13 words in a row with training ones: "drop" or "keep" them."""
    source_kind: str = ""
    """Who judged, where the file does not say: human, ai or synthetic; empty: a file that does not say is taken as human."""
    reference: str = "once"
    """When the reference's log-probabilities are computed: "once" for all rows beforehand, or at "each" step."""
    reference_every: int = 0
    """Steps after which the reference moves towards the policy (TR-DPO, arXiv 2404.09656); 0: it stays."""
    reference_share: float = 1.0
    """How far it moves then: 1 replaces it, 0.6 is TR-DPO's soft update, 0.01 at every step a moving average."""
    optimizer: settings.Optimizer = settings.Optimizer(lr=5e-7, schedule="linear", warmup=0.1, eps=1e-8)
    lora: Lora = Lora()
    compute: settings.Compute = settings.Compute()
    mesh: settings.Layout = settings.Layout()
    save_every: int = 100
    """Steps between checkpoints; 0 saves none."""
    keep: int = 2
    """Checkpoints kept."""
    resume: bool = False
    """Go on from the last checkpoint of the run folder."""
    dry_run: bool = False
    """Only tell what the run would take: shapes, memory, steps, FLOPs; --dry-run is short for it."""

    def __post_init__(self) -> None:
        for name in ("window", "batch", "microbatches", "keep"):
            config.at_least(name, getattr(self, name), 1)
        for name in ("seed", "save_every", "reference_every"):
            config.non_negative(name, getattr(self, name))
        config.positive("epochs", self.epochs)
        if self.beta is not None:
            config.positive("beta", self.beta)
        config.fraction("ld_alpha", self.ld_alpha)
        config.between("held_out", self.held_out, 0, 0.9)
        config.choice("leaks", self.leaks, held_out.LEAKS)
        config.choice("source_kind", self.source_kind, who_judged.KINDS)
        config.choice("judgements", self.judgements, judged.JUDGEMENTS)
        config.choice("ties", self.ties, ("half", "drop"))
        config.choice("reference", self.reference, ("once", "each"))
        config.positive("reference_share", self.reference_share)
        config.fraction("reference_share", self.reference_share)
        config.check(
            not self.lora.rank or self.reference_share == 1,
            "reference_share must be 1 with lora: half way between two adapters is not half way between two models",
        )
        check_division(self.batch, 1, self.microbatches)
        settings.check_base(self.compute, self.lora.rank)


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the last metrics, what the held-out part says, and under "folder" where the aligned model lies."""
    losses = losses_of(cfg)
    moves = bool(losses.reference and cfg.reference_every)
    config.check(
        losses.reference or not cfg.reference_every, f"reference_every: {cfg.loss} has no reference; set it to 0"
    )
    if cfg.microbatches > 1 and any(offline.says(each, "spans_rows") for each, _ in losses.objectives.values()):
        raise UserError(f"microbatches must be 1: {cfg.loss} compares rows of a batch with each other")
    if cfg.dry_run:
        texts = 2 if losses.kind == "pairs" or losses.mismatched else 1
        return dry_run.plan(cfg, losses.kind, texts, losses.reference).show()
    size = cfg.batch // cfg.microbatches
    mesh = settings.make_mesh(cfg.mesh, size)
    opened, tokenizer = session.language_model(cfg.model, cfg.compute, mesh)
    model, adapter = opened.cfg, models.settings_of(opened, cfg.lora)
    transformer.check_window(model, cfg.window, f"window {cfg.window}")
    trained, frozen = models.trainable(opened, cfg.lora, jax.random.fold_in(jax.random.key(cfg.seed), 2), mesh)
    found = load(cfg, losses, tokenizer, model.eos_ids)
    rows, total = found.rows, found.rows.weight.size

    forward = build_forward(cfg, model, found.window)
    sums = jax.jit(functools.partial(offline.reference_logprobs, forward=forward, ld_alpha=cfg.ld_alpha))
    loss = offline.build_loss(
        losses.kind,
        losses.objectives,
        forward=forward,
        beta=losses.beta,
        per_token=cfg.per_token,
        **({"ld_alpha": cfg.ld_alpha} if losses.kind == "pairs" else {}),
    )
    steps = max(round(cfg.epochs * total / cfg.batch), 1)
    adam = settings.optimizer(cfg.optimizer, steps)
    update = make_update(loss, adam, weigh=offline.weigh, microbatches=cfg.microbatches)
    kept = {
        "train": models.placed(TrainState.create(trained, adam), mesh),
        "reference": trained if moves else {},
    }
    metrics: dict[str, float] = {}
    with session.session(cfg, mesh) as current:
        start, kept = session.restore(cfg, current, kept)
        state, reference = kept["train"], kept["reference"] or trained
        once = losses.reference and cfg.reference == "once" and not moves
        if once:
            rows = replace(rows, ref_logprobs=in_batches(sums, overlay(frozen, trained), rows, size))
        with log.progress(steps, start) as advance:
            for step in range(start, steps):
                clock = time.perf_counter()
                picked = data.batch_rows(total, cfg.batch, seed=cfg.seed, step=step)
                batch = jax.tree.map(jnp.asarray, data.take(rows, picked))
                if losses.reference and not once:
                    batch = replace(batch, ref_logprobs=sums(overlay(frozen, reference), batch))
                state, raw = update(state, batch, jax.random.key(step), frozen)
                metrics = readable(summarise(raw), losses.kind)
                current.run.log(step, metrics)
                seconds = time.perf_counter() - clock
                tokens = int((rows.prompt_length[picked][:, None] + rows.response_length[picked]).sum())
                current.run.time(step, {"update": seconds, "tokens": tokens})
                shown = {name: metrics.get(f"preference/{name}", 0.0) for name in ("loss", "margin")}
                advance(shown | {"tokens/s": tokens / seconds})
                if moves and (step + 1) % cfg.reference_every == 0:
                    reference = optax.incremental_update(state.params, reference, cfg.reference_share)
                kept = {"train": state, "reference": reference if moves else {}}
                session.save(cfg, current, step + 1, steps, kept)

        whole, begun = overlay(frozen, state.params), overlay(frozen, trained)
        per_token = cfg.per_token
        if per_token is None:
            per_token = offline.says(losses.objectives[cfg.loss][0], "per_token")

        def rewards_of(held: Any) -> Any:
            part = min(size, held.weight.size) if mesh is None else size
            rewards = in_batches(sums, whole, held, part)
            if losses.reference:
                rewards = rewards - in_batches(sums, begun, held, part)
            return rewards / held.response_length if per_token else rewards

        told = evaluate(rewards_of, found)
        shares = {name: getattr(x, "accuracy", x) for name, x in told.items()}
        current.run.log(steps, {f"held_out/{name}": x for name, x in shares.items()})
    folder = models.save(cfg.out, opened, whole, tokenizer, adapter)
    for name, each in told.items():
        print(f"{name:>20}: {each}")
    print(f"aligned model: {folder}   report: {report.write(cfg.out)}")
    compiled = {"update": session.compilations(update)}
    return metrics | {"folder": folder, "held_out": told, "compilations": compiled}


if __name__ == "__main__":
    config.command(main, Experiment)
