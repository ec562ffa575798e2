"""TensorBoard and W&B beside the run's own files; each test of one is skipped where it is not installed."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.runs import log, track


@dataclass(frozen=True)
class Experiment:
    iterations: int = 3
    note: str = "a | b"
    resume: bool = False


def sample(iteration, stage, prompt="p | q"):
    return {"iteration": iteration, "prompt": prompt, "response": "one\ntwo", "stage": stage, "score": 0.5}


def write(folder, start=0, end=3, **more):
    with log.open_run(folder, Experiment(**more), resume=start > 0) as run:
        if start == 0:
            run.sample([sample(0, "before"), sample(0, "before", [{"role": "user", "content": "x"}])])
        for i in range(start, end):
            run.log(i, {"rollout/score": i / 2, "rollout/kl": math.nan if i == 1 else 0.25})
        run.sample([sample(end, "after")])
    return run


def recorder(seen):
    def make(folder, cfg):
        seen.append(("open", folder.name, cfg["note"]))
        return track.Tracker(
            lambda i, row: seen.append(("log", i, dict(row))),
            lambda rows: seen.append(("sample", [row["stage"] for row in rows])),
            lambda: seen.append(("close",)),
        )

    return make


def test_trackers_hear_what_the_run_logs_and_open_at_the_first_metrics(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv(track.VARIABLE, "tensorboard, wandb,tensorboard")
    monkeypatch.setattr(track, "tensorboard", recorder(seen))
    monkeypatch.setattr(track, "wandb", recorder(seen))
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: name)
    write(tmp_path / "a")
    rows = [{"rollout/score": 0.0, "rollout/kl": 0.25}, {"rollout/score": 0.5, "rollout/kl": None}]
    twice = [("sample", ["before", "before"])] * 2 + [("log", 0, rows[0])] * 2 + [("log", 1, rows[1])] * 2
    assert seen[:2] == [("open", "a", "a | b")] * 2
    assert seen[2:8] == twice and seen[-4:] == [("sample", ["after"])] * 2 + [("close",)] * 2
    seen.clear()
    with pytest.raises(RuntimeError), log.open_run(tmp_path / "b", Experiment(), resume=False) as run:
        run.sample([sample(0, "before")])
        raise RuntimeError
    assert seen == [] and not (tmp_path / "b").exists(), "a run that ends before its first line leaves nothing behind"


def test_without_the_variable_nothing_is_tracked(tmp_path, monkeypatch):
    monkeypatch.delenv(track.VARIABLE, raising=False)
    folder = write(tmp_path / "a").folder
    assert sorted(path.name for path in folder.iterdir() if path.name[0] != ".") == [
        "about.json", "config.yaml", "metrics.jsonl", "samples.jsonl", "versions.json",
    ]  # fmt: skip


def test_a_name_that_there_is_not_or_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(track.VARIABLE, "wanbd")
    with pytest.raises(
        UserError, match="RLHF_JAX_TRACK must be one of tensorboard, wandb; got 'wanbd'; did you mean 'wandb'"
    ):
        write(tmp_path / "a")
    monkeypatch.setattr(track.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv(track.VARIABLE, "wandb")
    with pytest.raises(UserError, match=r"names wandb, which is not installed: pip install 'rlhf-jax\[track\]'"):
        write(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_an_earlier_runs_trackers_are_overwritten_with_it(tmp_path):
    folder = write(tmp_path / "a").folder
    for name in track.FOLDERS:
        (folder / name).mkdir()
    log.open_run(folder, Experiment(), resume=False, overwrite=True).close()
    assert not any((folder / name).exists() for name in track.FOLDERS)


def test_tensorboard_reads_scalars_and_tables_back(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv(track.VARIABLE, "tensorboard")
    folder = write(tmp_path / "a").folder
    write(folder, start=3, end=5, iterations=5, resume=True)
    found = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("rollout/score")] == [(i, i / 2) for i in range(5)]
    assert [e.step for e in found.Scalars("rollout/kl")] == [0, 2, 3, 4]
    texts = {name: found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in found.Tags()["tensors"]}
    before = texts["samples/before"].splitlines()
    assert before[0] == "iteration | stage | prompt | response | score" and len(before) == 4
    assert before[2] == "0 | before | p \\| q | one ⏎ two | 0.5"
    assert "note: a | b" in texts["settings"]


def test_wandb_offline_writes_into_the_run_folder_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv(track.VARIABLE, "wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = write(tmp_path / "a").folder
    id = (folder / "wandb" / "run_id").read_text()
    write(folder, start=3, end=5, iterations=5, resume=True)
    assert (folder / "wandb" / "run_id").read_text() == id
    stored = sorted((folder / "wandb").glob("offline-run-*"))
    assert stored and all(path.name.endswith(id) and list(path.glob("*.wandb")) for path in stored)
    tables = [json.loads(path.read_text()) for path in sorted((folder / "wandb").rglob("*.table.json"))]
    before = next(table for table in tables if table["data"][0][1] == "before")
    assert before["columns"] == list(track.COLUMNS) and before["data"][0] == [0, "before", "p | q", "one\ntwo", 0.5]
    assert before["data"][1][2] == str([{"role": "user", "content": "x"}])
    assert Path(folder / "metrics.jsonl").read_text().count("\n") == 5, "JSON lines are written in any case"
