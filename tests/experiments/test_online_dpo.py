"""online_dpo.py end to end: what it writes, that it goes on where it was killed, who is sampled, what it refuses."""

import dataclasses

import jax
import numpy as np
import online_dpo
import online_parts
import pytest

from rlhf_jax.algorithms import rollout
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import hf
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import settings
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Samples, Sampling
from tests.experiments import alike
from tests.experiments.conftest import PROMPT, RESPONSE, finish, lines, optimised


def experiment(world, out, **changes):
    """Of the smallest size; keywords change its fields."""
    small = {
        "iterations": 3,
        "prompts_per_iteration": 4,
        "prompt_window": PROMPT,
        "response_window": RESPONSE,
        "optimizer": settings.Optimizer(lr=3e-3, schedule="constant"),
        "save_every": 0,
        "show": 0,
    }
    rewards = {"letters": Reward(function=world.function("parts"))}
    return online_dpo.Experiment(world.model, world.prompts, rewards, out=str(out), **small | changes)


@pytest.fixture(scope="module")
def whole(world, compilations, tmp_path_factory):
    """Three iterations of XPO with a checkpoint of the second."""
    out = tmp_path_factory.mktemp("online") / "run"
    engine.generate.clear_cache()  # what another run in this process has compiled would not be counted
    with optimised(False):
        cfg = experiment(world, out, save_every=2, show=2, exploration=0.01, minibatches=2)
        return finish(online_dpo.main, cfg, compilations)


@pytest.mark.long
def test_the_run_folder_is_that_of_any_run(world, whole):
    rows = whole.metrics
    alike.folder_is_whole(whole, iterations=3, shown=2, drawn="preference/loss")
    assert rows[0]["rollout/kl"] == 0 != rows[1]["rollout/kl"] and 0 < rows[0]["judged/decided"] <= 1
    assert rows[0]["preference/second_logprob"] < 0
    assert max(row["mismatch/max"] for row in rows) < 1e-3, "what the reference wrote is not told of as the policy's"
    assert whole.result["compilations"] == {"update": 1, "policy": 1, "generate": 2}, (
        "one for training, one for samples"
    )
    alike.every_array_moved(world.model, whole.result["folder"])


@pytest.mark.long
def test_killed_and_resumed_it_ends_with_the_same_bytes(whole, tmp_path):
    alike.resumes_to_the_same_bytes(online_dpo.main, whole, tmp_path / "run", after=2, saved=2, names=alike.ALIGNED)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "simpo"])
def test_the_reward_rises(world, tmp_path, loss):
    """Words of many letters are easy to learn: settings and seed were fixed before the first run."""
    adam = settings.Optimizer(lr=3e-3, schedule="constant")
    cfg = experiment(world, tmp_path / "run", loss=loss, iterations=40, prompts_per_iteration=16, optimizer=adam)
    online_dpo.main(cfg)
    scores = [row["rollout/score"] for row in lines(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.3


@pytest.mark.long
def test_an_adapter_learns_and_the_base_does_not(world, tmp_path):
    cfg = experiment(world, tmp_path / "run", lora=Lora(rank=2), iterations=2, judge_temperature=1.0, microbatches=2)
    result = online_dpo.main(cfg)
    assert result["rollout/kl"] != 0 and (tmp_path / "run" / "model" / "adapter_config.json").exists()


@pytest.mark.parametrize("exploration", [0.0, 0.1])
def test_xpo_has_one_response_of_the_reference(world, monkeypatch, tmp_path, exploration):
    """Rows of a prompt stay together, own first; else both are the policy's, of one call."""
    asked = []

    def generate(who, tokens, length, uids, key, **_):
        asked.append((who, uids.shape))
        rows = np.asarray(uids).reshape(-1)
        mark = np.full((rows.size, RESPONSE), {"policy": 1, "reference": 2}[who])
        return Samples(mark, np.full(rows.size, 2), np.zeros(rows.size), rows[:, None] * np.ones(RESPONSE))

    seen = {}

    def collect(params, prompts, uids, key, *, sample, reference, **_):
        seen["samples"] = sample(params, prompts.tokens, prompts.length, uids, key)
        seen["uids"] = uids

    monkeypatch.setattr(online_parts.engine, "generate", generate)
    monkeypatch.setattr(rollout, "collect", collect)
    cfg = experiment(world, tmp_path, exploration=exploration)
    words = hf.tokenizer(world.model)
    prompts = online_dpo.open_policy(cfg, None, {})[2]
    online_parts.build_collect(cfg, prompts, None, words, None, None)("policy", "reference", 2, jax.random.key(0))
    wrote, uids = np.asarray(seen["samples"].responses)[:, 0], np.asarray(seen["samples"].behaviour_logprobs)[:, 0]
    np.testing.assert_array_equal(wrote, np.tile([1, 2], 4) if exploration else np.ones(8))
    np.testing.assert_array_equal(uids, np.arange(16, 24))
    assert [shape for _, shape in asked] == ([(4, 1), (4, 1)] if exploration else [(4, 2)])


def test_what_cannot_work_is_refused_before_anything_is_read(world, tmp_path):
    for wanted, changes in (
        ("rewards must name a part", {}),
        ("exploration must be >= 0", {"exploration": -1.0}),
        ("sampling.temperature must be > 0", {"sampling": Sampling(temperature=0.0)}),
        ("4 rows do not divide", {"minibatches": 3}),
        ("beta must be > 0", {"beta": 0.0}),
    ):
        with pytest.raises(UserError, match=wanted):
            cfg = experiment(world, tmp_path, **changes)
            dataclasses.replace(cfg, rewards={})
    for wanted, changes in (
        ("loss must be one of pairs; kto learns from single responses", {"loss": "kto"}),
        ("microbatches must be 1: aot compares rows", {"loss": "aot", "microbatches": 2}),
        ("loss must be one of .* did you mean", {"loss": "sigmod"}),
    ):
        with pytest.raises(UserError, match=wanted):
            online_dpo.main(experiment(world, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_reads_no_weights(world, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((world.folder / "model" / "config.json").read_text())
    cfg = dataclasses.replace(experiment(world, tmp_path / "run", dry_run=True), policy=str(folder))
    plan = online_dpo.main(cfg)
    assert plan["steps"] == 3 and plan["parameters"] > 0 and "dry run" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
