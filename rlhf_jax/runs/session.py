"""What every training script's loop stands in: a mesh, an open run folder, checkpoints to go on from, signals to heed.

`cfg` is a script's configuration; its fields out, resume, save_every and keep are read here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf
from rlhf_jax.runs import checkpoint, log, models, settings


class Session(NamedTuple):
    """An open run folder, its checkpoints' folder, and the signal that asked to stop (0: none has)."""

    run: log.Run
    checkpoints: str
    stop: Callable[[], int]


@contextmanager
def session(cfg: Any, mesh: Mesh | None) -> Iterator[Session]:
    """Open the run folder under the mesh; at the end, however it ends, saves are finished and files closed."""
    folder = str(Path(cfg.out) / "checkpoints")
    with (
        settings.within(mesh),
        log.open_run(cfg.out, cfg, resume=cfg.resume, may_change=settings.FREE) as run,
        checkpoint.closing(folder),
        checkpoint.interruptible() as stop,
    ):
        yield Session(run, folder, stop)


def language_model(
    folder: str, compute: settings.Compute, mesh: Mesh | None = None, bases: models.Bases | None = None
) -> tuple[models.Opened, Any]:
    """A model that can be sampled from, and its tokenizer. UserError for a reward model, for a tokenizer with more ids than
    the model has rows, and for one without an EOS."""
    opened = models.open_model(folder, mesh, bases, compute.base)
    model = opened.cfg
    if model.axes:
        raise UserError(f"{folder} is a reward model; a causal language model is needed here")
    tokenizer = hf.tokenizer(folder)
    hf.check_tokenizer(tokenizer, model)
    model = settings.stop_at(settings.apply_compute(model, compute), tokenizer)
    return opened._replace(cfg=model), tokenizer


def compilations(function: Any) -> int:
    """How many programs a jitted function has been compiled to in this process."""
    return function._cache_size()


def restore(cfg: Any, current: Session, state: Any) -> tuple[int, Any]:
    """(iterations done, state) of the newest checkpoint on a resume, else (0, state); logs are cut back to it."""
    found = checkpoint.restore(current.checkpoints, state) if cfg.resume else None
    if cfg.resume and found is None and not cfg.save_every and _has_lines(current.run.folder / "metrics.jsonl"):
        raise UserError(
            f"{cfg.out} holds a run without checkpoints (save_every 0): there is nothing to go on from, and beginning anew would "
            "replace it; choose another --out, with --save_every 10, say"
        )
    start, state = (0, state) if found is None else found[:2]
    current.run.cut(start - 1)
    if cfg.resume:
        print(f"resuming after iteration {start}" if start else "nothing to resume from: beginning anew")
    return start, state


def _has_lines(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def save(cfg: Any, current: Session, done: int, total: int, state: Any) -> None:
    """Save where a checkpoint is due: every `cfg.save_every` iterations (0: never), at the end, and before a stop that a
    signal asked for. Such a stop leaves with exit code 128 + the signal's number."""
    if cfg.save_every and (done % cfg.save_every == 0 or done == total or current.stop()):
        checkpoint.save(current.checkpoints, done, state, keep=cfg.keep)
    if current.stop():
        raise SystemExit(128 + current.stop())
