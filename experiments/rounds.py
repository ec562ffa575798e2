"""The whole loop, again and again: sample → judge → reward model → PPO, each round on the newest policy.

python experiments/rounds.py --config experiments/configs/rounds.yaml
python experiments/rounds.py --config experiments/configs/rounds.yaml --resume true    # goes on where it stopped

Each round judges prompts that no round before it has seen. Its fresh pairs first test the reward model of the round
before, and only then teach the next one: a reward model's accuracy falls as the policy moves away from the texts it
learnt from (arXiv 2204.05862, section 4.5), and this is where that shows.
"""

import functools
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import label as label_script
import ppo as ppo_script
import reward_model
import rounds_parts as parts
import rounds_table
from rounds_parts import NEWEST, Simulated

from rlhf_jax.feedback import records
from rlhf_jax.feedback.store import open_store
from rlhf_jax.runs import config, label_report, log
from rlhf_jax.runs.ppo_settings import Reward


@dataclass(frozen=True)
class Experiment:
    """Rounds of human feedback, from one configuration.

    Each stage takes the settings of its own script; rounds.py sets the rest: of `label` db, prompts, policy, reward_models
    (those of the round before; round 1 has none, so that its pairs are drawn at random) and seed; of `reward` model
    (`policy`), comparisons (of all rounds so far), out, member and seed; of `ppo` policy, prompts, out and seed, and a reward
    whose model is "newest" is the round's own.
    """

    policy: str
    """Folder or hub name of the model that round 1 samples from."""
    prompts: str
    """File of prompts: every round judges responses to new ones, PPO trains on all of them."""
    out: str = "runs/rounds"
    """The run folder: judgements.sqlite, and a folder a round."""
    held_out: str = ""
    """File of further prompts on which every round's policy is compared with `policy`; empty: no comparison."""
    gold: str = ""
    """"file.py:function", a better judge than the reward model, called as a reward function: judges for the simulated
    people, and decides the comparison on `held_out`."""
    rounds: int = 3
    """k."""
    prompts_per_round: int = 100
    """Prompts whose responses are judged in a round."""
    members: int = 1
    """Reward models a round, for `label.select`: PPO takes the first, together they choose what the next round asks about."""
    simulated: Simulated = Simulated()
    start: str = "first"
    """Where the PPO of each round starts: "first", at `policy` again, as arXiv 2204.05862 does, or "last", at the policy of
    the round before, whose KL leash then begins there."""
    label: label_script.Experiment = label_script.Experiment(db="")
    reward: reward_model.Experiment = reward_model.Experiment(model="", comparisons="")
    ppo: ppo_script.Experiment = ppo_script.Experiment(policy="", prompts="", rewards={"judged": Reward(model=NEWEST)})
    seed: int = 0
    """Decides the prompts of each round, and the seed of each stage."""
    resume: bool = False
    """Go on with the rounds of the run folder; stages that are done are not done again."""

    def __post_init__(self) -> None:
        for name in ("rounds", "prompts_per_round", "members"):
            config.at_least(name, getattr(self, name), 1)
        config.non_negative("seed", self.seed)
        config.choice("start", self.start, ("first", "last"))
        config.check(not self.simulated.judges or bool(self.gold), "simulated judges need gold, a file.py:function")
        config.check(self.label.kind != "rate", "label.kind must be pair or rank: fresh pairs test the reward model")
        judges = self.simulated.judges or len(self.label.names())
        config.check(
            self.label.overlap <= judges, f"label.overlap is {self.label.overlap}, and there are {judges} to judge"
        )
        config.check(not self.label.reward_models, "label.reward_models: rounds.py gives those of the round before")
        first = ",".join(str(member) for member in range(self.members))
        parts.label_select.check(replace(self.label, reward_models=first if self.label.select else ""))
        newest = [name for name, part in self.ppo.rewards.items() if part.model == NEWEST]
        config.check(bool(newest), f'ppo.rewards must have a part whose model is "{NEWEST}", the round\'s own')


def stage(folder: Path, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the stage gave, kept in a file: run once, however often the rounds are started again."""
    kept = folder / f"{name}.json"
    if kept.exists():
        print(f"── {folder.name}, {name}: done already")
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    print(f"\n── {folder.name}, {name}")
    found = run()
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    partial.replace(kept)
    return found


def one_round(cfg: Experiment, number: int, policy: str, rewards: Sequence[str]) -> dict[str, Any]:
    """Round `number` (1-based), sampling from `policy`; `rewards` are the reward models of the round before. Its row of the
    table, and under "policy" and "reward_models" the folders of what it trained.

    What a stage keeps names folders as seen from the run folder, which may be moved between two stages."""
    folder = Path(cfg.out) / f"round_{number}"
    folder.mkdir(exist_ok=True)
    seed, store = cfg.seed + number, str(Path(cfg.out) / "judgements.sqlite")
    comparisons, asked = str(folder / "comparisons.jsonl"), str(folder / "prompts.jsonl")

    def judge() -> dict[str, Any]:
        parts.write_prompts(cfg, number, asked)
        how = cfg.label.select and (cfg.label.select if rewards else "random")
        wanted = replace(cfg.label, db=store, prompts=asked, policy=policy, seed=seed, select=how)
        wanted = replace(wanted, reward_models=",".join(rewards) if how not in ("", "random") else "")
        with closing(open_store(store)) as con:
            parts.judge(con, wanted, cfg, number)
            page = label_report.page_of_store(con)
            (Path(cfg.out) / "judgements.html").write_text(page, encoding="utf-8")
            return parts.write_comparisons(con, number, comparisons)

    def fresh() -> dict[str, Any]:
        return parts.fresh_accuracy(cfg, number, comparisons, rewards[0] if rewards else "")

    def learn(member: int) -> dict[str, Any]:
        out = str(folder / ("reward_model" if not member else f"reward_model_{member}"))
        wanted = replace(cfg.reward, model=cfg.policy, comparisons=comparisons, out=out, seed=seed, member=member)
        found = reward_model.main(replace(wanted, resume=parts.begun(cfg, out)))
        held = found["held_out"].get("reward model")
        others = [other.accuracy for name, other in found["held_out"].items() if name != "reward model" and other]
        told = {"held_out": held and held.accuracy, "baseline": max(others, default=None)}
        return {"folder": parts.inside(cfg, found["folder"])} | told

    def align() -> dict[str, Any]:
        out, begins = str(folder / "ppo"), cfg.policy if cfg.start == "first" else policy
        rewards = {
            name: replace(part, model=models[0]) if part.model == NEWEST else part
            for name, part in cfg.ppo.rewards.items()
        }
        wanted = replace(cfg.ppo, policy=begins, prompts=cfg.prompts, rewards=rewards, out=out, seed=seed)
        found = ppo_script.main(replace(wanted, resume=parts.begun(cfg, out)))
        told = {"reward": found["rollout/score"], "kl": found["rollout/kl"]}
        return {"folder": parts.inside(cfg, found["folder"])} | told

    def compare() -> dict[str, Any]:
        return parts.compared(cfg, new_policy, models[0])

    judged = stage(folder, "judgements", judge)
    tested = stage(folder, "fresh", fresh)
    learnt = [
        stage(folder, f"reward_{member}" if member else "reward", functools.partial(learn, member))
        for member in range(cfg.members)
    ]
    models = [str(Path(cfg.out) / each["folder"]) for each in learnt]
    aligned = stage(folder, "policy", align)
    new_policy = str(Path(cfg.out) / aligned["folder"])
    compared = stage(folder, "compared", compare) if cfg.held_out else {}
    row = {"comparisons": judged["comparisons"], "fresh": tested["accuracy"], "held_out": learnt[0]["held_out"]}
    row |= {"baseline": learnt[0].get("baseline")}
    row |= {"ceiling": judged["ceiling"], "reward": aligned["reward"], "kl": aligned["kl"]} | compared
    return row | {"policy": new_policy, "reward_models": models, "source_kinds": judged["source_kinds"]}


def main(cfg: Experiment) -> dict[str, Any]:
    """Run the rounds; their table, and under "folder" the last policy."""
    parts.check(cfg)
    rows: list[dict[str, Any]] = []
    policy: str = cfg.policy
    rewards: Sequence[str] = ()
    with log.open_run(
        cfg.out, cfg, resume=cfg.resume, may_grow=("rounds",), may_change=("out", "resume", "label")
    ) as run:
        run.cut(-1)
        run.log(0, {"rounds": cfg.rounds})  # from here on nothing of the folder is taken away, whatever happens
        for number in range(1, cfg.rounds + 1):
            row = one_round(cfg, number, policy, rewards)
            policy, rewards = row["policy"], row["reward_models"]
            rows.append(row)
            run.log(number, {name: value for name, value in row.items() if isinstance(value, float)})
    kinds = records.SOURCE_KINDS
    mix = {kind: sum(row["source_kinds"].get(kind, 0) for row in rows) for kind in kinds}
    print(f"\n{rounds_table.table(rows)}\njudged by: {', '.join(f'{kind} {n}' for kind, n in mix.items() if n)}")
    page = rounds_table.report_page(cfg, rows, mix)
    print(f"policy: {policy}   report: {page}")
    for line in rounds_table.warnings(rows):
        print(f"warning: {line}")
    found = {"rows": rows, "source_kinds": mix, "folder": policy}
    (Path(cfg.out) / "rounds.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    config.command(main, Experiment)
