"""Was it worth it? An aligned policy beside the one it started from, and beside best-of-n, on held-out prompts.

python experiments/evaluate.py --policy runs/ppo/model --start runs/sft/model --reward_model runs/reward_model/model \\
    --prompts held_out.jsonl
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from generate import decoder, load_prompts
from reward_model import scorer

from rlhf_jax.algorithms import rewards, rollout
from rlhf_jax.errors import UserError
from rlhf_jax.evaluation import best_of_n, intervals
from rlhf_jax.generate import engine
from rlhf_jax.model import heads, hf
from rlhf_jax.objectives import kl
from rlhf_jax.runs import config, data, models, session, settings
from rlhf_jax.types import Prompts, Sampling

Row = dict[str, np.ndarray]
"""Metric: one value a prompt, f64 [G]."""


@dataclass(frozen=True)
class Experiment:
    """What to compare, on what."""

    policy: str
    """Folder or hub name of the aligned model."""
    start: str
    """The model it started from; the KL is to this one."""
    reward_model: str
    """The reward it was trained on: the proxy."""
    prompts: str
    """File of held-out prompts."""
    axes: dict[str, float] = field(default_factory=dict)
    """What each axis of the reward model counts, by name, as `rewards` had it for ppo.py; empty: the first alone."""
    judge: str = ""
    """"file.py:function" of a better judge than the proxy, called as a reward function; win rates are by it."""
    data: str = ""
    """Folder of data files; RLHF_JAX_DATA is another."""
    samples: int = 4
    """Samples a prompt, and n of best-of-n."""
    prompt_window: int = 64
    """Tokens of a prompt at most."""
    response_window: int = 64
    """Tokens of a response at most."""
    sampling: Sampling = Sampling()
    batch: int = 64
    """Prompts at a time."""
    seed: int = 0
    """Decides every sample."""
    compute: settings.Compute = settings.Compute()

    def __post_init__(self) -> None:
        for name in ("samples", "prompt_window", "response_window", "batch"):
            config.at_least(name, getattr(self, name), 1)
        config.non_negative("seed", self.seed)
        if self.sampling.truncates:
            raise UserError("sampling with temperature 0, top_k, top_p or min_p has no KL to the start; turn them off")
        config.check(self.sampling.temperature > 0, "sampling.temperature must be > 0 to compare distributions")


def sampled(cfg: Experiment, folder: str, prompts: Prompts, score: rewards.Score, n: int, role: int) -> Row:
    """n samples a prompt of one model: every score, KL to the start in nats, length in tokens; f64 [G, n] each."""
    bases: models.Bases = {}
    opened, tokenizer = session.language_model(folder, cfg.compute, bases=bases)
    begun = opened if folder == cfg.start else session.language_model(cfg.start, cfg.compute, bases=bases)[0]
    model, params, start = opened.cfg, opened.params, begun.params
    if jax.tree.map(np.shape, begun.base) != jax.tree.map(np.shape, opened.base):
        raise UserError(f"{folder} and {cfg.start} are models of different sizes; start is the model it started from")
    engine.check(prompts.tokens, prompts.length, window=cfg.response_window, cfg=model, stop=cfg.sampling.stop)
    window, size = cfg.response_window, min(cfg.batch, prompts.length.size)
    forward = jax.jit(functools.partial(heads.policy, window=window, cfg=model, temperature=cfg.sampling.temperature))
    found: list[Row] = []
    for first in range(0, prompts.length.size, size):
        picked = np.arange(first, first + size) % prompts.length.size
        facts = rollout.collect(
            params,
            data.take_prompts(prompts, picked),
            (np.arange(first, first + size)[:, None] * n + np.arange(n)).astype(np.int32),
            jax.random.fold_in(jax.random.key(cfg.seed), role),
            sampling=cfg.sampling,
            version=0,
            sample=functools.partial(engine.generate, window=window, cfg=model, sampling=cfg.sampling),
            policy=forward,
            reference=lambda *row: forward(start, *row)[0],
            decode=decoder(tokenizer),
            score=score,
        )
        assert facts.ref_logprobs is not None
        terms = np.where(facts.mask, kl.k1(facts.logprobs, facts.ref_logprobs), 0.0)
        row = {name: np.asarray(values, np.float64) for name, values in facts.score_parts.items()}
        row |= {"kl": terms.sum(axis=1), "length": np.asarray(facts.response_length, np.float64)}
        found.append({name: values.reshape(size, n) for name, values in row.items()})
    return {name: np.concatenate([row[name] for row in found])[: prompts.length.size] for name in found[0]}


def win_rate(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """f64 [G]: the share of pairs (ours [G, n], theirs [G, m]) that ours win; an equal score is half a win."""
    ours, theirs = ours[:, :, None], theirs[:, None, :]
    return ((ours > theirs) + 0.5 * (ours == theirs)).mean(axis=(1, 2))


def compare(cfg: Experiment, judges: dict[str, rewards.Score] | None = None) -> dict[str, Row]:
    """One row each for the start, best-of-n by the proxy, and the policy; win rates are against samples of the start.

    `judges` are further scores to report; the first of them, or else the proxy, decides who wins.
    """
    tokenizer = hf.tokenizer(cfg.policy)
    prompts = load_prompts(cfg.prompts, tokenizer, window=cfg.prompt_window, long="drop", root=cfg.data)
    config.check(prompts.length.size > 1, f"prompts: an interval needs 2 at least, {cfg.prompts} gives one")
    if tokenizer.get_vocab() != hf.tokenizer(cfg.start).get_vocab():
        raise UserError(f"{cfg.policy} and {cfg.start} have different vocabularies; start is the model it started from")
    judges = dict(judges or {})
    if cfg.judge:
        judges["judge"] = config.resolve_function(cfg.judge, "judge")
    window = cfg.prompt_window + cfg.response_window + 1
    proxy = scorer(cfg.reward_model, window=window, rows=cfg.batch, axes=cfg.axes, compute=cfg.compute)
    score = rewards.mix({"proxy": (proxy, 1.0)} | {name: (judge, 0.0) for name, judge in judges.items()})
    decides = next(iter(judges), "proxy")

    aligned = sampled(cfg, cfg.policy, prompts, score, cfg.samples, role=1)  # first, as it compares the models' sizes
    twice = sampled(cfg, cfg.start, prompts, score, 2 * cfg.samples, role=0)
    start = {name: values[:, : cfg.samples] for name, values in twice.items()}
    fresh = {name: values[:, cfg.samples :] for name, values in twice.items()}
    best = np.argmax(fresh["proxy"], axis=1)[:, None]
    rows = {
        "start": start,
        f"best of {cfg.samples}": {name: np.take_along_axis(values, best, axis=1) for name, values in fresh.items()},
        "policy": aligned,
    }
    means = {}
    for name, row in rows.items():
        wins = win_rate(row[decides], fresh[decides] if name == "start" else start[decides])
        means[name] = {metric: values.mean(axis=1) for metric, values in row.items()} | {"win rate": wins}
    n = cfg.samples
    means[f"best of {n}"]["kl"] = np.full(prompts.length.size, best_of_n.kl_bound(n))
    return means


def table(rows: dict[str, dict[str, tuple[float, float, float]]], metrics: list[str]) -> str:
    """Rows of (mean, low, high) as text, one line each."""
    lines = [" " * 12 + "".join(f"{metric:>18}" for metric in metrics)]
    for name, row in rows.items():
        cells = [row.get(metric) for metric in metrics]
        texts = ["–" if cell is None else f"{cell[0]:.3f} ± {(cell[2] - cell[1]) / 2:.3f}" for cell in cells]
        lines.append(f"{name:<12}" + "".join(f"{text:>18}" for text in texts))
    return "\n".join(lines)


def main(cfg: Experiment) -> dict[str, Any]:
    """Print the table, each number with its 95 % interval over prompts."""
    rows = {
        name: {metric: intervals.paired(values) for metric, values in row.items()} for name, row in compare(cfg).items()
    }
    metrics = [metric for metric in rows["policy"] if "." not in metric]
    print(table(rows, metrics))
    return rows


if __name__ == "__main__":
    config.command(main, Experiment)
