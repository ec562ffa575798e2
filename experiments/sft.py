"""Supervised fine-tuning: a Hugging Face model and demonstrations in, a Hugging Face model out.

python experiments/sft.py --model MODEL --demonstrations demonstrations.jsonl --out runs/sft
"""

import functools
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.algorithms import sft
from rlhf_jax.algorithms.update import check_division, make_update, summarise
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, records
from rlhf_jax.model import heads, transformer
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import weights
from rlhf_jax.runs import config, data, held_out, log, models, packing, report, session, settings
from rlhf_jax.runs.dry_run import sft as dry_run
from rlhf_jax.types import Demonstrations, TrainState, overlay


@dataclass(frozen=True)
class Experiment:
    """One supervised run."""

    model: str
    """Folder or hub name of a causal language model."""
    demonstrations: str
    """File of prompts and completions, or of conversations."""
    out: str = "runs/sft"
    """The run folder."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    format: str = "auto"
    """Of the demonstrations' file, where its keys do not tell."""
    learn: str = "completion"
    """What is learnt: the "completion" with the token that ends it, every turn of the "assistant", or "all"."""
    window: int = 256
    """Tokens of prompt and completion at most; longer ones are dropped and counted."""
    seed: int = 0
    """Decides which prompts are held out and the order of the rest."""
    epochs: float = 1.0
    """Passes over the demonstrations; may be fractional."""
    batch: int = 32
    """Demonstrations an optimizer step."""
    pack: bool = False
    """Several demonstrations in a row of the window, which know nothing of each other; then `batch` counts rows."""
    microbatches: int = 1
    """Pieces a batch is cut into to save memory; gradients do not depend on it."""
    held_out: float = 0.05
    """Share of the prompts kept for evaluation."""
    leaks: str = "drop"
    """Held-out demonstrations of prompts that share 13 words in a row with training ones: "drop" or "keep" them."""
    optimizer: settings.Optimizer = settings.Optimizer(lr=2e-5, schedule="cosine", warmup=0.03, eps=1e-8)
    lora: Lora = Lora()
    router_coef: float = 0.0
    """Of a mixture of experts, how much its load balancing counts (router_aux_loss_coef in its config.json); 0 leaves its
    routers to the likelihood alone. PPO never adds it."""
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
        for name in ("seed", "save_every"):
            config.non_negative(name, getattr(self, name))
        config.positive("epochs", self.epochs)
        config.non_negative("router_coef", self.router_coef)
        config.between("held_out", self.held_out, 0, 0.9)
        config.choice("leaks", self.leaks, held_out.LEAKS)
        config.choice("learn", self.learn, data.LEARN)
        check_division(self.batch, 1, self.microbatches)
        settings.check_base(self.compute, self.lora.rank)
        if self.router_coef and self.microbatches > 1:
            raise UserError("router_coef balances experts over a whole batch; set microbatches to 1")


def main(cfg: Experiment) -> dict[str, Any]:
    """Run it; the final metrics, and under "folder" where the model lies."""
    if cfg.dry_run:
        return dry_run.plan(cfg).show()
    mesh = settings.make_mesh(cfg.mesh, cfg.batch // cfg.microbatches)
    opened, tokenizer = session.language_model(cfg.model, cfg.compute, mesh)
    model, adapter = opened.cfg, models.settings_of(opened, cfg.lora)
    transformer.check_window(model, cfg.window, f"window {cfg.window}")
    if cfg.router_coef and not model.experts:
        raise UserError(f"router_coef is {cfg.router_coef}, but {cfg.model} is no mixture of experts; set it to 0")
    trained, frozen = models.trainable(opened, cfg.lora, jax.random.fold_in(jax.random.key(cfg.seed), 2), mesh)
    found, told = formats.load_demonstrations(data.find(cfg.demonstrations, cfg.data), cfg.format)
    print(told.text())
    encode = functools.partial(
        data.encode_demonstrations, tokenizer=tokenizer, window=cfg.window, learn=cfg.learn, stops=model.eos_ids
    )
    kept, held = records.split_by_prompt(found, cfg.held_out, seed=cfg.seed)
    held = held_out.clean(kept, held, "held out", cfg.leaks) if held else held
    rows, counts = encode(kept)
    held_rows = encode(held)[0] if held else None
    print(
        f"{rows.length.size} demonstrations to learn, {len(held)} held out by prompt; left out: {data.counted(counts)}"
    )
    if cfg.pack:
        rows, packed = packing.pack(rows)
        print(packed)

    def forward(params: Any, tokens: Any, length: Any, segments: Any = None) -> Any:
        states = transformer.hidden(params, tokens, length, cfg=model, segments=segments)[:, :-1]
        return heads.token_logprobs(params, states, tokens[:, 1:], cfg=model, chunk=cfg.compute.chunk)

    def routed(params: Any, tokens: Any, length: Any, segments: Any = None) -> Any:
        states, routing = transformer.hidden_and_routing(params, tokens, length, cfg=model, segments=segments)
        return *heads.token_logprobs(params, states[:, :-1], tokens[:, 1:], cfg=model, chunk=cfg.compute.chunk), routing

    total = rows.length.size
    steps = max(round(cfg.epochs * total / cfg.batch), 1)
    adam = settings.optimizer(cfg.optimizer, steps)
    loss = learnt = functools.partial(sft.loss, forward=forward)
    if cfg.router_coef:
        learnt = functools.partial(sft.balanced_loss, forward=routed, coef=cfg.router_coef, used=model.experts_used)

    def weigh(batch: Any) -> Any:
        return weights.token_mean(sft.learnt(batch))

    update = make_update(learnt, adam, weigh=weigh, microbatches=cfg.microbatches)
    evaluate = jax.jit(lambda params, batch: loss(params, batch, weigh(batch))[0])
    state = models.placed(TrainState.create(trained, adam), mesh)
    metrics: dict[str, float] = {}
    with session.session(cfg, mesh) as current:
        start, state = session.restore(cfg, current, state)
        with log.progress(steps, start) as advance:
            for step in range(start, steps):
                clock = time.perf_counter()
                batch = data.take(rows, data.batch_rows(total, cfg.batch, seed=cfg.seed, step=step))
                state, found_metrics = update(state, jax.tree.map(jnp.asarray, batch), jax.random.key(step), frozen)
                metrics = summarise(found_metrics)
                current.run.log(step, metrics)
                seconds = time.perf_counter() - clock
                tokens = int(batch.length.sum())
                current.run.time(step, {"update": seconds, "tokens": tokens})
                advance({"loss": metrics["sft/loss"], "tokens/s": tokens / seconds})
                session.save(cfg, current, step + 1, steps, state)

        if held_rows is not None:
            whole = overlay(frozen, state.params)
            metrics["sft/held_out_loss"] = held_out_loss(evaluate, whole, held_rows, cfg.batch)
            current.run.log(steps, {"sft/held_out_loss": metrics["sft/held_out_loss"]})
    folder = models.save(cfg.out, opened, overlay(frozen, state.params), tokenizer, adapter)
    print(f"model: {folder}   report: {report.write(cfg.out)}")
    return metrics | {"folder": folder, "compilations": {"update": session.compilations(update)}}


def held_out_loss(evaluate: Any, params: Any, rows: Demonstrations, size: int) -> float:
    """Nats a token over all rows, `size` at a time; the last batch is filled up with rows that count 0."""
    total = tokens = 0.0
    for start in range(0, rows.length.size, size):
        index = np.arange(start, start + size)
        batch = data.take(rows, index % rows.length.size)
        batch = batch.replace(loss_mask=batch.loss_mask & (index < rows.length.size)[:, None])
        count = float(sft.learnt(batch).sum())
        total += count * float(evaluate(params, jax.tree.map(jnp.asarray, batch)))
        tokens += count
    return total / tokens


if __name__ == "__main__":
    config.command(main, Experiment)
