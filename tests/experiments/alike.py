"""What the tests ask of every script: a refusal in one line, a whole run folder, the same bytes after a kill."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf
from rlhf_jax.runs import checkpoint, config, log
from tests.experiments.conftest import lines

ALIGNED = ("metrics.jsonl", "samples.jsonl", "model/model.safetensors", "model/config.json")
"""What a run that aligns a policy has written at its end, but for times."""
TRAINED = ("metrics.jsonl", "model/model.safetensors", "model/config.json", "model/tokenizer.json")
"""The same of one that samples nothing."""
ADAPTED = ("metrics.jsonl", "model/adapter_model.safetensors", "model/adapter_config.json")
"""Of one that trained an adapter."""


def refused(action, *words):
    """The one-line message of the UserError that the action raises; every word must be in it."""
    with pytest.raises(UserError) as caught:
        action()
    text = str(caught.value)
    assert "\n" not in text, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return text


class Killed(Exception):
    """What a kill looks like from within the process: nothing after it runs."""


def killed_and_resumed(main, cfg, *, after, saved):
    """What main returns of a run that was killed once iteration `after` was in the log, and resumed to its end. Its last
    checkpoint was that of `saved` iterations, from which it must go on."""
    keep, seen = log.Run.log, []

    def log_and_die(run, iteration, metrics):
        keep(run, iteration, metrics)
        if iteration == after:
            raise Killed

    def log_and_see(run, iteration, metrics):
        seen.append(iteration)
        keep(run, iteration, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.Run, "log", log_and_die)
        with pytest.raises(Killed):
            main(cfg)
    assert checkpoint.latest(Path(cfg.out) / "checkpoints") == saved
    assert len(lines(Path(cfg.out) / "metrics.jsonl")) == after + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log.Run, "log", log_and_see)
        result = main(dataclasses.replace(cfg, resume=True))
    assert seen[0] == saved, "it goes on from the checkpoint"
    return result


def same_bytes(left, right, names):
    """These files of two run folders are equal."""
    for name in names:
        assert (Path(left) / name).read_bytes() == (Path(right) / name).read_bytes(), name


def resumes_to_the_same_bytes(main, whole, out, *, after, saved, names):
    """`whole`, a run that is through, done again in the folder `out`: killed and resumed, it ends as it did."""
    result = killed_and_resumed(main, dataclasses.replace(whole.cfg, out=str(out)), after=after, saved=saved)
    same_bytes(out, whole.out, names)
    return result


def folder_is_whole(done, *, iterations, shown, drawn):
    """The run folder of a script that aligns a policy: numbers and times of every iteration, the configuration, versions,
    `shown` prompts answered before and after, and a report that draws the metric `drawn`."""
    rows = done.metrics
    assert [row["iteration"] for row in rows] == list(range(iterations))
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    timing = lines(done.out / "timing.jsonl")
    assert [row["iteration"] for row in timing] == list(range(iterations))
    assert all(set(row) == {"iteration", "collect", "update", "tokens"} for row in timing), timing
    assert config.parse(type(done.cfg), ["--config", str(done.out / "config.yaml")]) == done.cfg
    assert json.loads((done.out / "versions.json").read_text())["jax"] == jax.__version__
    samples = lines(done.out / "samples.jsonl")
    stages = [("before", 0)] * shown + [("after", iterations)] * shown
    assert [(row["stage"], row["iteration"]) for row in samples] == stages
    assert drawn in (done.out / "report.html").read_text()
    assert done.result["folder"] == str(done.out / "model")


def every_array_moved(before, after):
    """Two model folders that differ in every parameter."""
    start, end = hf.load(before)[1], hf.load(after)[1]
    assert start.keys() == end.keys()
    assert not any(np.array_equal(start[name], end[name]) for name in start)
