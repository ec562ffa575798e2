"""A reward model from human comparisons: Bradley–Terry on a Hugging Face model, with the baselines it has to beat.

python experiments/reward_model.py --config experiments/configs/reward_pandalm.yaml --data DATA --model MODEL
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import reward_model
from rlhf_jax.algorithms.rewards import Score
from rlhf_jax.algorithms.update import check_division, make_update, summarise
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import baselines
from rlhf_jax.feedback import agreement, formats, records
from rlhf_jax.model import heads, hf, transformer
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import config, data, dry_run, log, models, ranges, report, session, settings
from rlhf_jax.types import Pairs, TrainState, overlay


@dataclass(frozen=True)
class Experiment:
    """One reward model."""

    model: str
    """Folder or hub name: a causal language model, or a reward model to go on with."""
    comparisons: str
    """File of comparisons."""
    out: str = "runs/reward_model"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the comparisons' file, where its keys do not tell."""
    judgements: str = "votes"
    """"votes": judgements of one item become one pair with their share as its label; "each": every one is a pair."""
    ties: str = "half"
    """Pairs judged equal: "half" (label 1/2) or "drop"."""
    window: int = 256
    """Tokens of prompt, response and EOS at most; longer pairs are dropped and counted."""
    seed: int = 0
    """Decides the score head, which prompts are held out and the order of the rest."""
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
    centring_coef: float = 0.01
    """Pull of the rewards towards 0 (arXiv 2312.09244)."""
    held_out: float = 0.2
    """Share of the prompts kept for evaluation."""
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
        for name in ("seed", "save_every", "margin", "centring_coef"):
            config.non_negative(name, getattr(self, name))
        config.positive("epochs", self.epochs)
        config.between("label_smoothing", self.label_smoothing, 0, 0.5)
        config.between("held_out", self.held_out, 0.01, 0.9)
        config.choice("judgements", self.judgements, ("votes", "each"))
        config.choice("ties", self.ties, ("half", "drop"))
        check_division(self.batch, 1, self.microbatches)


def to_pairs(comparisons: Sequence[records.Comparison], cfg: Experiment, part: str = "") -> list[records.Pair]:
    """Pairs of these comparisons, with ties and margins as the configuration says. UserError where none has a winner."""
    if cfg.judgements == "votes":
        pairs = records.votes(comparisons)
    else:
        pairs = [pair for comparison in comparisons for pair in records.pairs(comparison)]
    if all(pair.tie for pair in pairs):
        raise UserError(
            f"no {part} pair has a winner ({len(comparisons)} comparisons, {len(pairs)} ties): bring more, or change "
            f"held_out, which is {cfg.held_out}"
        )
    pairs = [pair for pair in pairs if not (pair.tie and cfg.ties == "drop")]
    return [replace(pair, margin=pair.margin + cfg.margin) for pair in pairs]


def raw_scores(forward: Callable[..., Any], params: Any, tokens: Any, length: Any, rows: int) -> np.ndarray:
    """f32 [B, A] of any number of texts, `rows` at a time through one program."""
    found = []
    for start in range(0, len(length), rows):
        index = np.arange(start, start + rows) % len(length)
        found.append(np.asarray(forward(params, jnp.asarray(tokens[index]), jnp.asarray(length[index]))))
    return np.concatenate(found)[: len(length)]


def scorer(
    folder: str,
    *,
    window: int,
    rows: int,
    axis: int = 0,
    compute: Any = None,
    mesh: Any = None,
    bases: models.Bases | None = None,
) -> Score:
    """A saved reward model as a reward: score(prompts, responses, meta) -> f32 [B], normalised as it was saved. Where it
    is an adapter, its base is taken from `bases` and put there."""
    opened = models.open_model(folder, mesh, bases)
    model, params = opened.cfg, opened.params
    tokenizer = hf.tokenizer(folder)
    hf.check_tokenizer(tokenizer, model)
    if axis >= model.axes:
        raise UserError(f"{folder} has {model.axes} reward axes; axis {axis} is not one (a causal model has none)")
    transformer.check_window(model, window, f"{folder} reads {window} tokens of prompt, response and EOS: that")
    model = settings.apply_compute(model, compute or settings.Compute())
    forward = jax.jit(functools.partial(heads.reward, cfg=model))
    encode = data.score_encoder(tokenizer, window=window)

    def score(prompts: Sequence[Any], responses: Sequence[str], meta: Sequence[Any]) -> np.ndarray:
        tokens, length = encode(prompts, responses)
        return raw_scores(forward, params, tokens, length, min(rows, len(length)))[:, axis]

    return score


def evaluate(
    margins: np.ndarray, held: Sequence[records.Pair], train: Sequence[records.Pair], comparisons: Sequence[Any]
) -> dict[str, Any]:
    """Accuracy on decided held-out pairs, beside a length-only model, a bag of words, and what people agree on."""
    decided = np.array([not pair.tie for pair in held])
    chosen = [pair for pair in held if not pair.tie]
    strict = [pair for pair in train if not pair.tie]
    return {
        "reward model": baselines.accuracy(margins[decided]),
        "longer or shorter": baselines.length_only(strict, chosen),
        "bag of words": baselines.bag_of_words(strict, chosen),
        "annotators": agreement.annotator_ceiling(comparisons),
    }


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the held-out accuracies, and under "folder" where the model lies."""
    if cfg.dry_run:
        return dry_run.show(dry_run.reward_model(cfg))
    mesh = settings.make_mesh(cfg.mesh, cfg.batch // cfg.microbatches)
    opened = models.open_model(cfg.model, mesh)
    tokenizer = hf.tokenizer(cfg.model)
    hf.check_tokenizer(tokenizer, opened.cfg)
    transformer.check_window(opened.cfg, cfg.window, f"window {cfg.window}")
    adapter, key = models.settings_of(opened, cfg.lora), jax.random.key(cfg.seed)
    model = settings.stop_at(settings.apply_compute(opened.cfg, cfg.compute), tokenizer)
    if not model.axes:
        model = hf.classifier(model, 1)
        base = heads.add_reward_head(jax.random.fold_in(key, 1), opened.base, model)
        opened = opened._replace(base=base, adapter=heads.trunk(opened.adapter))
    model = replace(model, reward_mean=(), reward_std=())
    opened = opened._replace(cfg=model)
    trained, frozen = models.trainable(opened, cfg.lora, jax.random.fold_in(key, 2), mesh)
    comparisons, told = formats.load(data.find(cfg.comparisons, cfg.data), cfg.format)
    print(told.text())
    kept, held = records.split_by_prompt(comparisons, cfg.held_out, seed=cfg.seed)
    rows, pairs, counts = data.encode_pairs(to_pairs(kept, cfg, "training"), tokenizer, window=cfg.window)
    held_rows, held_pairs, held_counts = data.encode_pairs(
        to_pairs(held, cfg, "held-out"), tokenizer, window=cfg.window
    )
    reference = reference_responses(cfg, tokenizer, rows)
    left = data.counted(counts + held_counts)
    judges = ", ".join(f"{kind} {count}" for kind, count in records.mix(comparisons).items())
    print(f"{len(pairs)} pairs to learn, {len(held_pairs)} held out by prompt; left out: {left}; judged by: {judges}")

    forward = functools.partial(heads.reward, cfg=model)
    score_rows = jax.jit(forward)
    loss = functools.partial(
        reward_model.loss,
        forward=lambda params, tokens, length: forward(params, tokens, length)[:, 0],
        label_smoothing=cfg.label_smoothing,
        centring_coef=cfg.centring_coef,
    )
    total = rows.label.size
    steps = max(round(cfg.epochs * total / cfg.batch), 1)
    adam = settings.optimizer(cfg.optimizer, steps)
    update = make_update(loss, adam, weigh=reward_model.weigh, microbatches=cfg.microbatches)
    state = models.placed(TrainState.create(trained, adam), mesh)
    with session.session(cfg, mesh) as current:
        start, state = session.restore(cfg, current, state)
        with log.progress(steps, start) as advance:
            for step in range(start, steps):
                clock = time.perf_counter()
                batch = data.take(rows, data.batch_rows(total, cfg.batch, seed=cfg.seed, step=step))
                state, found = update(state, jax.tree.map(jnp.asarray, batch), jax.random.key(step), frozen)
                metrics = summarise(found)
                current.run.log(step, metrics)
                seconds = time.perf_counter() - clock
                tokens = int(batch.chosen_length.sum() + batch.rejected_length.sum())
                current.run.time(step, {"update": seconds, "tokens": tokens})
                shown = {name: metrics[f"reward/{name}"] for name in ("loss", "accuracy")}
                advance(shown | {"tokens/s": tokens / seconds})
                session.save(cfg, current, step + 1, steps, state)

        whole = overlay(frozen, state.params)

        def scores_of(tokens: Any, length: Any) -> np.ndarray:
            return raw_scores(score_rows, whole, tokens, length, min(2 * cfg.batch, len(length)))[:, 0]

        if cfg.normalise:
            mean, std = reward_model.fit_normalisation(scores_of(*reference))
            model = replace(model, reward_mean=(mean,), reward_std=(std,))
        folder = models.save(cfg.out, opened._replace(cfg=model), whole, tokenizer, adapter)
        margins = scores_of(held_rows.chosen, held_rows.chosen_length) - scores_of(
            held_rows.rejected, held_rows.rejected_length
        )
        accuracies = evaluate(margins, held_pairs, pairs, comparisons)
        current.run.log(
            steps, {f"held_out/{name}": x.accuracy for name, x in accuracies.items() if x.accuracy is not None}
        )
    for name, each in accuracies.items():
        print(f"{name:>20}: {each}")
    print(f"reward model: {folder}   report: {report.write(cfg.out)}")
    compiled = {"update": session.compilations(update)}
    return {"folder": folder, "held_out": accuracies, "compilations": compiled}


def reference_responses(cfg: Experiment, tokenizer: Any, rows: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and lengths of the texts whose raw scores the normalisation is fitted on."""
    if not cfg.reference:
        both = np.concatenate([rows.chosen, rows.rejected])
        return both, np.concatenate([rows.chosen_length, rows.rejected_length])
    found, told = formats.load_prompts(data.find(cfg.reference, cfg.data))
    print(f"normalised on {told.text()}")
    for row, prompt in enumerate(found, 1):
        texts = prompt.meta.get("responses")
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise UserError(
                f"{cfg.reference}, prompt {row}: responses must be a list of one text or more, as generate.py writes it; got "
                f"{ranges.shown(texts)}"
            )
    prompts = [prompt.prompt for prompt in found for _ in prompt.meta["responses"]]
    texts = [text for prompt in found for text in prompt.meta["responses"]]
    return data.score_encoder(tokenizer, window=cfg.window)(prompts, texts)


if __name__ == "__main__":
    config.command(main, Experiment)
