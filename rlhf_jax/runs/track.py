"""TensorBoard and Weights & Biases beside the run's own files (the extra `track`); JSON lines are written in any case.

    RLHF_JAX_TRACK=tensorboard,wandb python experiments/ppo.py …

TensorBoard's events lie in tensorboard/ of the run folder. W&B goes by its own variables: WANDB_MODE=offline needs neither
account nor network and writes into the run folder, WANDB_PROJECT names the project. Metrics are scalars by iteration,
samples a table. A resume goes on in both; iterations that are run again after a kill are written again.
"""

import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_jax.runs.ranges import check, choice

VARIABLE = "RLHF_JAX_TRACK"
FOLDERS = ("tensorboard", "wandb")
"""What they make in a run folder."""
COLUMNS = ("iteration", "stage", "prompt", "response", "score")

Row = Mapping[str, Any]


class Tracker(NamedTuple):
    """Where numbers and texts go besides the run folder; by default nowhere."""

    log: Callable[[int, Row], None] = lambda iteration, metrics: None
    """(iteration, metrics); None among them is a number that was not finite."""
    sample: Callable[[Sequence[Row]], None] = lambda rows: None
    """Rows as samples.jsonl has them."""
    close: Callable[[], None] = lambda: None


def names() -> list[str]:
    """What RLHF_JAX_TRACK names, by commas. UserError for another name or one that is not installed."""
    found = list(dict.fromkeys(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()))
    for name in found:
        choice(VARIABLE, name, FOLDERS)
        there = importlib.util.find_spec(name) is not None
        check(there, f"{VARIABLE} names {name}, which is not installed: pip install 'rlhf-jax[track]'")
    return found


def tracker(folder: Path, cfg: Row) -> Tracker:
    """All that RLHF_JAX_TRACK names, by commas, as one. UserError for another name or one that is not installed.

    Nothing is opened before the first metrics: a run that ends earlier leaves nothing behind.
    """
    made = {"tensorboard": tensorboard, "wandb": wandb}
    chosen = names()
    opened: list[Tracker] = []
    early: list[Sequence[Row]] = []

    def log(iteration: int, metrics: Row) -> None:
        if not opened:
            opened.extend(made[name](folder, cfg) for name in chosen)
            for rows in early:
                sample(rows)
        for each in opened:
            each.log(iteration, metrics)

    def sample(rows: Sequence[Row]) -> None:
        if not opened:
            early.append(rows)
        for each in opened:
            each.sample(rows)

    def close() -> None:
        for each in opened:
            each.close()

    return Tracker(log, sample, close) if chosen else Tracker()


def tensorboard(folder: Path, cfg: Any) -> Tracker:
    """Scalars and tables as TensorBoard's event files, in `folder`/tensorboard; `cfg`, plain data, as a text."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder / "tensorboard"), flush_secs=5)

    def log(iteration: int, metrics: Row) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items() if value is not None]
        writer.add_event(Event(wall_time=time.time(), step=iteration, summary=Summary(value=values)))

    def sample(rows: Sequence[Row]) -> None:
        for (iteration, stage), group in _groups(rows):
            summary = text_pb(f"samples/{stage}", _markdown(group))
            writer.add_event(Event(wall_time=time.time(), step=iteration, summary=summary))

    settings = "\n".join(f"    {key}: {value}" for key, value in cfg.items())
    writer.add_event(Event(wall_time=time.time(), step=0, summary=text_pb("settings", settings)))
    return Tracker(log, sample, writer.close)


def wandb(folder: Path, cfg: Any) -> Tracker:
    """A W&B run of the folder's name, its files in the folder. Called again for the same folder it goes on in the same run."""
    import wandb as service

    kept = folder / "wandb" / "run_id"
    id = kept.read_text(encoding="utf-8").strip() if kept.exists() else uuid.uuid4().hex[:12]
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(id, encoding="utf-8")
    run = service.init(id=id, resume="allow", name=folder.resolve().name, dir=str(folder), config=dict(cfg))
    run.define_metric("*", step_metric="iteration")  # its own steps may not go back, as iterations do after a kill

    def log(iteration: int, metrics: Row) -> None:
        run.log({name: value for name, value in metrics.items() if value is not None} | {"iteration": iteration})

    def sample(rows: Sequence[Row]) -> None:
        for (iteration, stage), group in _groups(rows):
            table = service.Table(columns=list(COLUMNS), data=[[_cell(row, c) for c in COLUMNS] for row in group])
            run.log({f"samples/{stage}": table, "iteration": iteration})

    return Tracker(log, sample, run.finish)


def _groups(rows: Iterable[Row]) -> list[tuple[tuple[int, str], list[Row]]]:
    found: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["iteration"], row["stage"]), []).append(row)
    return list(found.items())


def _cell(row: Row, column: str) -> Any:
    value = row.get(column)
    return value if isinstance(value, (int, float, str)) else "" if value is None else str(value)


def _markdown(rows: Sequence[Row]) -> str:
    """A table that TensorBoard shows, every text in one line of it."""

    def cell(row: Row, column: str) -> str:
        return str(_cell(row, column)).replace("|", "\\|").replace("\n", " ⏎ ")

    head = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    return "\n".join([*head, *(" | ".join(cell(row, column) for column in COLUMNS) for row in rows)])
