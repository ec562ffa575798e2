"""ppo.py end to end: what it writes, what it must leave alone, and that every setting arrives where it acts."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import ppo
import ppo_parts
import pytest

from rlhf_jax.model import hf
from rlhf_jax.objectives import kl, policy, policy_zoo
from rlhf_jax.runs import checkpoint, models, settings
from rlhf_jax.runs.grpo_settings import GRPO
from rlhf_jax.runs.ppo_settings import PPO, Reward
from rlhf_jax.types import Sampling
from tests.experiments import alike
from tests.experiments.conftest import finish, lines, optimised


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


# One run of three iterations, compiled as a user's: what it writes, and the facts that hold in every run.


def test_the_run_folder_holds_what_design_says(ppo_run):
    alike.folder_is_whole(ppo_run, iterations=3, shown=3, drawn="rollout/kl")
    assert checkpoint.latest(ppo_run.out / "checkpoints") == 3


def test_samples_before_and_after_are_of_the_same_prompts(world, ppo_run):
    rows = lines(ppo_run.out / "samples.jsonl")
    asked = [row["prompt"][0]["content"] for row in lines(world.prompts)[:3]]
    assert [row["prompt"] for row in rows] == asked * 2
    assert {row["response"] for row in rows[:3]}.isdisjoint(row["response"] for row in rows[3:])
    for row in rows:
        assert set(row["parts"]) == {"judged", "words", "letters", "letters.letters"}
        assert row["parts"]["words"] == len(row["response"].split())
        assert row["score"] == pytest.approx(weighted(row["parts"]), rel=1e-5)


def weighted(parts, prefix=""):
    """The mix of the conftest, by hand."""
    return parts[f"{prefix}judged"] + 0.5 * parts[f"{prefix}words"] - parts[f"{prefix}letters"]


def test_a_mix_adds_up_in_the_metrics(ppo_run):
    for row in ppo_run.metrics:
        assert row["rollout/score"] == pytest.approx(weighted(row, "reward/"), rel=1e-5)
        assert row["reward/letters.letters"] == pytest.approx(10 * row["reward/letters"], rel=1e-5)
        assert row["reward/judged"] != 0 and row["reward/words"] > 0


def test_the_first_ratio_is_exactly_one(ppo_run):
    assert [row["policy/first_ratio_deviation"] for row in ppo_run.metrics] == [0.0, 0.0, 0.0]
    assert all(row["policy/ratio_deviation"] > 0 for row in ppo_run.metrics), "later steps must move the policy"


def test_what_is_sampled_is_what_is_trained(ppo_run):
    """Log-probabilities of the sampler (over a cache) and of the training forward, at the same temperature of 0.7."""
    assert ppo_run.cfg.sampling.temperature == 0.7
    assert all(row["mismatch/max"] < 1e-4 and row["mismatch/outside"] == 0 for row in ppo_run.metrics)


def test_the_kl_is_zero_before_the_first_step_and_not_after(ppo_run):
    kls = [row["rollout/kl"] for row in ppo_run.metrics]
    assert kls[0] == 0 and kls[1] != 0 and kls[2] != 0
    assert [row["rollout/kl_k3"] > 0 for row in ppo_run.metrics] == [False, True, True]


def test_everything_is_compiled_once(ppo_run):
    """Generation has two shapes: those of the samples shown and of the rollouts."""
    assert ppo_run.result["compilations"] == {"update": 1, "policy": 1, "generate": 2}
    assert len(set(ppo_run.compiled)) == 1, "something was compiled after the first iteration"


def test_the_aligned_model_is_whole_and_another_one(world, ppo_run):
    cfg, params = hf.load(ppo_run.result["folder"])
    before, start = hf.load(world.model)
    assert cfg == before and params.keys() == start.keys()
    assert not any(np.array_equal(params[name], start[name]) for name in start)
    assert hf.tokenizer(ppo_run.result["folder"]).get_vocab() == hf.tokenizer(world.model).get_vocab()


@pytest.mark.long
def test_a_mesh_of_simulated_devices_gives_the_same_metrics(ppo_run, tmp_path):
    cfg = dataclasses.replace(
        ppo_run.cfg, out=str(tmp_path / "mesh"), mesh=settings.Layout(2, 2, 2), show=0, save_every=0
    )
    result = ppo.main(cfg)
    for ours, theirs in zip(lines(tmp_path / "mesh" / "metrics.jsonl"), ppo_run.metrics, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name
    assert result["compilations"]["update"] == result["compilations"]["policy"] == 1


# Runs that a setting must change in a known way.


@pytest.fixture(scope="module")
def still_run(world, compilations, tmp_path_factory):
    """Twenty iterations without a learning rate, of seed 1."""
    out = tmp_path_factory.mktemp("still") / "run"
    with optimised(False):
        cfg = world.ppo(out, iterations=20, optimizer=settings.Optimizer(lr=0.0), seed=1)
        return finish(ppo.main, cfg, compilations)


def test_without_a_learning_rate_nothing_moves(world, still_run):
    rows = still_run.metrics
    assert len(rows) == 20
    for name in ("rollout/kl", "rollout/kl_k3", "policy/clip_fraction", "policy/approx_kl", "policy/ratio_deviation"):
        assert {row[name] for row in rows} == {0.0}, name
    assert len({row["rollout/score"] for row in rows}) > 5, "prompts and noise must change with the iteration"
    assert same(hf.load(still_run.result["folder"])[1], hf.load(world.model)[1])


@pytest.mark.long
def test_the_seed_decides_everything(world, still_run, tmp_path):
    """Twice the same seed: the same bytes. Another seed: another first rollout of the same policy. While the critic warms up the
    policy does not move by a bit, the value model does, and β adapts to a KL of 0 by the controller's formula."""
    chosen = world.settings(critic_warmup=3, adaptive_kl_target=1.0, adaptive_kl_horizon=100.0, kl_coef=0.1)

    result, again = (ppo.main(world.ppo(tmp_path / name, iterations=3, ppo=chosen)) for name in "ab")
    once, twice = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in "ab")
    rows = lines(tmp_path / "a" / "metrics.jsonl")
    assert once == twice
    assert same(hf.load(result["folder"])[1], hf.load(again["folder"])[1])

    assert same(hf.load(result["folder"])[1], hf.load(world.model)[1])
    assert {row["rollout/kl"] for row in rows} == {0.0}
    assert rows[1]["value/mean"] != rows[0]["value/mean"]
    shrinks = 1 - 0.2 * 8 / 100
    assert [row["kl/coef"] for row in rows] == pytest.approx([0.1, 0.1 * shrinks, 0.1 * shrinks**2], rel=1e-6)

    assert rows[0]["rollout/entropy"] != still_run.metrics[0]["rollout/entropy"]


OPTIONS = {
    "loss-k2-fixed_length": {
        "ppo": {"kl_in": "loss", "weights": "fixed_length", "policy_loss": "FUNCTION", "entropy_coef": 0.01},
    },
    "reward-k3-sequence_mean": {
        "ppo": {
            "kl_estimator": "k3",
            "weights": "sequence_mean",
            "microbatches": 2,
            "whiten_rewards": True,
            "whiten_advantages": False,
            "reward_clip": 3.0,
            "overlong_buffer": 2,
            "bootstrap_truncated": True,
            "value_lam": 1.0,
            "length_adaptive_alpha": 0.5,
            "value_clip": None,
            "reference_every": 1,
        },
        "value": "FOLDER",
    },
    "loss-k1-top_p": {
        "ppo": {"kl_in": "loss", "kl_estimator": "k1", "importance_cap": 2.0, "dual_clip": 3.0, "clip_high": 0.28}
        | {"target_kl": 5.0, "mask_truncated": True, "missing_eos_penalty": -1.0, "value_lr": 1e-2},
        "sampling": Sampling(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, stop=tuple((i,) for i in range(7, 20))),
    },
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long) if "-k2-" in name or "-k1-" in name else name for name in OPTIONS],
)
def test_options_run(world, tmp_path, monkeypatch, name):
    """Every setting away from its default, a few at a time; the first ratio stays 1 whatever they are."""
    options = dict(OPTIONS[name])
    chosen = dict(options.pop("ppo"))
    if chosen.get("policy_loss"):
        chosen["policy_loss"] = world.function("unclipped")
    if options.get("value"):
        options["value"] = world.reward
    witness = tmp_path / "witness.jsonl"
    functions = tmp_path / "functions.py"
    functions.write_text((world.folder / "functions.py").read_text())
    rewards = {"seen": Reward(function=f"{functions}:witness"), "topic": Reward(function=f"{functions}:on_topic")}
    penalties = []

    def build_targets(*arguments):
        targets = built(*arguments)
        return lambda facts, kl_coef: penalties.append(kl_coef) or targets(facts, kl_coef=kl_coef)

    built = ppo.build_targets
    monkeypatch.setattr(ppo, "build_targets", build_targets)
    result = ppo.main(world.ppo(tmp_path / "run", rewards, ppo=world.settings(**chosen), **options))
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2 and all(np.isfinite(list(row.values())).all() for row in rows)
    assert [row["policy/first_ratio_deviation"] for row in rows] == [0.0, 0.0]
    assert not same(hf.load(result["folder"])[1], hf.load(world.model)[1])
    assert penalties == pytest.approx([0.0, 0.0] if chosen.get("kl_in") == "loss" else [0.05, 0.05])
    if chosen.get("reference_every"):
        assert [row["rollout/kl"] for row in rows] == [0.0, 0.0], "the reference follows the policy"
    else:
        assert rows[1]["rollout/kl"] != 0
    if chosen.get("policy_loss"):
        assert {row["policy/clip_fraction"] for row in rows} == {0.0}

    # what a reward function is given: prompt, response and the prompt's columns, each prompt twice in a row
    seen = lines(witness)
    assert len(seen) == 2 * 8
    questions = {row["prompt"][0]["content"]: row for row in lines(world.prompts)}
    for prompt, response, columns in seen:
        assert isinstance(response, str) and "<" not in response
        row = questions[prompt[0]["content"]]
        assert columns == {"animal": row["animal"], "aspect": row["aspect"]}
    assert all(seen[i][0] == seen[i + 1][0] for i in range(0, 16, 2))
    assert len({prompt[0]["content"] for prompt, _, _ in seen}) == 8, "an epoch deals every prompt once"


@pytest.mark.long
@pytest.mark.parametrize("where", ["reward", "loss"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("weights", ["token_mean", "sequence_mean", "fixed_length"])
def test_every_kl_and_every_weighting_runs(world, tmp_path, where, estimator, weights):
    chosen = world.settings(kl_in=where, kl_estimator=estimator, weights=weights)
    result = ppo.main(world.ppo(tmp_path / "run", ppo=chosen))
    assert result["policy/first_ratio_deviation"] == 0 and np.isfinite(result["policy/loss"])


# Where each setting arrives: no run, no compilation.


def flipped():
    """PPO with every number changed from its default, each to another value."""
    return PPO(
        epochs=3, minibatches=5, microbatches=7, gamma=0.91, lam=0.92, value_lam=0.93, length_adaptive_alpha=0.94,
        kl_coef=0.06, target_kl=0.07, policy_loss="clipped", clip=0.11, clip_high=0.12, dual_clip=1.3, value_clip=0.14,
        value_coef=0.15, entropy_coef=0.16, weights="sequence_mean", whiten_advantages=False, whiten_rewards=True,
        reward_clip=0.17, missing_eos_penalty=-0.18, mask_truncated=True, overlong_buffer=19, importance_cap=2.1,
        importance_floor=0.7,
    )  # fmt: skip


def test_settings_of_the_targets_arrive(monkeypatch):
    seen = {}
    monkeypatch.setattr(ppo.ppo, "targets", lambda rollout, **keywords: seen.update(keywords))
    with jax.disable_jit():
        ppo.build_targets(flipped(), kl.k3)({}, kl_coef=0.5)
    names = ("gamma", "lam", "value_lam", "length_adaptive_alpha", "whiten_advantages", "whiten_rewards", "reward_clip")
    names += ("missing_eos_penalty", "mask_truncated", "overlong_buffer")
    assert seen == {name: getattr(flipped(), name) for name in names} | {"kl_estimator": kl.k3, "kl_coef": 0.5}


@pytest.mark.parametrize("where", ["reward", "loss"])
def test_settings_of_the_loss_and_the_update_arrive(monkeypatch, where):
    seen = {}
    monkeypatch.setattr(
        ppo_parts, "make_update", lambda loss, adam, **keywords: seen.update(keywords, loss=loss, adam=adam)
    )
    ppo.build_update(dataclasses.replace(flipped(), kl_in=where), "forward", kl.k3, "adam")
    assert seen["adam"] == "adam" and seen["loss"].func is ppo.ppo.loss
    keywords = dict(seen["loss"].keywords)
    chosen = keywords.pop("policy_loss")
    assert chosen.func is policy.clipped and chosen.keywords == {"clip": 0.11, "clip_high": 0.12, "dual_clip": 1.3}
    assert keywords == {
        "forward": "forward",
        "value_clip": 0.14,
        "value_coef": 0.15,
        "entropy_coef": 0.16,
        "kl_coef": 0.06 if where == "loss" else 0.0,
        "kl_estimator": kl.k3,
        "importance_cap": 2.1,
        "importance_floor": 0.7,
    }
    assert (seen["epochs"], seen["minibatches"], seen["microbatches"]) == (3, 5, 7)
    assert seen["stop"]({"policy/approx_kl": 0.071}) and not seen["stop"]({"policy/approx_kl": 0.069})


def test_a_loss_of_ones_own_gets_the_settings_it_asks_for(world):
    own = ppo_parts.policy_loss(PPO(policy_loss=world.function("unclipped"), clip=0.3))
    assert isinstance(own, functools.partial) and own.keywords == {} and own.func.__name__ == "unclipped"


@pytest.mark.parametrize("Settings", [PPO, GRPO])
def test_a_loss_keeps_its_own_bounds_unless_some_are_given(Settings):
    """PPO's 0.2 is nothing to GSPO, whose ratios are those of whole sequences."""
    for name in policy_zoo.LOSSES:
        assert ppo_parts.policy_loss(Settings(policy_loss=name)).keywords == {}, name
    assert ppo_parts.policy_loss(Settings(policy_loss="gspo", clip=0.01)).keywords == {"clip": 0.01}
    assert ppo_parts.policy_loss(Settings(policy_loss="sapo", tau_neg=1.2)).keywords == {"tau_neg": 1.2}
    assert ppo_parts.policy_loss(Settings(policy_loss="kl_penalty", penalty=3.0)).keywords == {"penalty": 3.0}
    for name in policy_zoo.SETTINGS:
        assert hasattr(Settings(), name), "CONTRIBUTING says that a configuration sets it"


def test_the_critic_learns_at_its_own_rate_while_the_policy_waits(world, tmp_path):
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    adam = settings.Optimizer(lr=0.5, schedule="constant", clip_norm=0.0, eps=1e-12)
    params = {"policy": {"w": np.zeros(2, np.float32)}, "value": {"w": np.zeros(2, np.float32)}}
    gradient = jax.tree.map(np.ones_like, params)
    cfg = world.ppo(tmp_path, optimizer=adam, ppo=world.settings(critic_warmup=1, value_lr=0.25))
    optimizer = ppo.build_optimizer(cfg)
    state, moved = optimizer.init(params), params
    steps = []
    for _ in range(5):  # epochs × minibatches = 4 steps an iteration
        updates, state = optimizer.update(gradient, state, moved)
        moved = optax.apply_updates(moved, updates)
        steps.append((float(moved["policy"]["w"][0]), float(moved["value"]["w"][0])))
    assert [policy for policy, _ in steps] == pytest.approx([0, 0, 0, 0, -0.5], abs=1e-5)
    assert [value for _, value in steps] == pytest.approx([-0.25, -0.5, -0.75, -1.0, -1.25], abs=1e-5)


def test_the_value_model_starts_where_told(world, tmp_path):
    """From the reward model: its score is the first value, so that of a finished text is its reward. From the policy: 0."""
    opened = models.open_model(world.model)
    params, words = opened.params, hf.tokenizer(world.model)

    def built(value, rewards=None):
        cfg = world.ppo(tmp_path, {"judged": Reward(model=world.reward)} if rewards is None else rewards, value=value)
        return ppo.build_value(cfg, opened, words, None, {}).params

    judge = hf.load(world.reward)[1]
    for made in (built("reward"), built(world.reward, {"words": Reward(function=world.function("words"))})):
        assert np.array_equal(made["value"], judge["score"][:, 0]) and np.array_equal(
            made["layers/q"], judge["layers/q"]
        )
    fresh = built("policy")
    assert not np.any(fresh["value"]) and np.array_equal(fresh["layers/q"], params["layers/q"])
