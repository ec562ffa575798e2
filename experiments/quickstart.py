"""The whole loop on a small made world, offline: base model → SFT → judgements → reward model → PPO → evaluation.

python experiments/quickstart.py             one seed, a few minutes on two CPU cores
python experiments/quickstart.py --seeds 5   five, with paired intervals

The world, its texts and its judges are synthetic. The model starts at random, is written as an ordinary Hugging Face
checkpoint, and goes through the same scripts as a downloaded one.
"""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import evaluate
import generate
import numpy as np
import ppo
import reward_model
import sft
from world import PROMPT, RESPONSE, judge, made_files, parses

from rlhf_jax.evaluation import intervals
from rlhf_jax.model.hf import families as hf_families
from rlhf_jax.model.lora import Lora
from rlhf_jax.playground import gold
from rlhf_jax.runs import config, report, settings
from rlhf_jax.runs.ppo_settings import PPO, Reward
from rlhf_jax.types import Sampling

LEGEND = """gold: what the made world's people truly like, 0 to 1. proxy: the reward model's score, which PPO sees.
kl: nats a response from SFT (of best of n: its formula). length: tokens. parses: share that the grammar makes.
win rate: how often the gold reward is above that of an SFT response to the same prompt; a tie counts half."""


@dataclass(frozen=True)
class Experiment:
    """Sizes and settings of the loop; the defaults take a few minutes on two cores."""

    out: str = "runs/quickstart"
    """The run folder; each seed has a folder below it, each stage one below that."""
    seed: int = 0
    """The first seed."""
    seeds: int = 1
    """How many seeds to run, one after another."""
    family: str = "llama"
    """Of the model: llama, gpt2, gpt_neox, gemma2, olmo2 or any other that rlhf-jax reads; a wrong name lists them."""
    width: int = 64
    """D of the model; a head has 16."""
    layers: int = 2
    """L of the model."""
    corpus: int = 44_000
    """Texts the base model learns from."""
    demonstrations: int = 2_000
    """Texts the SFT model learns from, of mixed quality."""
    judged: int = 2_500
    """Prompts whose samples are ranked."""
    samples: int = 4
    """Samples a prompt, for the judges and in the evaluation; also n of best-of-n."""
    judges: int = 8
    """Simulated people, each with noise and biases of their own; one of them ranks the samples of a prompt."""
    iterations: int = 40
    """Of PPO."""
    ppo: PPO = PPO(epochs=2, minibatches=4, kl_coef=0.1, value_coef=0.1)
    lora: Lora = Lora()
    learning_rate: float = 7e-4
    """Of the policy in PPO."""
    evaluated: int = 256
    """Held-out prompts of the evaluation."""

    def __post_init__(self) -> None:
        sizes = ("seeds", "width", "layers", "corpus", "demonstrations", "judged", "judges")
        for name in (*sizes, "iterations", "evaluated"):
            config.at_least(name, getattr(self, name), 1)
        config.choice("family", self.family, hf_families.FAMILIES)
        config.at_least("samples", self.samples, 2)
        config.non_negative("seed", self.seed)
        config.positive("learning_rate", self.learning_rate)
        config.check(self.width % 16 == 0, f"width must be a multiple of 16 (the size of a head), got {self.width}")


class Outcome(NamedTuple):
    """What one seed gives: rows of the evaluation, and accuracies on held-out pairs."""

    rows: dict[str, dict[str, np.ndarray]]
    accuracies: dict[str, Any]


def run_seed(cfg: Experiment) -> Outcome:
    """All stages for one seed."""
    folder = Path(cfg.out) / f"seed_{cfg.seed}"
    compute, sampling = settings.Compute(unroll=cfg.layers), Sampling(temperature=0.7)
    if (folder / "world").is_dir():
        print(f"replacing the earlier run in {folder}")
        shutil.rmtree(folder)
    print("base model, SFT, samples and judgements, reward model, PPO, evaluation: some 4 minutes on 2 idle cores")
    files = made_files(cfg, folder / "world")
    common: dict[str, Any] = {"seed": cfg.seed, "compute": compute, "save_every": 0}
    adam = settings.Optimizer(lr=4e-3, schedule="cosine", warmup=0.05, eps=1e-8, beta2=0.95)

    def stage(name: str) -> dict[str, Any]:
        print(f"\n── {name} (seed {cfg.seed})")
        return {"out": str(folder / name), **common}

    base = sft.main(
        sft.Experiment(
            files["start"],
            files["corpus"],
            window=PROMPT + RESPONSE,
            batch=32,
            held_out=0.02,
            optimizer=adam,
            **stage("base"),
        )
    )
    tuned = sft.main(
        sft.Experiment(
            base["folder"],
            files["demonstrations"],
            window=PROMPT + RESPONSE,
            batch=32,
            optimizer=replace(adam, lr=1e-3),
            **stage("sft"),
        )
    )
    print("\n── samples and judgements")
    responses = str(folder / "responses.jsonl")
    generate.main(
        generate.Experiment(
            tuned["folder"],
            files["prompts"],
            responses,
            samples=cfg.samples,
            prompt_window=PROMPT,
            response_window=RESPONSE,
            sampling=sampling,
            batch=250,
            seed=cfg.seed,
            compute=compute,
        )
    )
    rewarded = reward_model.main(
        reward_model.Experiment(
            tuned["folder"],
            judge(cfg, responses, folder / "comparisons.jsonl"),
            window=PROMPT + RESPONSE + 1,
            batch=32,
            epochs=2.0,
            reference=responses,
            optimizer=replace(adam, lr=1e-3),
            **stage("reward_model"),
        )
    )
    aligned = ppo.main(
        ppo.Experiment(
            tuned["folder"],
            files["prompts"],
            {"judged": Reward(model=rewarded["folder"])},
            iterations=cfg.iterations,
            prompts_per_iteration=64,
            samples_per_prompt=2,
            prompt_window=PROMPT,
            response_window=RESPONSE,
            sampling=sampling,
            ppo=cfg.ppo,
            optimizer=settings.Optimizer(lr=cfg.learning_rate),
            lora=cfg.lora,
            **stage("ppo"),
        )
    )
    print("\n── evaluation on held-out prompts")
    rows = evaluate.compare(
        evaluate.Experiment(
            aligned["folder"],
            tuned["folder"],
            rewarded["folder"],
            files["held_out"],
            samples=cfg.samples,
            prompt_window=PROMPT,
            response_window=RESPONSE,
            sampling=sampling,
            seed=cfg.seed,
            compute=compute,
        ),
        {"gold": gold.score, "parses": parses},
    )
    return Outcome(rows, rewarded["held_out"])


def main(cfg: Experiment) -> dict[str, Any]:
    """Run every seed; print one table, with 95 % intervals over prompts (one seed) or over seeds (several), and keep it
    in results.json: (mean, low, high) of each cell, gains of PPO, accuracies on held-out pairs a seed."""
    began = time.perf_counter()
    outcomes = [run_seed(replace(cfg, seed=seed)) for seed in range(cfg.seed, cfg.seed + cfg.seeds)]
    names = list(outcomes[0].rows)

    def values(name: str, metric: str) -> list[float]:
        """One value a prompt of the only seed, or one a seed."""
        found = [outcome.rows[name][metric] for outcome in outcomes]
        return list(found[0]) if len(found) == 1 else [float(each.mean()) for each in found]

    metrics = ["gold", "proxy", "kl", "length", "win rate", "parses"]
    rows = {name: {metric: intervals.paired(values(name, metric)) for metric in metrics} for name in names}
    labels = dict(zip(names, ("SFT", names[1], "PPO"), strict=True))
    rows = {labels[name]: row for name, row in rows.items()}
    over = "prompts of one seed" if cfg.seeds == 1 else f"{cfg.seeds} seeds"
    print(
        f"\n{evaluate.table(rows, metrics)}\nmean ± half the 95 % interval over {over}; all of it synthetic\n{LEGEND}\n"
    )
    gains = {}
    for other, name in (("SFT", names[0]), (names[1], names[1])):
        differences = np.subtract(values("policy", "gold"), values(name, "gold"))
        gains[other] = intervals.paired(differences)
        mean, low, high = gains[other]
        print(f"gold reward of PPO above {other}: {mean:+.3f}, paired 95 % interval [{low:+.3f}, {high:+.3f}]")
    models = ("reward model", "longer or shorter", "bag of words")
    accuracies = {name: [outcome.accuracies[name].accuracy for outcome in outcomes] for name in models}
    for name, found in accuracies.items():
        print(f"held-out pairs ordered rightly by {name}: {', '.join(f'{x:.3f}' for x in found)}")
    cells = [
        {"": name} | {metric: f"{mean:.3f} ± {(high - low) / 2:.3f}" for metric, (mean, low, high) in row.items()}
        for name, row in rows.items()
    ]
    page = report.write(
        *[Path(cfg.out) / f"seed_{seed}" / "ppo" for seed in range(cfg.seed, cfg.seed + cfg.seeds)],
        out=Path(cfg.out) / "report.html",
        title="Quickstart: the whole loop in a small made world",
        table=cells,
        notes=[f"Means with half their 95 % interval over {over}.", *LEGEND.splitlines()],
        synthetic=["The world, its texts, the gold reward and the judges are made up; no person judged anything here."],
    )
    seconds = time.perf_counter() - began
    print(f"{seconds / 60:.1f} minutes; report: {page}")
    result = {"rows": rows, "gains": gains, "accuracies": accuracies, "seconds": seconds}
    (Path(cfg.out) / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    config.command(main, Experiment)
