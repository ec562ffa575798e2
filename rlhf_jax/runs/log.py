"""A run folder: what was asked for (config.yaml), what ran (versions.json, about.json), and line by line what came out.

metrics.jsonl holds one JSON object per iteration, timing.jsonl the wall-clock seconds of the same iterations (apart, so
that two runs of one seed can be compared byte for byte), samples.jsonl texts. In a script's loop log first, then
save the checkpoint. A kill between the two is then mended by `cut`, which drops what the checkpoint does not know of.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.runs import strict_yaml, track, versions
from rlhf_jax.runs.lines import read_lines
from rlhf_jax.runs.progress import progress
from rlhf_jax.runs.ranges import check, shown

__all__ = ["Run", "open_run", "progress", "read_lines"]

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing keeps two processes out of one folder
    fcntl = None  # type: ignore[assignment]

LINES = ("metrics", "timing", "samples")
RECORDS = ("config.yaml", "about.json", "versions.json")
STAGES = ("before", "after", "train")


@dataclasses.dataclass
class Run:
    """An open run folder. Every line is flushed when written; only the first of several processes writes."""

    folder: Path
    writes: bool
    nonfinite: int = 0
    """NaN and infinite metrics so far; each is `null` in the file, and counted on its line as log/nonfinite."""
    files: dict[str, TextIO] = dataclasses.field(default_factory=dict)
    last: dict[str, int] = dataclasses.field(default_factory=dict)
    lock: TextIO | None = None
    begun: tuple[Path, ...] = ()
    """The files and folders that this run may take away again if it ends in an error before its first line of metrics:
    none of them was there before. Empty where it goes on with an earlier run."""
    tracker: track.Tracker = track.Tracker()

    def log(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Write the scalars of one iteration (Python, NumPy or JAX; fetched from the device in one go)."""
        row, bad = _numbers(dict(zip(metrics, jax.device_get(list(metrics.values())))))  # a dict would come back sorted
        self.nonfinite += bad
        self._append("metrics", iteration, row | ({"log/nonfinite": bad} if bad else {}))
        self.tracker.log(iteration, row)

    def time(self, iteration: int, seconds: Mapping[str, Any]) -> None:
        """Write the wall-clock seconds of one iteration by phase, such as {"generate": 1.5, "update": 0.7}."""
        self._append("timing", iteration, _numbers(seconds)[0])

    def sample(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write texts: rows of {iteration, prompt, response, stage ("before", "after" or "train"), score, parts}."""
        rows = list(rows)
        for row in rows:
            missing = {"iteration", "prompt", "response", "stage"} - set(row)
            check(not missing, f"a sample needs {', '.join(sorted(missing))}, got {', '.join(map(str, row))}")
            check(row["stage"] in STAGES, f"stage must be one of {', '.join(STAGES)}, got {row['stage']!r}")
            self._write("samples", _plain(row))
        self.tracker.sample([_plain(row) for row in rows])

    def cut(self, iteration: int) -> None:
        """Drop the lines of every iteration after this one, and those that a kill left unfinished: for a resume."""
        for name in LINES if self.writes else ():
            path = self.folder / f"{name}.jsonl"
            if name in self.files:
                self.files.pop(name).close()
            if path.exists():
                kept = [row for row in read_lines(path) if row["iteration"] <= iteration]
                _replace(path, "".join(_line(row) for row in kept))
            self.last.pop(name, None)

    def close(self) -> None:
        """Close the files and let go of the folder."""
        for file in [*self.files.values(), *([self.lock] if self.lock else [])]:
            file.close()
        self.files.clear()
        self.lock = None
        self.tracker.close()
        self.tracker = track.Tracker()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        self.close()
        metrics, saved = self.folder / "metrics.jsonl", self.folder / "checkpoints"
        logged = metrics.exists() and metrics.stat().st_size > 0
        if kind is not None and not logged and not (saved.is_dir() and any(saved.iterdir())):
            _take_away(self.begun)

    def _append(self, name: str, iteration: int, row: dict[str, Any]) -> None:
        path = self.folder / f"{name}.jsonl"
        if name not in self.last:
            rows = read_lines(path) if path.exists() else []
            self.last[name] = max((row["iteration"] for row in rows), default=-(2**62))
        check(
            iteration > self.last[name],
            f"iteration {iteration} comes after {self.last[name]} in {path.name}: write each iteration once, "
            "and call cut(iteration of the checkpoint) after a resume",
        )
        self.last[name] = iteration
        self._write(name, {"iteration": int(iteration)} | row)

    def _write(self, name: str, row: dict[str, Any]) -> None:
        if not self.writes:
            return
        if name not in self.files:
            # A lone surrogate, which a sampled byte can be, becomes \\udc80: legal in JSON.
            path = self.folder / f"{name}.jsonl"
            torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
            self.files[name] = open(path, "a", encoding="utf-8", errors="backslashreplace")
            self.files[name].write("\n" if torn else "")
        self.files[name].write(_line(row))
        self.files[name].flush()


def open_run(
    folder: str | Path,
    cfg: Any,
    *,
    resume: bool,
    overwrite: bool = False,
    may_grow: Sequence[str] = ("iterations", "steps"),
    may_change: Sequence[str] = ("folder", "overwrite", "resume"),
    about: Mapping[str, Any] | None = None,
) -> Run:
    """Open a run folder for writing and record in it what runs.

    A folder that holds something is refused unless `resume` (then the config in it must be the same, but for the dotted
    fields in `may_grow`, whose numbers may grow, and in `may_change`) or `overwrite` (then an earlier run's files are
    deleted). `resume` on an empty folder begins a run. A run that ends in an error before its first line of metrics leaves
    nothing behind, so that it can be started again. `about` goes into about.json for the report: "title", and
    "synthetic" and "notes", lists of sentences. Errors: UserError, before any device is touched.
    """
    folder = Path(folder)
    check(not (resume and overwrite), "resume and overwrite are both true: choose one")
    check(
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", folder.resolve().name) is not None,
        f"a run folder's name has 1 to 80 of A-Z a-z 0-9 . _ - and begins with none of . and -, got {folder.name!r}",
    )
    check(not folder.exists() or folder.is_dir(), f"{folder} is a file, not a folder for a run")
    first = not jax.distributed.is_initialized() or jax.process_index() == 0
    if not first:
        return Run(folder, writes=False)
    files = [folder / name for name in (*RECORDS, *(f"{name}.jsonl" for name in LINES), ".lock")]
    begun = tuple(path for path in (*files, folder / "checkpoints", folder, *folder.parents) if not path.exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {folder}: {error.strerror}") from None
    try:
        if overwrite:
            _empty(folder)
        goes_on = any(path.name[0] != "." for path in folder.iterdir())
        if goes_on:
            check(
                resume,
                f"the run folder {folder} is not empty: --resume true goes on with that run, or choose another folder",
            )
            check((folder / "config.yaml").is_file(), f"{folder} holds no config.yaml, so it is no run to resume")
            _same_config(folder, strict_yaml.plain(cfg), may_grow, may_change)
        _replace(folder / "config.yaml", strict_yaml.dump(cfg))
        _replace(folder / "about.json", _line({"command": versions.command()} | _plain(about or {})))
        tracker = track.tracker(folder, strict_yaml.plain(cfg))
        now = versions.record(folder / "versions.json")
        _replace(folder / "versions.json", json.dumps(now, indent=1) + "\n")
    except BaseException:
        lock.close()
        _take_away(begun)
        raise
    return Run(folder, writes=True, lock=lock, begun=() if goes_on else begun, tracker=tracker)


def _numbers(metrics: Mapping[str, Any]) -> tuple[dict[str, int | float | None], int]:
    """Scalars as JSON numbers, and how many were not finite (null in JSON, which has no word for them)."""
    row: dict[str, int | float | None] = {}
    for name, value in metrics.items():
        array = np.asarray(value)
        check(name != "iteration", "a metric cannot be named `iteration`: that is the line's own key")
        check(array.shape == (), f"metric {name!r} has shape {array.shape}: log scalars")
        check(array.dtype.kind in "biufV", f"metric {name!r} is {shown(value)}: log numbers")
        number = int(array) if array.dtype.kind in "biu" else float(array)
        row[name] = number if math.isfinite(number) else None
    return row, sum(value is None for value in row.values())


def _plain(value: Any) -> Any:
    """Anything as what JSON can hold: numbers that are not finite as null, other objects as text."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (str, bool, int, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.generic, np.ndarray, jax.Array)):
        array = np.asarray(value)
        return _numbers({"value": array})[0]["value"] if array.shape == () else [_plain(v) for v in array]
    return str(value)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _replace(path: Path, text: str) -> None:
    """Write a whole file so that a kill leaves the old one or the new one."""
    hidden = path.with_name(f".{path.name}.new")
    hidden.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(hidden, path)


def _lock(folder: Path) -> TextIO:
    """Hold the folder for this process; the system lets go when the process ends, however it ends."""
    file = open(folder / ".lock", "a")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"the run folder {folder} is in use: wait for that run, close it, or choose another") from None
    except OSError:  # some network file systems have no locks
        pass
    return file


def _take_away(paths: Iterable[Path]) -> None:
    """Remove these files, and those of the folders, innermost first, that are empty then."""
    for path in paths:
        with contextlib.suppress(OSError):  # what is not there, or not empty, stays as it is
            path.rmdir() if path.is_dir() else path.unlink()


def _empty(folder: Path) -> None:
    """Delete an earlier run's files, and only those: overwriting a mistyped folder must not cost anybody's work."""
    known = {*RECORDS, "report.html", "checkpoints", *track.FOLDERS} | {f"{n}.jsonl" for n in LINES}
    strange = sorted(path.name for path in folder.iterdir() if path.name not in known and path.name[0] != ".")
    check(
        not strange, f"{folder} holds {shown(strange)}, which no run wrote: delete it by hand or choose another folder"
    )
    for path in folder.iterdir():
        if path.name in known:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _same_config(folder: Path, new: Any, may_grow: Sequence[str], may_change: Sequence[str]) -> None:
    """Refuse a resume under another config than the run began with, naming what differs."""

    def flat(value: Any, key: str = "") -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {k: v for name, inner in value.items() for k, v in flat(inner, f"{key}{name}.").items()}
        return {key.removesuffix("."): value}

    was, now = flat(strict_yaml.load(folder / "config.yaml")), flat(new)
    for key in dict.fromkeys([*was, *now]):
        old, this = (repr(side[key]) if key in side else "nothing" for side in (was, now))
        if old == this or key in may_change:
            continue
        if key in may_grow:
            grown = isinstance(was.get(key), (int, float)) and isinstance(now.get(key), (int, float))
            check(grown and now[key] >= was[key], f"{key} may only grow on a resume: {folder} has {old}, now {this}")
        else:
            raise UserError(f"{folder} was begun with {key} {old}, now it is {this}: resume with the same settings")
