"""grpo.py end to end: what it writes, that it goes on where it was killed, and that every algorithm it names runs."""

import dataclasses
import json

import grpo
import grpo_parts
import jax
import numpy as np
import ppo_parts
import pytest

from rlhf_jax.algorithms import group
from rlhf_jax.errors import UserError
from rlhf_jax.model import hf
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import group_advantages, kl, policy_zoo
from rlhf_jax.runs import settings
from rlhf_jax.runs.grpo_settings import GRPO
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Samples, Sampling
from tests.experiments import alike
from tests.experiments.conftest import PROMPT, RESPONSE, finish, lines, mixed, optimised


def experiment(world, out, rewards=None, grpo_settings=None, **changes):
    """Of the smallest size; keywords change its fields."""
    small = {
        "iterations": 3,
        "prompts_per_iteration": 4,
        "samples_per_prompt": 2,
        "prompt_window": PROMPT,
        "response_window": RESPONSE,
        "grpo": GRPO(**{"epochs": 2, "minibatches": 2} | (grpo_settings or {})),
        "optimizer": settings.Optimizer(lr=3e-3),
        "save_every": 0,
        "show": 0,
    }
    rewards = {"letters": Reward(function=world.function("parts"))} if rewards is None else rewards
    return grpo.Experiment(world.model, world.prompts, rewards, str(out), **small | changes)


@pytest.fixture(scope="module")
def whole(world, compilations, tmp_path_factory):
    """Three iterations of GRPO on a mix of rewards, with a reference that follows and a checkpoint of the second."""
    out = tmp_path_factory.mktemp("grpo") / "run"
    chosen = {"reference_every": 2, "reference_share": 0.5, "drop_flat": True}
    with optimised(False):
        return finish(grpo.main, experiment(world, out, mixed(world), chosen, save_every=2, show=2), compilations)


def test_the_run_folder_is_that_of_any_run(world, whole):
    rows = whole.metrics
    alike.folder_is_whole(whole, iterations=3, shown=2, drawn="group/flat")
    assert [row["policy/first_ratio_deviation"] for row in rows] == [0.0, 0.0, 0.0]
    assert not [name for name in rows[0] if name.startswith("value/")], "there is no critic"
    assert rows[0]["rollout/kl"] == 0 != rows[1]["rollout/kl"] and rows[0]["group/score_std"] > 0
    assert whole.result["compilations"] == {"update": 1, "policy": 1, "generate": 2}
    assert whole.compiled[0] == whole.compiled[1], "something was compiled after the first iteration"
    alike.every_array_moved(world.model, whole.result["folder"])


@pytest.mark.long
def test_killed_and_resumed_it_ends_with_the_same_bytes(whole, tmp_path):
    """Killed in the third iteration, with a checkpoint of two: policy, optimizer and the reference that moved come back."""
    alike.resumes_to_the_same_bytes(grpo.main, whole, tmp_path / "run", after=2, saved=2, names=alike.ALIGNED)


ALGORITHMS = [
    {"advantage": "dr_grpo", "weights": "fixed_length", "kl_coef": 0.0},
    {
        "advantage": "grpo_batch_std",
        "weights": "token_mean",
        "clip_high": 0.28,
        "drop_flat": True,
        "overlong_buffer": 2,
    },
    {"advantage": "rloo", "kl_in": "reward", "policy_loss": "unclipped", "length_coef": 0.01},
    {"advantage": "reinforce_plus_plus", "kl_in": "reward", "weights": "token_mean", "dual_clip": 3.0},
    {"advantage": "reinforce_plus_plus_baseline", "kl_estimator": "k2", "policy_loss": "sapo"},
    {"advantage": "remax", "policy_loss": "kl_penalty", "penalty": 0.5},
    {"advantage": "opo", "epochs": 1, "minibatches": 1, "policy_loss": "cispo", "kl_coef": 0.0},
    {"advantage": "pass_at_k", "k": 2, "policy_loss": "geometric_mean"},
    {"advantage": "grpo", "policy_loss": "gspo", "kl_coef": 0.0, "microbatches": 2},
    {"advantage": "grpo", "policy_loss": "gspo_token", "importance_cap": 5.0, "importance_floor": 0.001},
    {"advantage": "grpo", "policy_loss": "clipped", "target_kl": 1.0, "entropy_coef": 0.01, "reward_clip": 1.0},
]


@pytest.mark.long
@pytest.mark.parametrize("chosen", ALGORITHMS, ids=lambda chosen: f"{chosen['advantage']}-{chosen.get('policy_loss')}")
def test_every_algorithm_runs(world, tmp_path, chosen):
    sampling = Sampling(temperature=0.7, top_k=5) if "importance_cap" in chosen else Sampling(temperature=0.7)
    cfg = experiment(world, tmp_path / "run", grpo_settings=chosen, iterations=2, sampling=sampling)
    result, rows = grpo.main(cfg), lines(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 2 and all(np.isfinite(list(row.values())).all() for row in rows)
    assert [row["policy/first_ratio_deviation"] for row in rows] == [0.0, 0.0]
    assert ("rollout/greedy_score" in rows[0]) == (chosen["advantage"] == "remax")
    start, end = hf.load(world.model)[1], hf.load(result["folder"])[1]
    assert not np.array_equal(start["embed"], end["embed"]), "it never learnt"


def test_every_name_is_run():
    assert {chosen["advantage"] for chosen in ALGORITHMS} == set(group_advantages.ADVANTAGES)
    assert {chosen.get("policy_loss", "clipped") for chosen in ALGORITHMS} == set(policy_zoo.LOSSES)


@pytest.mark.long
def test_an_adapter_learns_and_the_base_does_not(world, tmp_path):
    result = grpo.main(experiment(world, tmp_path / "run", lora=Lora(rank=2), iterations=2))
    assert result["rollout/kl"] != 0 and (tmp_path / "run" / "model" / "adapter_config.json").exists()


@pytest.mark.long
def test_the_reward_rises(world, tmp_path):
    """Words of many letters are easy to learn: settings and seed were fixed before the first run."""
    cfg = experiment(world, tmp_path / "run", grpo_settings={"kl_coef": 0.01}, iterations=40, samples_per_prompt=8)
    cfg = dataclasses.replace(cfg, optimizer=settings.Optimizer(lr=1e-2, schedule="constant"))
    grpo.main(cfg)
    scores = [row["rollout/score"] for row in lines(tmp_path / "run" / "metrics.jsonl")]
    assert np.mean(scores[-5:]) > np.mean(scores[:5]) + 0.3


def test_settings_reach_the_targets_and_the_loss(monkeypatch):
    seen = {}
    cfg = GRPO(
        reward_clip=0.4,
        missing_eos_penalty=-2.0,
        overlong_buffer=3,
        length_coef=0.1,
        mask_truncated=True,
        drop_flat=True,
        kl_coef=0.3,
        clip=0.1,
        importance_cap=2.0,
        importance_floor=0.6,
    )
    monkeypatch.setattr(group, "targets", lambda rollout, **keywords: seen.update(keywords))
    for where, beta in (("reward", 0.3), ("loss", 0.0)):
        with jax.disable_jit():
            made = grpo_parts.build_targets(dataclasses.replace(cfg, kl_in=where), group_advantages.opo, kl.k2)
            made({}, greedy=None)
        names = ("reward_clip", "missing_eos_penalty", "overlong_buffer", "length_coef", "mask_truncated", "drop_flat")
        wanted = {name: getattr(cfg, name) for name in names} | {"advantage": group_advantages.opo, "greedy": None}
        assert seen == wanted | {"kl_coef": beta, "kl_estimator": kl.k2}
        monkeypatch.setattr(ppo_parts, "make_update", lambda loss, adam, **keywords: (loss, keywords))
        loss, _ = ppo_parts.build_update(dataclasses.replace(cfg, kl_in=where), "forward", kl.k2, "adam")
        assert loss.keywords["kl_coef"] == 0.3 - beta and "value_coef" not in loss.keywords
        assert (loss.keywords["importance_cap"], loss.keywords["importance_floor"]) == (2.0, 0.6)
        assert loss.keywords["policy_loss"].keywords == {"clip": 0.1}


def test_a_loss_has_its_own_bounds_unless_told():
    assert ppo_parts.policy_loss(GRPO(policy_loss="gspo")).keywords == {}
    told = ppo_parts.policy_loss(GRPO(policy_loss="gspo", clip=0.1, clip_high=0.2, dual_clip=3.0, tau_pos=2.0))
    assert told.keywords == {"clip": 0.1, "clip_high": 0.2}
    assert ppo_parts.policy_loss(GRPO(policy_loss="sapo", tau_neg=2.0)).keywords == {"tau_neg": 2.0}


def test_the_greedy_baseline_is_one_score_a_prompt(world, monkeypatch, tmp_path):
    """At temperature 0, of the prompts that were sampled from, and given to each of a prompt's responses."""
    cfg = experiment(
        world, tmp_path, sampling=Sampling(temperature=0.7, top_k=9), grpo_settings={"importance_cap": 2.0}
    )
    asked, tokenizer = [], hf.tokenizer(world.model)
    prompts = ppo_parts.load_prompts(world.prompts, tokenizer, window=PROMPT, long="refuse")

    def generate(params, tokens, length, uids, key, *, sampling, **_):
        asked.append((np.asarray(tokens), sampling.temperature, sampling.top_k, uids.shape))
        return Samples(tokens[:, :2], np.full(4, 2), np.zeros(4), np.zeros((4, 2)))

    monkeypatch.setattr(grpo_parts.engine, "generate", generate)
    score = lambda prompts, responses, columns: np.arange(4.0)  # noqa: E731
    greedy = grpo_parts.build_greedy(cfg, prompts, None, tokenizer, score)
    np.testing.assert_array_equal(greedy({}, 3, None), [0, 0, 1, 1, 2, 2, 3, 3])
    tokens, temperature, top_k, shape = asked[0]
    assert temperature == 0 and top_k == 0 and shape == (4, 1)
    np.testing.assert_array_equal(tokens, ppo_parts.pick(cfg, prompts, 3).tokens)


OWN = """
def advantage(scores, groups, k):
    return scores * k


def loss(logprobs, old_logprobs, advantages, mask, clip_high):
    return advantages


def greedy_values(scores, values):
    return scores
"""


def test_functions_of_ones_own(world, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    cfg = experiment(world, tmp_path, grpo_settings={"advantage": f"{tmp_path}/own.py:advantage", "k": 3})
    assert grpo_parts.build_advantage(cfg)(np.array([2.0]), groups=None) == 6.0
    assert ppo_parts.policy_loss(GRPO(policy_loss=f"{tmp_path}/own.py:loss")).keywords == {"clip_high": None}
    cfg = experiment(world, tmp_path, grpo_settings={"advantage": f"{tmp_path}/own.py:greedy_values"})
    with pytest.raises(UserError, match="may ask for scores, groups.*got values"):
        grpo_parts.build_advantage(cfg)


def test_what_cannot_work_is_refused_before_anything_is_read(world, tmp_path):
    for wanted, changes, chosen in (
        ("samples_per_prompt must be at least 2 for grpo", {"samples_per_prompt": 1}, {}),
        ("at least 4 for pass_at_k", {}, {"advantage": "pass_at_k", "k": 4}),
        ("importance_floor must be below importance_cap, got 0.5 and none", {}, {"importance_floor": 0.5}),
        ("not the distribution GRPO trains; .* grpo.importance_cap", {"sampling": Sampling(top_k=3)}, {}),
        ("kl_in must be one of reward, loss", {}, {"kl_in": "los"}),
        ("k must be at least 2", {}, {"k": 1}),
        ("8 rows do not divide", {}, {"minibatches": 3}),
    ):
        with pytest.raises(UserError, match=wanted):
            experiment(world, tmp_path, grpo_settings=chosen, **changes)
    for name, spec in (("grpo.advantage", {"advantage": "grp"}), ("grpo.policy_loss", {"policy_loss": "clippd"})):
        with pytest.raises(UserError, match=f"{name} must be one of .* did you mean"):
            grpo.main(experiment(world, tmp_path / "run", grpo_settings=spec))
    experiment(world, tmp_path, grpo_settings={"advantage": "remax"}, samples_per_prompt=1)


def test_a_dry_run_reads_no_weights(world, tmp_path, capsys):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads((world.folder / "model" / "config.json").read_text())))
    rewards = {"judged": Reward(model=str(tmp_path / "nothing-yet"))}
    cfg = dataclasses.replace(experiment(world, tmp_path / "run", rewards, dry_run=True), policy=str(folder))
    plan = grpo.main(cfg)
    assert plan["steps"] == 3 and plan["parameters"] > 0 and "dry run" in capsys.readouterr().out
    assert plan["held_bytes"]["Adam's moments of the policy"] == 2 * 4 * plan["parameters"]
    assert not [name for name in plan["held_bytes"] if "value" in name] and not (tmp_path / "run").exists()
