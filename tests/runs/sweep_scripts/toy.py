"""A script that a sweep can run: no model, the package's own run folder, a checkpoint of its own every other iteration."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.runs import config


@dataclass(frozen=True)
class Inner:
    """A group."""

    clip: float = 0.2
    """A number above 0."""
    loss: str = ""
    """"file.py:function" of the user's."""

    def __post_init__(self) -> None:
        config.positive("clip", self.clip)


@dataclass(frozen=True)
class Experiment:
    """A toy."""

    out: str = "runs/toy"
    """The run folder."""
    model: str = ""
    """A folder with a file `value`, of a stage."""
    seed: int = 0
    """Decides the noise."""
    iterations: int = 6
    """Lines to log."""
    nap: float = 0.0
    """Seconds an iteration."""
    gate: str = ""
    """A file without which no run goes beyond its checkpoint of iteration 2."""
    level: float = 1.0
    """What the curve goes to."""
    fail: str = ""
    """"error", "nan", "user" or "killed": how it fails."""
    plain: bool = False
    """Write the lines by hand, which starts faster: the package's log loads JAX."""
    ppo: Inner = Inner()
    note: str = ""
    """Anything."""
    save_every: int = 2
    """Iterations between checkpoints."""
    resume: bool = False
    """Go on."""


def main(cfg: Experiment) -> None:
    base = float((Path(cfg.model) / "value").read_text()) if cfg.model else 0.0
    add = config.resolve_function(cfg.ppo.loss)(cfg.seed) if cfg.ppo.loss else 0.0
    with (by_hand if cfg.plain else by_log)(cfg) as run:
        folder = Path(cfg.out)
        saved = folder / "checkpoints" / "saved.json"
        start = json.loads(saved.read_text()) if cfg.resume and saved.exists() else 0
        run.cut(start - 1)
        with open(folder.parent / "begun.log", "a") as file:
            file.write(f"{folder.name} {start} {os.getpid()}\n")
        for i in range(start, cfg.iterations):
            if cfg.fail == "error" and i == 2:
                raise RuntimeError("it broke\nin two lines")
            if cfg.fail == "killed" and i == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            config.check(cfg.fail != "user" or i < 2, "what the user gave is wrong")
            time.sleep(cfg.nap)
            while i == 2 and cfg.gate and not Path(cfg.gate).exists():
                time.sleep(0.01)
            score = base + add + cfg.level * (1 - 0.5**i) + 0.01 * ((cfg.seed * 7 + i) % 5)
            row = {"rollout/score": float("nan") if cfg.fail == "nan" else score}
            row |= {"rollout/kl": 0.1 * i * cfg.ppo.clip}
            run.log(i, row)
            if (i + 1) % cfg.save_every == 0:
                saved.parent.mkdir(exist_ok=True)
                partial = saved.with_suffix(".partial")
                partial.write_text(json.dumps(i + 1))
                partial.replace(saved)


def by_log(cfg: Experiment) -> Any:
    from rlhf_jax.runs import log

    return log.open_run(cfg.out, cfg, resume=cfg.resume, may_change=("out", "resume", "save_every"))


class by_hand:
    """The same of a run folder as `log.Run`, by hand."""

    def __init__(self, cfg: Experiment) -> None:
        self.path = Path(cfg.out) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "by_hand":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def cut(self, iteration: int) -> None:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= iteration]
        self.path.write_text("".join(kept))

    def log(self, iteration: int, metrics: dict[str, float]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps({"iteration": iteration} | metrics) + "\n")


if __name__ == "__main__":
    config.command(main, Experiment)
