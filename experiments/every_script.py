"""Does every script raise what people truly like? Each aligns the SFT model of one made world, and all are asked the same.

python experiments/every_script.py --seed 30 --seeds 5      half an hour or so on one CPU core, with the worlds

A world is what quickstart.py makes before PPO: an SFT model, comparisons by simulated judges, a reward model. No script sees
the gold preference; it is measured on held-out prompts, with the same noise for every model. A script is a row of ARMS. Run
again, it goes on where it stopped. All of it is synthetic. The settings were chosen on seed 0 and then left alone.
"""

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import best_of_n
import distill
import dpo
import every_parts
import grpo
import nash_md
import numpy as np
import online_dpo
import ppo
import sft
from every_parts import CHOSEN, Row
from generate import written_whole
from world import PROMPT, RESPONSE

from rlhf_jax.evaluation import intervals
from rlhf_jax.runs import config

SAMPLING = {"sampling.temperature": 0.7, "compute.unroll": 2, "prompt_window": PROMPT, "response_window": RESPONSE}
JUDGED = SAMPLING | {"prompts": "{world}/world/prompts.jsonl", "rewards.judged.model": "{world}/reward_model/model"}
SHORT = {"save_every": 0, "show": 8, "iterations": 30}
ONLINE = JUDGED | SHORT | {"policy": "{world}/sft/model", "prompts_per_iteration": 32, "optimizer.lr": 7e-4}
TUNED = {"model": "{world}/sft/model", "window": PROMPT + RESPONSE, "save_every": 0, "compute.unroll": 2}
OFFLINE = TUNED | {"comparisons": "{world}/comparisons.jsonl", "optimizer.lr": 5e-4}
PPO = {"samples_per_prompt": 2, "ppo.epochs": 2, "ppo.minibatches": 4, "ppo.kl_coef": 0.1}
GRPO = {"prompts_per_iteration": 16, "samples_per_prompt": 4, "grpo.minibatches": 2, "grpo.kl_in": "reward"}
BEST = {"model": "{world}/sft/model", "batch": 250, **JUDGED}
STUDENT = {"student": "{world}/sft/model", "prompts": JUDGED["prompts"], "optimizer.lr": 1e-3, **SAMPLING, **SHORT}

LEGEND = """gold: what the made world's people truly like, 0 to 1; no script sees it. proxy: the reward model's score.
kl: nats a response from SFT (of best of 4 its bound). Intervals: bootstrap over seeds and their prompts; t over seeds."""


class Arm(NamedTuple):
    """A row of the table: scripts run one after another, each with its settings; the last one's model is measured. In them
    {world} is the seed's world, {arms} the folder of its arms, {here} this arm's own, {held_out} the prompts of the table."""

    steps: tuple[tuple[Any, dict[str, Any]], ...]
    after: str = ""
    """The arm whose model it starts from, if any."""
    chosen: bool = False
    """No model, but a choice among samples: the script is best_of_n.py, on the held-out prompts."""


ARMS = {
    "PPO": Arm(((ppo, ONLINE | PPO),)),
    "GRPO": Arm(((grpo, ONLINE | GRPO | {"grpo.kl_coef": 0.05}),)),
    "DPO": Arm(((dpo, OFFLINE | {"beta": 0.5, "epochs": 0.4}),)),
    "KTO": Arm(((dpo, OFFLINE | {"loss": "kto", "beta": 0.5, "epochs": 0.3}),)),
    "online DPO": Arm(((online_dpo, ONLINE | {"beta": 0.3, "minibatches": 4}),)),
    "Nash-MD": Arm(((nash_md, ONLINE | {"beta": 0.02, "minibatches": 2}),)),
    "best of 4": Arm(((best_of_n, BEST | {"prompts": "{held_out}", "samples": 4 * CHOSEN}),), chosen=True),
    "rejection sampling": Arm(
        (
            (best_of_n, BEST | {"samples": CHOSEN}),
            (sft, TUNED | {"demonstrations": "{here}/best_of_n/best.jsonl", "optimizer.lr": 1e-3}),
        )
    ),
    "distillation of PPO": Arm(((distill, STUDENT | {"teacher": "{arms}/PPO/ppo/model"}),), after="PPO"),
}


@dataclass(frozen=True)
class Experiment:
    """Which seeds, and how they are measured; what each script does is in ARMS."""

    out: str = "runs/every_script"
    """The run folder; finished arms in it are not run again."""
    worlds: str = ""
    """Folders that quickstart.py has made, {seed} for the seed, * for anything: runs/sweeps/stages/world-*/seed_{seed}. Empty:
    make them."""
    seed: int = 30
    """The first seed."""
    seeds: int = 5
    """How many, one after another."""
    evaluated: int = 256
    """Held-out prompts."""
    samples: int = 4
    """Samples a prompt."""

    def __post_init__(self) -> None:
        for name in ("seeds", "samples"):
            config.at_least(name, getattr(self, name), 1)
        config.at_least("evaluated", self.evaluated, 2)
        config.non_negative("seed", self.seed)
        config.check(
            not self.worlds or "{seed}" in self.worlds, f"worlds must have {{seed}} in it, got {self.worlds!r}"
        )


def run(name: str, at: every_parts.Seed) -> str:
    """Run an arm's scripts; the folder of the last one."""
    arm, here = ARMS[name], Path(at.paths["arms"]) / name.replace(" ", "_")
    shutil.rmtree(here, ignore_errors=True)
    folder = ""
    for script, given in arm.steps:
        print(f"\n── {name}: {script.__name__}.py (seed {at.seed})", flush=True)
        folder = str(here / script.__name__)
        told = given | {"out": folder, "seed": at.seed}
        argv = [f"--{key}={str(value).format(here=here, **at.paths)}" for key, value in told.items()]
        script.main(config.parse(script.Experiment, argv))
    return folder


def told_of(name: str) -> list[Any]:
    """An arm's scripts and settings, and those of the arm that it comes after."""
    before = told_of(ARMS[name].after) if ARMS[name].after else []
    return before + [[script.__name__, given] for script, given in ARMS[name].steps]


def kept(at: every_parts.Seed, name: str, wanted: dict[str, Any], measure: Callable[[], Row]) -> Row:
    """What a finished arm gave, read from its file if it had the settings `wanted`; else measured, and written there."""
    path = Path(at.paths["arms"]) / f"{name.replace(' ', '_')}.json"
    done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if done.get("settings") != wanted:
        done = {"settings": wanted, "rows": {name: values.tolist() for name, values in measure().items()}}
        with written_whole(str(path)) as file:
            json.dump(done, file)
    return {name: np.array(values) for name, values in done["rows"].items()}


def one(cfg: Experiment, seed: int) -> dict[str, Row]:
    """A seed's rows: SFT, then each of ARMS."""
    at = every_parts.open_seed(cfg, seed)
    start = f"{at.paths['world']}/sft/model"
    asked = {"start": start, "evaluated": cfg.evaluated, "samples": cfg.samples}

    def measured(name: str) -> Row:
        folder = run(name, at)
        return every_parts.chosen(folder) if ARMS[name].chosen else every_parts.sampled(cfg, at, f"{folder}/model")

    rows = {"SFT": kept(at, "SFT", asked, lambda: every_parts.sampled(cfg, at, start))}
    for name in ARMS:
        rows[name] = kept(at, name, asked | {"steps": told_of(name)}, functools.partial(measured, name))
        print(f"seed {seed}, {name}: gold {rows[name]['gold'].mean():.3f}", flush=True)
    return rows


def table(rows: dict[str, Any]) -> str:
    """The table in words."""
    width = max(map(len, rows))
    lines = [f"{'':<{width}}   gold  over SFT [95 %: bootstrap, t]                        KL   proxy  length"]
    for name, row in rows.items():
        gain = ""
        if name != "SFT":
            gain = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["gain"])
            gain += "" if row["gain_t"] is None else " [{:+.3f}, {:+.3f}]".format(*row["gain_t"][1:])
        rest = "".join(f"{row[metric]:>8.3f}" for metric in ("kl", "proxy", "length"))
        lines.append(f"{name:<{width}}  {row['gold']:.3f}  {gain:<44}{rest}")
    return "\n".join(lines)


def main(cfg: Experiment) -> dict[str, Any]:
    """Run every seed, print the table, and keep it in results.json: means, the gain on SFT with its intervals, each seed's
    figures, and the settings of every arm."""
    seeds = list(range(cfg.seed, cfg.seed + cfg.seeds))
    found = [one(cfg, seed) for seed in seeds]
    rows: dict[str, Any] = {}
    for name in found[0]:
        each = {metric: [float(row[name][metric].mean()) for row in found] for metric in found[0][name]}
        rows[name] = {metric: float(np.mean(values)) for metric, values in each.items()} | {"each": each}
        if name != "SFT":
            gains = np.stack([row[name]["gold"] - row["SFT"]["gold"] for row in found])
            over_seeds = intervals.paired(gains.mean(axis=1)) if len(seeds) > 1 else None
            rows[name] |= {"gain": every_parts.nested(gains), "gain_t": over_seeds}
    print(f"\n{table(rows)}\n{LEGEND}")
    told: dict[str, Any] = {"command": f"python experiments/every_script.py --seed {cfg.seed} --seeds {cfg.seeds}"}
    told |= {"seeds": seeds, "evaluated": cfg.evaluated, "samples": cfg.samples, "chosen_on": "seed 0", "rows": rows}
    told |= {"arms": {name: told_of(name) for name in ARMS}}
    (Path(cfg.out) / "results.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return told


if __name__ == "__main__":
    config.command(main, Experiment)
