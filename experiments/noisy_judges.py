"""Does it pay to know whom to trust, and what to ask? Reward models from judges of whom a fifth answers at random and a tenth the
wrong way round, with and without reliability; and pairs chosen actively beside pairs drawn at random.

python experiments/noisy_judges.py --seed 30 --seeds 5      a minute or so a seed on one CPU core

All of it is synthetic: a made world, simulated judges, a small reward model (judged_world.py). The arms of a seed share texts,
judgements, first numbers and order, and as many steps; differences are paired over seeds. Accuracy is the share of pairs that
are ordered as the gold preference does, on prompts that nobody judged, drawn at random and never by a strategy.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from judged_world import SIZE, encode, fit, made, margins, panel, truth

from rlhf_jax.algorithms.reward_model import JUDGING
from rlhf_jax.evaluation import intervals
from rlhf_jax.feedback import records, selection, simulate
from rlhf_jax.runs import config, data, judged
from rlhf_jax.types import Pairs

ARMS = ("plain Bradley-Terry", "majority vote", "Dawid-Skene labels", "Crowd-BT", "good judges alone")
"""Every judgement alike; one label a pair by majority; by `feedback.dawid_skene`; every judgement by its judge's reliability,
learnt with the rewards; and, to compare, plain Bradley-Terry without the bad judges, which only a simulation knows."""
STRATEGIES = ("random", "disagreement", "BALD", "D-optimal")
"""Of `feedback.selection`."""
EVENLY, AS_ASKED = "every kind of prompt", "prompts as asked"
"""Selection is evaluated on held-out prompts drawn evenly, and drawn as unevenly as those of the pool."""


@dataclass(frozen=True)
class Experiment:
    """Sizes and settings, chosen on seeds from 100 on and then left alone."""

    out: str = "runs/noisy_judges"
    """The run folder."""
    seed: int = 30
    """The first seed."""
    seeds: int = 5
    """How many, one after another."""
    held_out: int = 4000
    """Gold pairs of the evaluation."""
    judges: int = 40
    """Simulated people."""
    lr: float = 3e-3
    """Of the reward model."""
    batch: int = 32
    """Pairs an optimizer step; of single judgements as many as those pairs have."""
    pairs: int = 2000
    """Pairs that are judged, for reliability."""
    votes: int = 3
    """Judges of each of them."""
    spammers: float = 0.2
    """Share of the judges who answer at random."""
    inverted: float = 0.1
    """Share of them who answer the wrong way round."""
    noise: float = 0.1
    """Of the others, in gold score a logit."""
    epochs: float = 6.0
    """Passes over the pairs."""
    pool: int = 4000
    """Pairs that may be asked about, for active selection."""
    skew: float = 1.5
    """How unevenly the prompts of the pool are asked (Zipf)."""
    first: int = 200
    """Pairs drawn at random before a strategy begins."""
    rounds: int = 4
    """Rounds of selection."""
    ask: int = 200
    """Pairs a round."""
    random_share: float = 0.2
    """Share of them that is drawn at random whatever the strategy."""
    members: int = 4
    """Reward models of an ensemble."""
    steps: int = 150
    """Of each of them, from the beginning in each round."""
    quiet: float = 0.05
    """Noise of the judges, none of whom is bad here."""
    sketch: int = 256
    """Dimensions to which features are projected at random for D-optimal design."""
    repeats: int = 2
    """Times the selection is done a seed, from other first pairs; their mean counts."""

    def __post_init__(self) -> None:
        for name in (
            "seeds",
            "held_out",
            "judges",
            "batch",
            "pairs",
            "votes",
            "pool",
            "first",
            "rounds",
            "ask",
            "members",
        ):
            config.at_least(name, getattr(self, name), 1)
        config.check(self.spammers + self.inverted < 1, "spammers and inverted must leave good judges")
        config.check(self.votes <= self.judges, f"votes must be at most the {self.judges} judges, got {self.votes}")
        asked = self.first + self.rounds * self.ask
        config.check(asked <= self.pool, f"pool must hold all that is asked about, {asked}; got {self.pool}")


def reliability(cfg: Experiment, test: Pairs) -> tuple[dict[str, float], dict[str, float]]:
    """(accuracy of each of ARMS, mean reliability that Crowd-BT learns of each kind of judge), for one seed."""
    rng = np.random.default_rng((cfg.seed, 2))
    spammers, inverted = (round(share * cfg.judges) for share in (cfg.spammers, cfg.inverted))
    who = panel(rng, cfg.judges, temperature=cfg.noise, spammers=spammers, inverted=inverted)
    said = simulate.collect(rng, made(cfg.seed, cfg.pairs, split="train"), who, votes=cfg.votes)
    names = [judge.name for judge in who]
    kinds = {"spammers": slice(0, spammers), "inverted": slice(spammers, spammers + inverted)}
    kinds |= {"others": slice(spammers + inverted, None)}
    eta: dict[str, float] = {}

    def accuracy(pairs: Sequence[records.Pair], loss: str = "bradley_terry", a_pair: int = 1) -> float:
        sizes: dict[str, Any] = {"steps": round(cfg.epochs * cfg.pairs / cfg.batch), "batch": cfg.batch * a_pair}
        model = fit(encode(pairs, names), cfg.seed, loss=loss, judges=len(names), lr=cfg.lr, **sizes)
        if loss == "crowd_bt":
            learnt = 1 / (1 + np.exp(-np.asarray(model[JUDGING + "reliability"], np.float64)))
            eta.update({kind: float(learnt[rows].mean()) for kind, rows in kinds.items() if learnt[rows].size})
        return float((margins([model], test)[0] > 0).mean())

    each = judged.pairs(said, "each")
    majority = [replace(pair, label=1.0, equal=0.0) for pair in judged.pairs(said, "votes") if not pair.tie]
    good = [pair for pair in each if pair.annotator in names[spammers + inverted :]]
    found = [
        accuracy(each, a_pair=cfg.votes),
        accuracy(majority),
        accuracy(judged.pairs(said, "dawid_skene")),
        accuracy(each, "crowd_bt", a_pair=cfg.votes),
        accuracy(good, a_pair=cfg.votes),
    ]
    return dict(zip(ARMS, found, strict=True)), eta


def active(cfg: Experiment, tests: dict[str, Pairs], repeat: int) -> dict[str, dict[str, float]]:
    """Accuracy of each of STRATEGIES on each test for one seed, after equally many judgements; the first are the same for
    all."""
    rng = np.random.default_rng((cfg.seed, 3, repeat))
    items = made(cfg.seed, cfg.pool, split="train", skew=cfg.skew)
    rows = encode(judged.pairs(simulate.collect(rng, items, panel(rng, cfg.judges, temperature=cfg.quiet)), "each"))
    table = rng.normal(0, cfg.sketch**-0.5, (SIZE, cfg.sketch))
    z = sketched(rows.chosen, rows.chosen_length, table) - sketched(rows.rejected, rows.rejected_length, table)

    def ensemble(asked: np.ndarray) -> list[Any]:
        sizes: dict[str, Any] = {"steps": cfg.steps, "batch": cfg.batch, "lr": cfg.lr}
        return [fit(data.take(rows, asked), 1000 * repeat + m, **sizes) for m in range(cfg.members)]

    start = rng.permutation(cfg.pool)[: cfg.first]
    begun = ensemble(start)
    found: dict[str, dict[str, float]] = {name: {} for name in tests}
    for strategy in STRATEGIES:
        asked, members = start, begun
        for turn in range(cfg.rounds):
            rest = np.setdiff1d(np.arange(cfg.pool), asked)
            draw = np.random.default_rng((cfg.seed, 5, repeat, turn))
            chosen = choose(strategy, margins(members, data.take(rows, rest)), z[rest], z[asked], cfg, draw)
            asked = np.concatenate([asked, rest[chosen.index]])
            members = ensemble(asked)
        for name, test in tests.items():
            found[name][strategy] = float((margins(members, test).mean(axis=0) > 0).mean())
    return found


def choose(
    strategy: str, said: np.ndarray, z: np.ndarray, known: np.ndarray, cfg: Experiment, draw: np.random.Generator
) -> selection.Chosen:
    """A round's pairs, by the members' margins [M, n], the features z [n, D] and those of what was asked before."""
    if strategy == "random":
        return selection.choose(np.zeros(len(z)), cfg.ask, draw, random_share=1.0)
    if strategy == "D-optimal":  # a pair that was asked told what a coin flip would: p (1 - p) = 1/4
        order = selection.d_optimal(z, said, cfg.ask, known=known / 2)
        return selection.after(order, len(z), cfg.ask, draw, random_share=cfg.random_share)
    score = {"disagreement": selection.disagreement, "BALD": selection.bald}[strategy](said)
    return selection.choose(score, cfg.ask, draw, random_share=cfg.random_share)


def sketched(tokens: np.ndarray, length: np.ndarray, table: np.ndarray) -> np.ndarray:
    """f64 [n, D]: the features of each text, projected at random."""
    return np.stack([table[row[:size]].sum(axis=0) for row, size in zip(tokens, length, strict=True)])


def compared(rows: Sequence[dict[str, float]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each arm its accuracies by seed, their mean, and mean and paired 95 % interval of the gain on the first arm."""
    found = {}
    for name in names:
        each = [row[name] for row in rows]
        gain = intervals.paired(np.subtract(each, [row[names[0]] for row in rows])) if len(rows) > 1 else None
        found[name] = {"accuracy": each, "mean": float(np.mean(each)), "gain": gain}
    return found


def text(title: str, table: dict[str, dict[str, Any]]) -> str:
    """A table in words."""
    first, lines = next(iter(table)), [f"\n{title:<24}{'accuracy':>10}   gain [95 %, paired over seeds]"]
    for name, row in table.items():
        gain = "" if name == first or row["gain"] is None else "   {:+.4f} [{:+.4f}, {:+.4f}]".format(*row["gain"])
        lines.append(f"{name:<24}{row['mean']:>10.4f}{gain}")
    return "\n".join(lines)


def main(cfg: Experiment) -> dict[str, Any]:
    """Run every seed, print the tables, and keep them in results.json."""
    kept: dict[str, list[dict[str, float]]] = {}
    print(
        f"{cfg.seeds} seeds, one after another: with the sizes as they come, a minute or so each on one CPU core",
        flush=True,
    )
    for seed in range(cfg.seed, cfg.seed + cfg.seeds):
        began, one = time.process_time(), replace(cfg, seed=seed)
        tests = {
            name: encode(truth(made(seed, cfg.held_out, split="held out", skew=skew)))
            for name, skew in ((EVENLY, 0.0), (AS_ASKED, cfg.skew))
        }
        accuracies, eta = reliability(one, tests[EVENLY])
        row = {"reliability": accuracies, "learnt": eta}
        asked = [active(one, tests, repeat) for repeat in range(cfg.repeats)]
        for name in tests if asked else ():
            row[name] = {key: float(np.mean([each[name][key] for each in asked])) for key in STRATEGIES}
        for name, values in row.items():
            kept.setdefault(name, []).append(values)
        shown = "; ".join(f"{name}: {', '.join(f'{k} {x:.4f}' for k, x in row[name].items())}" for name in row)
        print(f"seed {seed}, {time.process_time() - began:.0f} s of CPU. {shown}", flush=True)
    learnt = kept.pop("learnt")
    tables = {name: compared(rows, tuple(rows[0])) for name, rows in kept.items()}
    titles = {"reliability": f"{cfg.spammers:.0%} random, {cfg.inverted:.0%} inverted"}
    for name, table in tables.items():
        print(text(titles.get(name, name), table))
        if name == "reliability":
            for kind in learnt[0]:
                right = np.mean([eta[kind] for eta in learnt])
                print(f"Crowd-BT takes {kind} to be right in {right:.2f} of their judgements")
    print(f"{cfg.seeds} seeds; {cfg.first + cfg.rounds * cfg.ask} judgements for selection; all of it is made up")
    result = {"seeds": list(range(cfg.seed, cfg.seed + cfg.seeds)), **tables, "learnt_reliability": learnt}
    Path(cfg.out).mkdir(parents=True, exist_ok=True)
    (Path(cfg.out) / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    config.command(main, Experiment)
