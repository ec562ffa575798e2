"""nash_md.py end to end: what it writes, that it goes on where it was killed, who plays whom, what it refuses."""

import dataclasses

import jax
import nash_md
import numpy as np
import online_parts
import pytest

from rlhf_jax.algorithms import rollout
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import cost, hf, transformer
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import settings
from rlhf_jax.runs.dry_run import nash_md as dry_run
from rlhf_jax.runs.dry_run.sampled import READING
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
        "mixture": 0.5,
        "optimizer": settings.Optimizer(lr=3e-3, schedule="constant"),
        "save_every": 0,
        "show": 0,
    }
    rewards = {"letters": Reward(function=world.function("parts"))}
    return nash_md.Experiment(world.model, world.prompts, rewards, out=str(out), **small | changes)


@pytest.fixture(scope="module")
def whole(world, compilations, tmp_path_factory):
    """Three iterations with a checkpoint of the second."""
    out = tmp_path_factory.mktemp("nash") / "run"
    engine.generate.clear_cache()  # what another run in this process has compiled would not be counted
    engine.generate_mixture.clear_cache()
    with optimised(False):
        cfg = experiment(world, out, save_every=2, show=2, minibatches=2, judge_temperature=0.5)
        return finish(nash_md.main, cfg, compilations)


@pytest.mark.long
def test_the_run_folder_is_that_of_any_run(world, whole):
    rows = whole.metrics
    alike.folder_is_whole(whole, iterations=3, shown=2, drawn="nash/probability")
    assert rows[0]["rollout/kl"] == 0 != rows[1]["rollout/kl"] and 0 < rows[0]["nash/probability"] < 1
    assert max(row["mismatch/max"] for row in rows) < 1e-3, "what the mixture wrote is not told of as the policy's"
    compiled = {"update": 1, "policy": 1, "generate": 2, "mixture": 1}
    assert whole.result["compilations"] == compiled, "of generate one for training, one for samples"
    assert whole.compiled[1] == whole.compiled[2], "nothing is compiled once the second iteration is done"
    alike.every_array_moved(world.model, whole.result["folder"])


@pytest.mark.long
def test_killed_and_resumed_it_ends_with_the_same_bytes(whole, tmp_path):
    alike.resumes_to_the_same_bytes(nash_md.main, whole, tmp_path / "run", after=2, saved=2, names=alike.ALIGNED)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["nash_md", "nash_md_token"])
def test_the_reward_rises(world, tmp_path, loss):
    """Words of many letters are easy to learn: settings and seed were fixed before the first run."""
    adam = settings.Optimizer(lr=3e-3, schedule="constant")
    cfg = experiment(world, tmp_path / "run", loss=loss, iterations=40, prompts_per_iteration=16, optimizer=adam)
    nash_md.main(cfg)
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    scores, opponents = ([row[name] for row in rows] for name in ("rollout/score", "opponent/score"))
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.3
    assert np.mean(scores[-10:]) > np.mean(opponents[-10:]), "half of the opponent stays the reference"


@pytest.mark.long
def test_an_adapter_learns_and_the_base_does_not(world, tmp_path):
    cfg = experiment(world, tmp_path / "run", lora=Lora(rank=2), iterations=2, judge_temperature=0.0, microbatches=2)
    result = nash_md.main(cfg)
    assert result["rollout/kl"] != 0 and (tmp_path / "run" / "model" / "adapter_config.json").exists()


def test_the_policy_plays_the_mixture_of_itself_and_the_reference(world, monkeypatch, tmp_path):
    """Rows of a prompt stand together, the policy's first, each with a number of its own."""

    def samples(uids, mark):
        rows = np.asarray(uids).reshape(-1)
        marks = np.full((rows.size, RESPONSE), mark)
        return Samples(marks, np.full(rows.size, 2), np.zeros(rows.size), rows[:, None] * np.ones(RESPONSE))

    def mixture(who, other, tokens, length, uids, key, *, share, **_):
        assert (who, other, share) == ("policy", "reference", 0.25)
        return samples(uids, 2)

    seen = {}

    def collect(params, prompts, uids, key, *, sample, reference, **_):
        seen["samples"] = sample(params, prompts.tokens, prompts.length, uids, key)

    monkeypatch.setattr(engine, "generate", lambda who, tokens, length, uids, key, **_: samples(uids, 1))
    monkeypatch.setattr(engine, "generate_mixture", mixture)
    monkeypatch.setattr(rollout, "collect", collect)
    cfg = experiment(world, tmp_path, mixture=0.25)
    prompts, words = nash_md.open_policy(cfg, None, {})[2], hf.tokenizer(world.model)
    collected = online_parts.build_collect(cfg, prompts, None, words, None, None, online_parts.build_contest)
    collected("policy", "reference", 2, jax.random.key(0))
    np.testing.assert_array_equal(seen["samples"].responses[:, 0], np.tile([1, 2], 4))
    np.testing.assert_array_equal(seen["samples"].behaviour_logprobs[:, 0], np.arange(16, 24))


def test_what_cannot_work_is_refused_before_anything_is_read(world, tmp_path):
    for wanted, changes in (
        ("rewards must name a part", {}),
        ("mixture must be", {"mixture": 1.5}),
        ("beta must be >= 0", {"beta": -0.1}),
        ("judge_temperature must be >= 0", {"judge_temperature": -1.0}),
        ("sampling must be at a temperature above 0, without top_k", {"sampling": Sampling(temperature=0.0)}),
        ("sampling must be at a temperature above 0, without top_k", {"sampling": Sampling(top_p=0.9)}),
        ("4 rows do not divide", {"minibatches": 3}),
    ):
        with pytest.raises(UserError, match=wanted):
            dataclasses.replace(experiment(world, tmp_path, **changes), rewards={})
    with pytest.raises(UserError, match="loss must be one of nash_md, nash_md_token.* did you mean"):
        nash_md.main(experiment(world, tmp_path / "run", loss="nash-md"))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_reads_no_weights(world, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text((world.folder / "model" / "config.json").read_text())
    cfg = dataclasses.replace(experiment(world, tmp_path / "run", dry_run=True), policy=str(folder))
    plan = nash_md.main(cfg)
    assert plan["steps"] == 3 and plan["parameters"] > 0 and "dry run" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_both_models_of_the_mixture(world, tmp_path):
    """Their caches and layers, and their share of the operations; half the rows are learnt from."""
    cfg = experiment(world, tmp_path)
    half, alone = (dry_run.plan(dataclasses.replace(cfg, mixture=share)) for share in (0.5, 1.0))
    model = next(iter(half.models.values()))
    windows = cfg.prompt_window, cfg.response_window
    prompts, responses = cost.cache_bytes(model, 4, 1, *windows)
    assert alone.phases["decoding"]["keys and values of the prompts"] == prompts
    assert half.phases["decoding"]["keys and values of the responses"] == 2 * responses
    assert half.phases["prefill"][READING] == alone.phases["prefill"][READING]
    once = cost.sampling_flops(model, 4, 4, *windows)
    assert (half.flops["sampling"], alone.flops["sampling"]) == (3 * once, 2 * once)
    rows = [dry_run.plan(dataclasses.replace(cfg, prompts_per_iteration=n)).phases["update"] for n in (4, 8)]
    assert [each["a chunk of logits"] for each in rows] == [3 * 4 * n * RESPONSE * model.vocab_size for n in (4, 8)]
    assert half.flops["update"] == cost.training_flops(model, 4, sum(windows), RESPONSE)
    assert half.held == alone.held


@pytest.mark.long
def test_memory_of_the_mixture_is_near_what_is_compiled(world, tmp_path):
    """Where writing takes most: 32 responses of 128 tokens; and where reading does: 8 prompts of 256."""
    row, key = ["prompts_per_iteration", "prompt_window", "response_window"], jax.eval_shape(lambda: jax.random.key(0))
    for sizes, largest in (((32, 16, 128), "decoding"), ((8, 256, 16), "prefill")):
        cfg = experiment(world, tmp_path, **dict(zip(row, sizes, strict=True)))
        plan = dry_run.plan(cfg)
        model, (G, P, R) = next(iter(plan.models.values())), sizes
        params = cost.shapes(transformer.param_specs(model))
        shapes = [jax.ShapeDtypeStruct(shape, np.int32) for shape in ((G, P), (G,), (G, 1))]
        how = {"share": 0.5, "window": R, "cfg": model, "sampling": cfg.sampling}
        compiled = engine.generate_mixture.lower(params, params, *shapes, key, **how).compile()
        reckoned = {name: sum(plan.phases[name].values()) for name in ("prefill", "decoding")}
        assert max(reckoned, key=reckoned.get) == largest
        assert compiled.memory_analysis().temp_size_in_bytes == pytest.approx(reckoned[largest], rel=0.2)
