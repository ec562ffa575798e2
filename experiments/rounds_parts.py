"""What rounds.py is made of: new prompts, a page to judge at, what was judged, what it teaches. `cfg` is its Experiment."""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import evaluate
import label
import label_parts
import label_select
import numpy as np
from reward_parts import to_pairs
from reward_scores import scorer

from rlhf_jax.evaluation import baselines, intervals
from rlhf_jax.feedback import formats, records, simulate
from rlhf_jax.feedback.records import Prompt
from rlhf_jax.feedback.statistics import agreement
from rlhf_jax.feedback.store.add import add_annotator, add_items, new_token
from rlhf_jax.runs import config, data, held_out, strict_yaml

NEWEST = "newest"
"""Stands for the round's own reward model."""

POLL_S = 1.0
"""Seconds between looks at whether people have judged everything."""


@dataclass(frozen=True)
class Simulated:
    """Simulated people in place of people, at the same page and through the same server; what they say is synthetic."""

    judges: int = 0
    """How many; 0 leaves the judging to people."""
    temperature: float = 0.03
    """Score units of `gold` a logit."""
    position_bias: float = 0.2
    """Logits by which what stands first wins."""
    length_bias: float = 0.02
    """Logits a word."""
    lapse: float = 0.05
    """Share of answers at random."""

    def __post_init__(self) -> None:
        config.non_negative("judges", self.judges)
        config.positive("temperature", self.temperature)
        config.fraction("lapse", self.lapse)


def check(cfg: Any) -> None:
    """UserError, before anything runs, for too few prompts for all rounds, or held-out ones that are all among them."""
    found, _ = formats.load_prompts(data.find(cfg.prompts))
    unique, wanted = len({prompt.prompt_id for prompt in found}), cfg.rounds * cfg.prompts_per_round
    config.check(
        unique >= wanted,
        f"prompts: {cfg.prompts} has {unique} different prompts; {cfg.rounds} rounds of {cfg.prompts_per_round} need {wanted}",
    )
    if cfg.gold:
        config.resolve_function(cfg.gold, "gold")
    if cfg.held_out:
        clean_prompts(cfg)


def begun(cfg: Any, folder: str) -> bool:
    """Whether a stage's run folder holds a run to go on with. Where the rounds were moved meanwhile, what it was begun with is
    written down anew, under where it lies now."""
    file = Path(folder) / "config.yaml"
    if not file.exists():
        return False
    was, tail = str(strict_yaml.load(file)["out"]), os.path.relpath(folder, cfg.out)
    if was != folder and was.endswith(tail):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(was.removesuffix(tail), folder.removesuffix(tail)), encoding="utf-8")
    return True


def chosen(cfg: Any, number: int) -> list[Prompt]:
    """The round's prompts: no other round has one of them."""
    found, _ = formats.load_prompts(data.find(cfg.prompts))
    unique = list({prompt.prompt_id: prompt for prompt in found}.values())
    order = np.random.default_rng(cfg.seed).permutation(len(unique))
    first = (number - 1) * cfg.prompts_per_round
    return [unique[i] for i in order[first : first + cfg.prompts_per_round]]


def write_prompts(cfg: Any, number: int, path: str) -> None:
    """The round's prompts as a file for label.py."""
    _write(chosen(cfg, number), path)


def _write(prompts: Sequence[Prompt], path: str) -> None:
    rows = [{**prompt.meta, "prompt": list(prompt.prompt)} for prompt in prompts]
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def clean_prompts(cfg: Any) -> list[Prompt]:
    """The prompts of `held_out` without those that `prompts` shares: counted, and told."""
    found, _ = formats.load_prompts(data.find(cfg.held_out))
    learnt, _ = formats.load_prompts(data.find(cfg.prompts))
    return held_out.clean(learnt, found, f"held_out, {cfg.held_out}", cfg.reward.leaks)


def inside(cfg: Any, folder: str) -> str:
    """The folder as seen from the run folder, which may be moved."""
    return os.path.relpath(Path(folder).resolve(), Path(cfg.out).resolve())


def judge(con: sqlite3.Connection, wanted: label.Experiment, cfg: Any, number: int) -> None:
    """Sample, put the items of the round into the store, and serve the page until all of them are judged."""
    from rlhf_jax.feedback.server import run as server_run

    path = Path(f"{wanted.prompts}.responses.jsonl")
    label_parts.sample(
        wanted, path, policy=wanted.policy if wanted.policy == cfg.policy else inside(cfg, wanted.policy)
    )
    made, left = label_parts.items(label_parts.rows_of(path), wanted, policy=path.name)
    config.check(bool(made), f"round {number} has nothing to judge; left out: {data.counted(left)}")
    made = label_select.chosen(made, wanted) if wanted.select else made
    add_items(con, [replace(item, round=number) for item in made])
    if wanted.gold:
        add_items(con, label_parts.gold_items(data.find(wanted.gold, wanted.data), wanted)[0])
    print(f"{len(made)} items of kind {wanted.kind}; left out: {data.counted(left)}", flush=True)
    with closing(server_run.bind(wanted.host, 0 if cfg.simulated.judges else wanted.port)) as listening:
        app, base = label.page(wanted, listening)
        with server_run.serving(app, listening):
            if cfg.simulated.judges:
                simulated(con, base, cfg, number)
            else:
                people(con, base, wanted, number)
    done, total = judged_items(con, number, judges_of(con, wanted, cfg))
    config.check(
        done == total, f"{total - done} of {total} items of round {number} lack judgements: is somebody paused?"
    )


def people(con: sqlite3.Connection, base: str, wanted: label.Experiment, number: int) -> None:
    """Print the links, and wait until every item of the round is judged by as many as it takes; Ctrl-C stops for now."""
    links = Path(f"{wanted.db}.links.json")
    print("open in a browser; each link is one person's own:")
    for name, token in label_parts.tokens(con, wanted.names(), links, admin=wanted.admin).items():
        print(f"  {name:<12} {base}/#{token}")
    print("the round goes on when all is judged; Ctrl-C stops, and --resume true goes on", flush=True)
    told: tuple[Any, ...] = ()
    while (now := judged_items(con, number, wanted.names()))[0] < now[1]:
        paused = [row["name"] for row in con.execute("SELECT name FROM annotator WHERE paused IS NOT NULL")]
        if (now, paused) != told:
            print(f"{now[0]} of {now[1]} items judged", flush=True)
            for name in paused:
                print(f"{name} is paused: label.py --db {wanted.db} --resume {name} lets them go on", flush=True)
            told = now, paused
        time.sleep(POLL_S)


def judges_of(con: sqlite3.Connection, wanted: label.Experiment, cfg: Any) -> list[str]:
    """The names of those who judge in these rounds: a person of an earlier start need not be waited for."""
    if not cfg.simulated.judges:
        return wanted.names()
    return [row["name"] for row in con.execute("SELECT name FROM annotator WHERE source_kind = 'synthetic'")]


def judged_items(con: sqlite3.Connection, number: int, names: Sequence[str]) -> tuple[int, int]:
    """(how many items of the round have a verdict, no skip, of as many people as they need, or have been met by everybody of
    `names`; how many there are)."""
    row = con.execute(
        "SELECT count(*) FILTER (WHERE verdicts >= target_n OR met >= :judges), count(*) FROM (SELECT target_n, "
        "(SELECT count(*) FROM assignment WHERE item_id = item.id AND repeat_of IS NULL AND state = 'judged') AS verdicts, "
        "(SELECT count(*) FROM assignment JOIN annotator ON annotator.id = annotator_id WHERE item_id = item.id "
        "AND repeat_of IS NULL AND state != 'open' AND name IN (SELECT value FROM json_each(:names))) AS met "
        "FROM item WHERE gold IS NULL AND round = :round)",
        {"round": number, "judges": len(names), "names": json.dumps(names)},
    ).fetchone()
    return row[0], row[1]


def simulated(con: sqlite3.Connection, base: str, cfg: Any, number: int) -> None:
    """Simulated people judge at the served page, all at once, until nothing is left."""
    from rlhf_jax.feedback.server import simulated as simulate_http

    gold, lock = config.resolve_function(cfg.gold, "gold"), threading.Lock()
    columns = {prompt.prompt_id: prompt.meta for prompt in chosen(cfg, number)}

    def score(messages: Sequence[Mapping[str, str]], response: str, axis: str) -> float:
        prompt = records.as_messages(messages)
        with lock:  # a user's function need not stand several threads
            found = gold([prompt], [response], [columns.get(records.prompt_key(prompt), {})])
        return float(np.asarray(found[0] if isinstance(found, tuple) else found).reshape(-1)[0])

    told = cfg.simulated
    rng = np.random.default_rng((cfg.seed, 1))
    panel = simulate.panel(
        rng,
        told.judges,
        temperature=told.temperature,
        position_bias=told.position_bias,
        length_bias=told.length_bias,
        lapse=told.lapse,
    )
    known = {row["name"] for row in con.execute("SELECT name FROM annotator")}
    tokens = [
        new_token(con, each.name) if each.name in known else add_annotator(con, each.name, source_kind="synthetic")
        for each in panel
    ]
    with ThreadPoolExecutor(len(panel)) as pool:
        work = [
            pool.submit(
                simulate_http.annotate, base, token, simulate_http.Habits(each), score, seed=cfg.seed + 1000 * number
            )
            for each, token in zip(panel, tokens, strict=True)
        ]
        said = sum(len(each.result()) for each in work)
    print(f"{said} judgements by {told.judges} simulated people")


def write_comparisons(con: sqlite3.Connection, number: int, path: str) -> dict[str, Any]:
    """The comparisons of all rounds up to this one as a file, and what this round's are."""
    from rlhf_jax.feedback.store import export as store_export

    which = store_export.Which(rounds=tuple(range(1, number + 1)))
    kept = [each for each in store_export.records(con, which)[0] if isinstance(each, records.Comparison)]
    fresh = [each for each in kept if each.meta["round"] == number]
    config.check(bool(fresh), f"round {number} gave no comparison: everything was skipped or called bad")
    formats.dump(path, kept)
    bound = agreement.annotator_ceiling(fresh).accuracy
    return {"comparisons": len(fresh), "source_kinds": records.mix(fresh), "ceiling": bound}


def fresh_accuracy(cfg: Any, number: int, comparisons: str, reward: str) -> dict[str, Any]:
    """How many of the round's pairs the reward model before it orders rightly, on items chosen at random only; None where there
    is no such model."""
    if not reward:
        return {"accuracy": None, "n": 0}
    found, _ = formats.load(comparisons)
    fresh = [each for each in found if each.meta["round"] == number and each.meta["selection"] == "random"]
    pairs = [pair for pair in to_pairs(fresh, cfg.reward, "fresh") if not pair.tie]
    score = scorer(reward, window=cfg.reward.window, rows=2 * cfg.reward.batch, compute=cfg.reward.compute)
    prompts: list[Any] = [pair.prompt for pair in pairs]
    nothing: list[dict[str, Any]] = [{} for _ in pairs]
    chosen_, rejected = (
        np.asarray(score(prompts, [getattr(pair, side) for pair in pairs], nothing)) for side in ("chosen", "rejected")
    )
    found_ = baselines.accuracy(chosen_ - rejected)
    print(f"the reward model of round {number - 1} on the fresh pairs of round {number}: {found_}")
    return {"accuracy": found_.accuracy, "low": found_.low, "high": found_.high, "n": found_.n}


def compared(cfg: Any, policy: str, reward: str) -> dict[str, Any]:
    """The policy beside the one that all began with, on held-out prompts: by `gold` where given, else by the reward model."""
    told, asked = cfg.ppo, str(Path(cfg.out) / "held_out.jsonl")
    _write(clean_prompts(cfg), asked)
    rows = evaluate.compare(
        evaluate.Experiment(
            policy,
            cfg.policy,
            reward,
            asked,
            judge=cfg.gold,
            prompt_window=told.prompt_window,
            response_window=told.response_window,
            sampling=told.sampling,
            seed=cfg.seed,
            compute=told.compute,
        )
    )
    metric = "judge" if cfg.gold else "proxy"
    found = {
        "first": rows["start"][metric],
        "now": rows["policy"][metric],
        "gain": rows["policy"][metric] - rows["start"][metric],
    }
    return {name: intervals.paired(list(values)) for name, values in found.items()}
