"""What a sweep's arms share: a folder with one number, by seed."""

import time
from dataclasses import dataclass
from pathlib import Path

from rlhf_jax.runs import config


@dataclass(frozen=True)
class Experiment:
    """A stage."""

    out: str = "runs/stage"
    """A folder."""
    seed: int = 0
    """Part of the number."""
    start: str = ""
    """Another stage's folder."""
    nap: float = 0.0
    """Seconds it takes."""
    fail: bool = False
    """Whether it does."""


def main(cfg: Experiment) -> None:
    config.check(not cfg.fail, "the stage was told to fail")
    time.sleep(cfg.nap)
    folder = Path(cfg.out)
    folder.mkdir(parents=True, exist_ok=True)
    before = float((Path(cfg.start) / "value").read_text()) if cfg.start else 0.0
    (folder / "value").write_text(str(before + 10 * (cfg.seed + 1)))
    with open(folder.parent / "begun.log", "a") as file:
        file.write(f"{folder.name}\n")


if __name__ == "__main__":
    config.command(main, Experiment)
