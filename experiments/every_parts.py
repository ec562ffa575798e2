"""What every_script.py compares on: a seed's world, held-out prompts that training never saw, and one measurement for all.

`cfg` is its Experiment.
"""

import glob
import json
from pathlib import Path
from typing import Any, NamedTuple

import evaluate
import numpy as np
import quickstart
from reward_model import scorer
from world import PROMPT, RESPONSE, message, write_rows

from rlhf_jax.algorithms import rewards
from rlhf_jax.evaluation import best_of_n
from rlhf_jax.model import hf
from rlhf_jax.playground import gold, prompts
from rlhf_jax.runs import config, settings
from rlhf_jax.types import Prompts, Sampling

Row = dict[str, np.ndarray]
"""Metric: one value a held-out prompt, f64 [G]."""
CHOSEN = 4
"""n of best-of-n."""


def world_of(cfg: Any, seed: int) -> Path:
    """The folder of a seed's world; made where `worlds` is empty."""
    if not cfg.worlds:
        out = Path(cfg.out) / "worlds" / str(seed)
        if not (out / "results.json").exists():
            quickstart.main(quickstart.Experiment(str(out), seed, iterations=1, evaluated=16))
        return out / f"seed_{seed}"
    pattern = cfg.worlds.replace("{seed}", str(seed))
    found = [Path(name) for name in glob.glob(pattern)]
    config.check(len(found) == 1, f"worlds: {pattern} is {len(found)} folders; one world for seed {seed} is needed")
    for name in ("sft/model", "reward_model/model", "comparisons.jsonl", "world/prompts.jsonl"):
        config.check((found[0] / name).exists(), f"worlds: {found[0]} has no {name}; let quickstart.py finish it")
    return found[0]


def held_out(world: Path, seed: int, count: int, path: Path) -> str:
    """A file of prompts that nothing in the world was made of. UserError where training has one of them."""
    rows = [{**row, "prompt": message(row)} for row in prompts.draw(seed, count, split="held out")]
    asked = {row["prompt"][0]["content"] for row in rows}
    for name in ("world/prompts.jsonl", "world/demonstrations.jsonl", "comparisons.jsonl"):
        with open(world / name, encoding="utf-8") as lines:
            shared = asked & {json.loads(line)["prompt"][0]["content"] for line in lines}
        config.check(not shared, f"{world / name}: {len(shared)} prompts of the evaluation are in it; make it anew")
    return write_rows(path, rows)


class Seed(NamedTuple):
    """What the arms of one seed share."""

    paths: dict[str, str]
    """What {world}, {arms} and {held_out} are."""
    seed: int
    asked: Prompts
    score: rewards.Score


def open_seed(cfg: Any, seed: int) -> Seed:
    """The world of a seed, its held-out prompts, and the scores by which all its models are measured."""
    world, arms = world_of(cfg, seed), Path(cfg.out) / f"seed_{seed}"
    file = held_out(world, seed, cfg.evaluated, arms / "held_out.jsonl")
    asked = evaluate.load_prompts(file, hf.tokenizer(world / "sft/model"), window=PROMPT, long="refuse")
    window, compute = PROMPT + RESPONSE + 1, settings.Compute(unroll=2)
    proxy = scorer(str(world / "reward_model/model"), window=window, rows=64, compute=compute)
    score = rewards.mix({"proxy": (proxy, 1.0), "gold": (gold.score, 0.0)})
    return Seed({"world": str(world), "arms": str(arms), "held_out": file}, seed, asked, score)


def sampled(cfg: Any, at: Seed, model: str) -> Row:
    """gold, proxy, KL to SFT and length of a model's samples, f64 [G]: the means of each held-out prompt."""
    start, reward = f"{at.paths['world']}/sft/model", f"{at.paths['world']}/reward_model/model"
    told: dict[str, Any] = {"prompt_window": PROMPT, "response_window": RESPONSE, "seed": at.seed}
    told |= {"sampling": Sampling(temperature=0.7), "compute": settings.Compute(unroll=2)}
    how = evaluate.Experiment(model, start, reward, at.paths["held_out"], **told)
    found = evaluate.sampled(how, model, at.asked, at.score, cfg.samples, role=0)
    return {name: found[name].mean(axis=1) for name in ("gold", "proxy", "kl", "length")}


def chosen(folder: str) -> Row:
    """The same of the best of CHOSEN samples by the proxy, expected over all that were drawn; its KL is the bound."""
    with open(f"{folder}/scored.jsonl", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    proxy = np.array([row["scores"] for row in rows])
    told = {"gold": np.array([[gold.gold(row, text)[0] for text in row["responses"]] for row in rows])}
    told |= {"proxy": proxy, "length": np.array([row["tokens"] for row in rows])}
    found = {name: best_of_n.expected_best(proxy, values)[:, CHOSEN - 1] for name, values in told.items()}
    return found | {"kl": np.full(len(rows), best_of_n.kl_bound(CHOSEN))}


def nested(differences: np.ndarray, *, resamples: int = 10_000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of differences [seeds, G] and its 95 % percentile bootstrap interval: seeds are drawn anew, then prompts within
    each of them (a two-stage bootstrap; Davison and Hinkley 1997, §3.8). One seed alone gives an interval over its prompts."""
    draw, (seeds, size) = np.random.default_rng(seed), differences.shape
    means, block = [], max(1, 2**20 // differences.size)  # bounds the memory
    for done in range(0, resamples, block):
        count = min(block, resamples - done)
        rows = differences[draw.integers(seeds, size=(count, seeds))]
        picked = np.take_along_axis(rows, draw.integers(size, size=(count, seeds, size)), axis=2)
        means.append(picked.mean(axis=(1, 2)))
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)
