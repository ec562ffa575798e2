"""The scripts on a base in few bits: one for all roles, from the adapters that stand on it to a resumed run."""

import dataclasses
import json
import math

import jax
import numpy as np
import ppo
import ppo_parts
import pytest
import reward_model
import sft

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf, lora, peft, quantised
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import models, session, settings
from rlhf_jax.runs.dry_run import ppo as dry_run
from rlhf_jax.runs.ppo_settings import Reward
from tests.experiments import alike
from tests.experiments.conftest import lines
from tests.experiments.test_lora import watched
from tests.real_models import CONFIGS, LLAMA, PARAMETERS

SETTINGS = Lora(rank=2, alpha=6.0, targets="q,v,down")


def held(kind):
    return settings.Compute(base=kind)


def test_all_roles_stand_on_one_quantised_base(world, tmp_path):
    """The value model and the reward model, an adapter, have the policy's own buffers; only adapters and heads are trained."""
    cfg, params = hf.load(world.model)
    judge, adapter = hf.classifier(cfg, 1), Lora(3, 3.0, "q,v")
    arrays = lora.init(jax.random.key(1), judge, adapter) | {"score": np.ones((cfg.d_model, 1), np.float32)}
    peft.save(tmp_path / "judge", judge, arrays, adapter, world.model)
    hf.tokenizer(world.model).save_pretrained(tmp_path / "judge")
    rewards = {"judged": Reward(model=str(tmp_path / "judge"))}
    told = world.ppo(tmp_path / "run", rewards, value="reward", lora=SETTINGS, compute=held("int4"))
    bases = {}
    opened, words = session.language_model(told.policy, told.compute, None, bases)
    ppo_parts.build_reward(told, None, bases)
    value = ppo_parts.build_value(told, opened, words, None, bases)
    assert len(bases) == 1
    trained, frozen = ppo_parts.split_roles(told, opened, value, None)
    matrices = [path for path in params if quantised.inputs(path)]
    assert len(matrices) == 7 and all(frozen["policy"][path] is frozen["value"][path] for path in matrices)
    assert all(quantised.is_quantised(frozen["policy"][path]) for path in matrices)
    for role in trained:
        assert all("_lora_" in path or path in models.HEADS for path in trained[role])


@pytest.mark.long
def test_policy_value_and_reward_stand_on_one_quantised_base(world, tmp_path):
    """The very buffers, as they were read, through all updates; the saved adapter names the folder of floats."""
    judged = world.reward_model(tmp_path / "reward", epochs=0.5, lora=Lora(3, 3.0, "all"), compute=held("int4"))
    rewards = {"judged": Reward(model=reward_model.main(judged)["folder"])}
    cfg = world.ppo(tmp_path / "run", rewards, value="reward", lora=SETTINGS, compute=held("int4"))
    seen, opened = watched(cfg), []
    assert seen.result["compilations"]["update"] == seen.result["compilations"]["policy"] == 1
    first, last = seen.frozen[0], seen.frozen[-1]
    for path, x in hf.load(world.model, held="int4")[1].items():
        for role in ("policy", "value") if path != "unembed" else ("policy",):
            opened.append(path)
            a, b, c = map(jax.tree.leaves, (x, first[role][path], last[role][path]))
            assert all(np.array_equal(*pair) for pair in zip(a, c, strict=True)), path
            assert all(x is y for x, y in zip(b, c, strict=True))
            assert all(x is y for x, y in zip(c, jax.tree.leaves(last["policy"][path]), strict=True)), path
    assert quantised.is_quantised(last["policy"]["layers/q"]) and len(opened) > 20
    assert seen.states[-1]["policy"].keys() == {
        path for path in lora.specs(hf.load(world.model)[0], SETTINGS) if "scale" not in path
    }
    rows = lines(seen.folder / "metrics.jsonl")
    assert rows[0]["rollout/kl"] == 0 and rows[1]["rollout/kl"] != 0
    assert [row["policy/first_ratio_deviation"] for row in rows] == [0.0, 0.0]
    assert peft.base_of(seen.folder / "model")[0] == world.model
    again = models.open_model(str(seen.folder / "model"), held="int4")
    assert all(np.array_equal(again.adapter[path], x) for path, x in seen.states[-1]["policy"].items())


def test_one_folder_held_in_two_ways_is_two_bases(world):
    bases = {}
    small, large = (models.open_model(world.model, bases=bases, held=kind).base for kind in ("int8", "float"))
    assert (
        len(bases) == 2 and quantised.is_quantised(small["layers/q"]) and not quantised.is_quantised(large["layers/q"])
    )
    assert models.open_model(world.model, bases=bases, held="int8").base is small


@pytest.mark.long
def test_fine_tuning_on_few_bits_learns_as_on_floats(world, tmp_path):
    """Measured: over 12 steps losses fall from 4.61 to 2.71 nats, and differ by at most 0.0024 (int8), 0.031
    (int4) and 0.053 (nf4) from those on floats."""
    found = {}
    for kind in ("float", *quantised.BITS):
        cfg = world.sft(tmp_path / kind, epochs=3.0, lora=Lora(4, 16.0, merge=True), compute=held(kind))
        sft.main(cfg)
        rows = lines(tmp_path / kind / "metrics.jsonl")
        found[kind] = np.array([row["sft/loss"] for row in rows if "sft/loss" in row])
    for kind, most in (("int8", 0.01), ("int4", 0.1), ("nf4", 0.1)):
        away = np.abs(found[kind] - found["float"]).max()
        assert 0 < away < most and found[kind][-1] < found[kind][0] - 1
    opened = models.open_model(str(tmp_path / "int8" / "model"), held="int8")
    merged = hf.load(tmp_path / "int8" / "merged")[1]
    for path, x in lora.merge(opened.params).items():
        np.testing.assert_array_equal(merged[path], x, err_msg=path)


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.long)])
@pytest.mark.long
def test_a_run_on_a_quantised_base_resumes_to_the_same_bytes(world, tmp_path, kind):
    cfg = world.sft(tmp_path / "whole", epochs=1.0, save_every=1, lora=SETTINGS, compute=held(kind))
    sft.main(cfg)
    alike.killed_and_resumed(sft.main, dataclasses.replace(cfg, out=str(tmp_path / "run")), after=2, saved=2)
    alike.same_bytes(tmp_path / "run", tmp_path / "whole", alike.ADAPTED)


def test_a_whole_model_is_not_trained_on_a_quantised_base(world, tmp_path):
    for make in (world.sft, world.reward_model, world.ppo):
        with pytest.raises(
            UserError, match="compute.base is int8, and only an adapter can be trained .* set lora.rank"
        ):
            make(tmp_path / "run", compute=held("int8"))


@pytest.mark.parametrize(("kind", "bits", "blocks"), [("int8", 8, False), ("nf4", 4, True)])
def test_a_dry_run_counts_the_small_base(tmp_path, kind, bits, blocks):
    """Llama-3.1-8B, by hand: its matrices at their bits and their scales, 4 bytes each; the rest as floats."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[LLAMA]))
    rewards = {"judged": Reward(model="runs/a/reward")}
    sizes = {"prompts_per_iteration": 8, "samples_per_prompt": 2, "prompt_window": 32, "response_window": 16}
    cfg = ppo.Experiment(str(tmp_path), "nothing.jsonl", rewards, **sizes, lora=Lora(rank=8), compute=held(kind))
    found = dry_run.plan(cfg)
    L, D, F, K = 32, 4096, 14336, 1024
    matrices = L * (2 * D * D + 2 * D * K + 3 * D * F)
    scales = matrices // 64 if blocks else L * (2 * D + 2 * K + 2 * F + D)
    wanted = matrices * bits // 8 + 4 * scales + 4 * (PARAMETERS[LLAMA] - matrices)
    assert found.held[f"{tmp_path} as it was opened"] == wanted
    layers = found.phases["decoding"]["layers cast for decoding"]
    adapter = 8 * (2 * (D + D) + 2 * (D + K) + 3 * (D + F))
    assert layers == matrices * bits // 8 + 4 * scales + 4 * L * (2 * D + adapter)
    assert "weights as float32" not in found.phases["update"] and math.isfinite(found.peak)
