"""Bad input is refused in one clear line before anything is compiled."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import ppo
import pytest
import reward_model
import sft
from safetensors.numpy import load_file, save_file

from rlhf_jax.model import hf
from rlhf_jax.playground import tokenizer
from rlhf_jax.runs import config
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling
from tests.experiments.alike import refused

ROOT = Path(__file__).parent.parent.parent


def arguments(world, out, *more):
    given = ["--policy", world.model, "--prompts", world.prompts, "--out", str(out), "--value", "policy"]
    return [*given, "--rewards", f"{{words: {{function: '{world.function('words')}'}}}}", *more]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--ppo.klip", "0.1"], ["klip", "ppo.clip"]),
        (["--ppo.clip", "wide"], ["ppo.clip", "number", "wide"]),
        (["--iterations", "-3"], ["iterations", "at least 1", "-3"]),
        (["--ppo.minibatches", "-1"], ["minibatches", "at least 1"]),
        (
            ["--prompts_per_iteration", "5", "--samples_per_prompt", "1", "--ppo.minibatches", "2"],
            ["5 rows", "multiple"],
        ),
        (["--response_window", "0"], ["response_window", "at least 1"]),
        (["--sampling.temperature", "0"], ["temperature"]),
        (["--sampling.top_p", "0.9"], ["importance_cap"]),
        (["--sampling.top_p", "1.5"], ["top_p", "at most 1"]),
        (["--ppo.kl_in", "los"], ["kl_in", "did you mean 'loss'"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_a_bad_setting_is_told_before_anything_is_loaded(world, tmp_path, compilations, more, words):
    before = compilations()
    refused(lambda: config.parse(ppo.Experiment, arguments(world, tmp_path / "run", *more)), *words)
    assert compilations() == before and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ppo: {clip: 0.1\n", ["line"]),
        ("ppo:\n  klip: 0.1\n", ["klip", "clip"]),
        ("iterations: many\n", ["iterations", "whole number"]),
    ],
)
def test_a_bad_yaml_is_told(world, tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    given = arguments(world, tmp_path / "run", "--config", str(tmp_path / "bad.yaml"))
    refused(lambda: config.parse(ppo.Experiment, given), *words)


def test_a_script_prints_one_line_and_exits_with_2(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "experiments" / "ppo.py"), "--ppo.klip", "0.1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"},
    )
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1 and "klip" in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": "missing.jsonl"}, ["missing.jsonl", "--data"]),
        ({"long_prompts": "refuse", "prompt_window": 5}, ["prompt window 5", "tokens"]),
        ({"prompt_window": 2}, ["no prompt is left", "2 tokens"]),
        ({"value": "reward"}, ["value: policy"]),
        ({"policy": "no/such/folder"}, ["no/such/folder"]),
    ],
)
def test_bad_data_is_told_before_anything_is_compiled(world, tmp_path, compilations, change, words):
    hf.load(world.model)  # whose checks of the weights are small programs of their own
    before = compilations()
    refused(lambda: ppo.main(dataclasses.replace(world.ppo(tmp_path / "run"), **change)), *words)
    assert compilations() == before


@pytest.mark.parametrize("script", [sft, reward_model, ppo])
def test_an_empty_file_is_told(world, tmp_path, script):
    (tmp_path / "empty.jsonl").write_text("")
    field, make = {
        sft: ("demonstrations", world.sft),
        reward_model: ("comparisons", world.reward_model),
        ppo: ("prompts", world.ppo),
    }[script]
    cfg = dataclasses.replace(make(tmp_path / "run"), **{field: str(tmp_path / "empty.jsonl")})
    refused(lambda: script.main(cfg), "empty.jsonl")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", ["odd", "KeyError", "no such column"]),
        ("not_a_number", ["odd", "not finite", "[1, 3]"]),
        ("too_few", ["odd", "(7,)", "8"]),
        ("text", ["odd", "number"]),
    ],
)
def test_a_bad_score_names_the_reward_and_the_rows(world, tmp_path, name, words):
    cfg = world.ppo(tmp_path / "run", {"odd": Reward(function=world.function(name))})
    refused(lambda: ppo.main(cfg), *words)


@pytest.mark.parametrize(
    ("spec", "words"),
    [("nowhere.py:f", ["nowhere.py"]), ("functions.py:wordz", ["wordz", "words"]), ("words", ["file.py:function"])],
)
def test_a_reward_function_that_is_not_there_is_told(world, tmp_path, compilations, spec, words):
    before = compilations()
    spec = str(world.folder / spec) if spec.startswith("functions") else spec
    refused(lambda: ppo.main(world.ppo(tmp_path / "run", {"odd": Reward(function=spec)})), *words)
    assert compilations() == before


@pytest.fixture
def broken(world, tmp_path):
    """A copy of the checkpoint to break."""
    return Path(shutil.copytree(world.model, tmp_path / "broken"))


def test_missing_truncated_and_nan_weights_are_told(world, tmp_path, broken, compilations):
    before = compilations()
    cfg = dataclasses.replace(world.ppo(tmp_path / "run"), policy=str(broken))
    weights = broken / "model.safetensors"
    tensors, whole = load_file(weights), weights.read_bytes()
    name = "model.norm.weight"
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, weights, {"format": "pt"})
    refused(lambda: ppo.main(cfg), name)
    weights.write_bytes(whole[: len(whole) // 2])
    refused(lambda: ppo.main(cfg), "model.safetensors")
    weights.unlink()
    refused(lambda: ppo.main(cfg), "safetensors")
    assert compilations() == before


def test_a_tokenizer_with_more_words_than_the_model_is_told(world, tmp_path, broken, compilations):
    before = compilations()
    larger = tokenizer.train_tokenizer([f"word{i}" for i in range(300)], vocab_size=400)
    larger.save_pretrained(str(broken))
    cfg = dataclasses.replace(world.ppo(tmp_path / "run"), policy=str(broken))
    refused(lambda: ppo.main(cfg), "token")
    assert compilations() == before


def test_a_reward_model_of_another_vocabulary_is_no_value_model(world, tmp_path):
    other = tokenizer.train_tokenizer(["other words entirely"])
    folder = tmp_path / "other"
    cfg, params = hf.load(world.reward)
    shutil.copytree(world.reward, folder)
    other.save_pretrained(str(folder))
    refused(
        lambda: ppo.main(dataclasses.replace(world.ppo(tmp_path / "run"), value=str(folder))),
        "vocabular",
        "value: policy",
    )


def test_a_run_folder_in_use_is_neither_overwritten_nor_resumed_with_other_settings(world, tmp_path):
    out = tmp_path / "run"
    config_text = config.dump(world.ppo(out))
    out.mkdir()
    (out / "config.yaml").write_text(config_text)
    refused(lambda: ppo.main(world.ppo(out)), "not empty", "--resume")
    changed = dataclasses.replace(world.ppo(out), seed=7, resume=True)
    refused(lambda: ppo.main(changed), "seed", "0", "7")
    assert (out / "config.yaml").read_text() == config_text


def test_sampling_settings_say_what_is_allowed():
    refused(lambda: Sampling(temperature=-1), "temperature", "-1")
    refused(lambda: Sampling(min_p=1.0), "min_p", "below 1")
    refused(lambda: Sampling(stop=((),)), "empty sequence")


def test_rows_of_a_bad_file_are_counted_by_reason(world, tmp_path, capsys):
    rows = (world.folder / "comparisons.jsonl").read_text().splitlines()
    path = tmp_path / "some.jsonl"
    path.write_text("\n".join([*rows, "{not json", json.dumps({"prompt": "x"})]) + "\n")
    reward_model.main(dataclasses.replace(world.reward_model(tmp_path / "run"), comparisons=str(path)))
    told = capsys.readouterr().out
    assert f"{len(rows) + 2} rows read, {len(rows)} kept" in told and "Dropped: nothing" not in told
