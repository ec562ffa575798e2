"""Shared settings: schedules and Adam against closed forms, ranges, and what they make of a model."""

import dataclasses
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.objectives import policy
from rlhf_jax.runs import settings
from rlhf_jax.runs.ppo_settings import PPO, Reward
from tests import worlds


def rate(step, steps=20, frozen=0, **changes):
    return float(settings.schedule(settings.Optimizer(lr=2.0, **changes), steps, frozen=frozen)(step))


def test_invariant_45_linear_decay_at_the_first_second_and_last_step():
    assert [rate(s) for s in (0, 1, 10, 19, 20)] == pytest.approx([2.0, 1.9, 1.0, 0.1, 0.0], abs=1e-6)


def test_invariant_45_cosine_decay_at_the_first_second_and_last_step():
    wanted = [1 + math.cos(math.pi * s / 20) for s in (0, 1, 19, 20)]
    assert [rate(s, schedule="cosine") for s in (0, 1, 19, 20)] == pytest.approx(wanted, abs=1e-6)


def test_invariant_45_a_constant_rate_is_constant():
    assert {rate(s, schedule="constant") for s in (0, 1, 19, 20)} == {2.0}


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_invariant_45_the_warm_up_rises_evenly_from_zero_over_its_share_of_the_steps(kind):
    found = [rate(s, warmup=0.2, schedule=kind) for s in range(5)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert rate(20, warmup=0.2, schedule=kind) == pytest.approx(2.0 if kind == "constant" else 0.0, abs=1e-6)
    if kind == "linear":
        assert rate(12, warmup=0.2) == pytest.approx(1.0)


def test_frozen_steps_have_no_rate_and_the_decay_still_ends_at_the_last_step():
    found = [rate(s, frozen=10) for s in (0, 9, 10, 15, 19, 20)]
    assert found == pytest.approx([0.0, 0.0, 2.0, 1.0, 0.2, 0.0], abs=1e-6)
    assert [rate(s, frozen=10, warmup=0.1) for s in (9, 10, 11, 12)] == pytest.approx([0.0, 0.0, 1.0, 2.0])


def test_a_single_step_has_the_whole_rate():
    assert rate(0, steps=1) == 2.0 and rate(0, steps=1, schedule="cosine") == 2.0


def test_invariant_33_adam_eps_defaults_to_1e_5():
    assert settings.Optimizer().eps == 1e-5


@pytest.mark.parametrize(("eps", "slope"), [(1e-5, 1e-7), (1e-8, 1e-7), (1e-5, 0.3), (1e-3, -2e-3)])
def test_invariant_33_the_first_update_equals_the_closed_form(eps, slope):
    """ε is added to the root, outside of it and after the bias correction: −lr · g / (|g| + ε)."""
    adam = settings.optimizer(settings.Optimizer(lr=0.1, eps=eps, schedule="constant", clip_norm=0.0), 1)
    x = jnp.zeros(())
    update, _ = adam.update(jnp.float32(slope), adam.init(x), x)
    assert float(update) == pytest.approx(-0.1 * slope / (abs(slope) + eps), rel=1e-4)


def test_adamw_equals_a_loop_over_steps():
    cfg = settings.Optimizer(lr=0.1, eps=1e-4, beta1=0.8, beta2=0.9, weight_decay=0.5, clip_norm=1.0)
    adam, x, m, v = settings.optimizer(cfg, 6), 2.0, 0.0, 0.0
    params = jnp.float32(x)
    state = adam.init(params)
    for step, slope in enumerate([0.5, -3.0, 0.1, 8.0, -0.2, 0.7]):
        update, state = adam.update(jnp.float32(slope), state, params)
        params = params + update
        clipped = slope * min(1.0, 1.0 / abs(slope))
        m, v = 0.8 * m + 0.2 * clipped, 0.9 * v + 0.1 * clipped**2
        direction = (m / (1 - 0.8 ** (step + 1))) / (math.sqrt(v / (1 - 0.9 ** (step + 1))) + 1e-4)
        x -= 0.1 * (1 - step / 6) * (direction + 0.5 * x)
        assert float(params) == pytest.approx(x, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": -1e-6}, "lr must be >= 0"),
        ({"lr": math.nan}, "lr must be >= 0"),
        ({"schedule": "exponential"}, "schedule.*linear"),
        ({"warmup": 1.5}, "warmup"),
        ({"eps": 0.0}, "eps must be > 0"),
        ({"beta1": 1.0}, "beta1"),
        ({"beta2": 1.0}, "beta2"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_an_optimizer_out_of_range_is_refused(changes, told):
    with pytest.raises(UserError, match=told):
        settings.Optimizer(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epochs": 0}, "epochs"),
        ({"gamma": 1.1}, "gamma"),
        ({"lam": -0.1}, "lam"),
        ({"value_lam": 2.0}, "value_lam"),
        ({"kl_coef": -0.1}, "kl_coef"),
        ({"clip": 0.0}, "clip"),
        ({"dual_clip": 1.0}, "dual_clip must be above 1"),
        ({"value_clip": 0.0}, "value_clip"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"kl_in": "both"}, "kl_in"),
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"weights": "mean"}, "weights"),
        ({"importance_cap": 0.0}, "importance_cap"),
        ({"reference_share": 1.5}, "reference_share"),
        ({"kl_in": "loss", "adaptive_kl_target": 6.0}, "kl_in: reward"),
    ],
)
def test_a_ppo_setting_out_of_range_is_refused(changes, told):
    with pytest.raises(UserError, match=told):
        PPO(**changes)


def test_a_reward_part_is_a_model_or_a_function_and_not_both():
    for wrong in ({}, {"model": "m", "function": "f.py:g"}):
        with pytest.raises(UserError, match="model or function must be given, and not both"):
            Reward(**wrong)
    assert Reward(function="f.py:g").weight == 1.0


def test_ppo_defaults_are_those_of_the_tldr_reproduction():
    """Invariants §5: what summarize_from_feedback_details runs with."""
    cfg, adam = PPO(), settings.Optimizer()
    assert (cfg.epochs, cfg.gamma, cfg.lam, cfg.value_clip) == (4, 1.0, 0.95, 0.2)
    assert (cfg.policy_loss, cfg.clip) == ("clipped", None), "the loss's own, which is"
    assert inspect.signature(policy.clipped).parameters["clip"].default == 0.2
    assert (cfg.value_coef, cfg.kl_coef, cfg.missing_eos_penalty) == (0.1, 0.05, -1.0)
    assert cfg.whiten_advantages and not cfg.whiten_rewards
    assert (adam.lr, adam.eps, adam.schedule) == (3e-6, 1e-5, "linear")


class Speaker:
    """As much of a tokenizer as `stop_at` asks for."""

    eos_token_id: int | None = None


def test_stop_at_adds_the_tokenizers_eos_and_keeps_the_models():
    tokenizer = Speaker()
    with pytest.raises(UserError, match="no EOS token"):
        settings.stop_at(worlds.LM, tokenizer)
    tokenizer.eos_token_id = 0
    assert settings.stop_at(worlds.LM, tokenizer).eos_ids == (0, 1)
    tokenizer.eos_token_id = 1
    assert settings.stop_at(worlds.LM, tokenizer).eos_ids == (1,)


def test_compute_changes_how_a_model_is_computed_and_nothing_else():
    compute = settings.Compute(dtype="bfloat16", remat="full", unroll=2)
    cfg = settings.apply_compute(worlds.LM, compute)
    assert (cfg.dtype, cfg.remat, cfg.unroll) == ("bfloat16", "full", 2)
    assert dataclasses.replace(cfg, dtype="float32", remat="none", unroll=1) == worlds.LM
    for wrong in ({"dtype": "float16"}, {"remat": "some"}, {"unroll": 0}, {"chunk": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            settings.Compute(**wrong)


def test_a_layout_of_one_device_is_no_mesh():
    assert settings.make_mesh(settings.Layout()) is None
    mesh = settings.make_mesh(settings.Layout(data=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 2}
    with settings.within(None):
        assert jax.sharding.get_abstract_mesh().empty
    with settings.within(mesh):
        assert jax.sharding.get_abstract_mesh().shape == mesh.shape
    with pytest.raises(UserError, match="fsdp"):
        settings.Layout(fsdp=0)


def test_optimizer_state_is_f32_whatever_the_step():
    adam = settings.optimizer(settings.Optimizer(), 10)
    params = {"x": jnp.ones(3)}
    update, state = adam.update({"x": jnp.ones(3)}, adam.init(params), params)
    floats = [x for x in jax.tree.leaves((update, state)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert floats and all(np.asarray(x).dtype == np.float32 for x in floats)
