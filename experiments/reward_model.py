"""A reward model from what people said: any loss of `objectives.reward` on a Hugging Face model, with the baselines it has to
beat.

python experiments/reward_model.py --config experiments/configs/reward_pandalm.yaml --data DATA --model MODEL
python experiments/reward_model.py --model MODEL --comparisons judged.jsonl --loss crowd_bt --judgements each
"""

import functools
import time
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import reward_judging
from reward_parts import axes_of, count_tokens, load, objective_of, reference_responses, to_pairs
from reward_scores import ensemble, evaluate, raw_scores, scorer

from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms.update import check_division, make_update, summarise
from rlhf_jax.model import heads, hf, transformer
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import config, data, held_out, judged, log, models, report, session, settings, who_judged
from rlhf_jax.runs.dry_run import reward_model as dry_run
from rlhf_jax.runs.reward_settings import Judging
from rlhf_jax.types import TrainState, overlay

__all__ = ["Experiment", "ensemble", "main", "raw_scores", "scorer", "to_pairs"]


@dataclass(frozen=True)
class Experiment:
    """One reward model."""

    model: str
    """Folder or hub name: a causal language model, or a reward model to go on with."""
    comparisons: str
    """File of comparisons, or of ratings where the loss learns from these."""
    out: str = "runs/reward_model"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the comparisons' file, where its keys do not tell."""
    source_kind: str = ""
    """Who judged, where the file does not say: human, ai or synthetic; empty: a file that does not say is taken as human."""
    loss: str = "bradley_terry"
    """A function of rlhf_jax.objectives.reward (bradley_terry, davidson and crowd_bt learn from pairs, plackett_luce from
    rankings, ordinal and regression from ratings), or "file.py:function" of yours."""
    axes: tuple[str, ...] = ()
    """Axes to learn, each as an output of its own; empty: one output learns all that there is."""
    judgements: str = "votes"
    """"votes": judgements of one item become one pair with their share as its label; "each": every one is a pair;
    "dawid_skene", "crowd_bt": one pair, its label by how reliable each judge is."""
    ties: str = "half"
    """Votes for "equal": "half" (half a vote for either; davidson learns from them as ties) or "drop", and with them the pairs
    of which most say so."""
    window: int = 256
    """Tokens of prompt, response and EOS at most; longer pairs are dropped and counted."""
    seed: int = 0
    """Decides the score head, which prompts are held out and the order of the rest."""
    member: int = 0
    """Another number is another score head and order, on the same prompts: members of an ensemble."""
    epochs: float = 1.0
    """Passes over the pairs; may be fractional."""
    batch: int = 32
    """Pairs an optimizer step."""
    microbatches: int = 1
    """Pieces a batch is cut into to save memory; gradients do not depend on it."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels (cDPO)."""
    margin: float = 0.0
    """Added to each pair's own margin: how far apart two rewards should be (Llama 2, arXiv 2307.09288)."""
    strength_margins: tuple[float, ...] = ()
    """Margins of a preference of strength 1, 2, 3 …, added too; empty: strength is not read."""
    judging: Judging = Judging()
    centring_coef: float = 0.01
    """Pull of the rewards towards 0 (arXiv 2312.09244)."""
    held_out: float = 0.2
    """Share of the prompts kept for evaluation."""
    leaks: str = "drop"
    """Held-out judgements of prompts that share 13 words in a row with training ones: "drop" them, or "keep" them where the
    words are a template's; they are told either way."""
    normalise: bool = True
    """Fit mean and deviation of the reward on reference responses, and save them with the model."""
    reference: str = ""
    """Responses to fit them on, as generate.py writes them; empty: all responses of the training pairs."""
    optimizer: settings.Optimizer = settings.Optimizer(lr=1e-5, schedule="cosine", warmup=0.03, eps=1e-8)
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
        for name in ("seed", "member", "save_every", "margin", "centring_coef"):
            config.non_negative(name, getattr(self, name))
        for number in self.strength_margins:
            config.non_negative("strength_margins", number)
        config.check(len(set(self.axes)) == len(self.axes), f"axes must differ, got {', '.join(self.axes)}")
        config.positive("epochs", self.epochs)
        config.between("label_smoothing", self.label_smoothing, 0, 0.5)
        config.between("held_out", self.held_out, 0.01, 0.9)
        config.choice("judgements", self.judgements, judged.JUDGEMENTS)
        config.choice("ties", self.ties, ("half", "drop"))
        config.choice("leaks", self.leaks, held_out.LEAKS)
        config.choice("source_kind", self.source_kind, who_judged.KINDS)
        check_division(self.batch, 1, self.microbatches)
        settings.check_base(self.compute, self.lora.rank)


LOSSES: dict[str, Any] = {
    "pairs": reward_model.loss,
    "rankings": reward_model.ranking_loss,
    "ratings": reward_model.rating_loss,
}
"""How the losses of each kind read a batch."""


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the held-out accuracies, and under "folder" where the model lies."""
    objective, kind = objective_of(cfg)
    if cfg.dry_run:
        return dry_run.plan(cfg).show()
    mesh = settings.make_mesh(cfg.mesh, cfg.batch // cfg.microbatches)
    opened = models.open_model(cfg.model, mesh, held=cfg.compute.base)
    tokenizer = hf.tokenizer(cfg.model)
    hf.check_tokenizer(tokenizer, opened.cfg)
    transformer.check_window(opened.cfg, cfg.window, f"window {cfg.window}")
    drawn = cfg.seed + 2**20 * cfg.member
    adapter, key = models.settings_of(opened, cfg.lora), jax.random.key(drawn)
    model = settings.stop_at(settings.apply_compute(opened.cfg, cfg.compute), tokenizer)
    if not model.axes:
        model = hf.classifier(model, max(len(cfg.axes), 1), cfg.axes)
        base = heads.add_reward_head(jax.random.fold_in(key, 1), opened.base, model)
        opened = opened._replace(base=base, adapter=heads.trunk(opened.adapter))
    axes = axes_of(cfg, model)
    model = replace(model, axis_names=axes, reward_mean=(), reward_std=())
    opened = opened._replace(cfg=model)
    trained, frozen = models.trainable(opened, cfg.lora, jax.random.fold_in(key, 2), mesh)
    found = load(cfg, kind, tokenizer, axes, model.eos_ids)
    rows, total = found.rows, found.rows.weight.size
    reference = reference_responses(cfg, tokenizer, rows, model.eos_ids)
    learnt, told = reward_judging.begin(cfg, objective, found, model.axes)

    forward = functools.partial(heads.reward, cfg=model)
    score_rows = jax.jit(forward)
    pairwise = {"label_smoothing": cfg.label_smoothing} if kind == "pairs" else {}
    loss = functools.partial(
        LOSSES[kind],
        forward=lambda *row: forward(*row) if model.axes > 1 else forward(*row)[:, 0],
        objective=objective,
        penalty=reward_judging.penalty(cfg, learnt, total),
        **pairwise,
        **({} if kind == "ratings" else {"centring_coef": cfg.centring_coef}),
    )
    steps = max(round(cfg.epochs * total / cfg.batch), 1)
    adam = reward_judging.optimizer(cfg, learnt, steps)
    update = make_update(loss, adam, weigh=reward_model.weigh, microbatches=cfg.microbatches)
    state = models.placed(TrainState.create({**trained, **learnt}, adam), mesh)
    frozen = {**frozen, **told}
    with session.session(cfg, mesh) as current:
        start, state = session.restore(cfg, current, state)
        with log.progress(steps, start) as advance:
            for step in range(start, steps):
                clock = time.perf_counter()
                batch = data.take(rows, data.batch_rows(total, cfg.batch, seed=drawn, step=step))
                state, losses = update(state, jax.tree.map(jnp.asarray, batch), jax.random.key(step), frozen)
                metrics = summarise(losses)
                current.run.log(step, metrics)
                seconds = time.perf_counter() - clock
                tokens = count_tokens(batch)
                current.run.time(step, {"update": seconds, "tokens": tokens})
                shown = {name: metrics[f"reward/{name}"] for name in ("loss", "accuracy")}
                advance(shown | {"tokens/s": tokens / seconds})
                session.save(cfg, current, step + 1, steps, state)

        whole, judging = reward_model.without_judging(overlay(frozen, state.params))

        def scores_of(tokens: Any, length: Any) -> np.ndarray:
            return raw_scores(score_rows, whole, tokens, length, min(2 * cfg.batch, len(length)))

        if cfg.normalise:
            raw = scores_of(*reference)
            mean, std = zip(*(reward_model.fit_normalisation(column) for column in raw.T), strict=True)
            model = replace(model, reward_mean=mean, reward_std=std)
        folder = models.save(cfg.out, opened._replace(cfg=model), whole, tokenizer, adapter)
        numbers = reward_judging.told(judging, found.judges, axes)
        reward_judging.save(folder, numbers)
        accuracies, correlations = evaluate(scores_of, found, axes)
        shares = {name: x.accuracy for name, x in accuracies.items() if x.accuracy is not None}
        current.run.log(steps, {f"held_out/{name}": x for name, x in (shares | correlations).items()})
    for name, each in (accuracies | {name: f"{x:.4f}" for name, x in correlations.items()}).items():
        print(f"{name:>20}: {each}")
    print(f"reward model: {folder}   report: {report.write(cfg.out)}")
    compiled = {"update": session.compilations(update)}
    told_of = {"held_out": accuracies, "correlations": correlations, "judging": numbers}
    return {"folder": folder, **told_of, "compilations": compiled}


if __name__ == "__main__":
    config.command(main, Experiment)
