"""The scripts with adapters: one frozen base under policy, reference, value and reward, from SFT to a merged model."""

import dataclasses
import functools
from pathlib import Path

import generate
import jax
import jax.numpy as jnp
import numpy as np
import ppo
import pytest
import reward_model
import sft

from rlhf_jax.algorithms import rollout
from rlhf_jax.errors import UserError
from rlhf_jax.model import heads, hf, lora, peft, transformer
from rlhf_jax.model.lora import Lora
from rlhf_jax.runs import models
from rlhf_jax.runs.ppo_settings import Reward
from tests.experiments import alike
from tests.experiments.conftest import lines, optimised

SETTINGS = Lora(rank=2, alpha=6.0, targets="q,v,down")


@pytest.fixture(scope="module")
def tuned(world, tmp_path_factory):
    """An adapter from supervised fine-tuning, and its merged model."""
    with optimised(False):
        cfg = world.sft(
            tmp_path_factory.mktemp("sft") / "run", epochs=1.0, lora=dataclasses.replace(SETTINGS, merge=True)
        )
        sft.main(cfg)
    return Path(cfg.out)


@pytest.fixture(scope="module")
def judged(world, tmp_path_factory):
    """A reward model that is an adapter and a score on the base."""
    with optimised(False):
        cfg = world.reward_model(tmp_path_factory.mktemp("reward") / "run", epochs=0.5, lora=Lora(3, 3.0, "all"))
        return Path(reward_model.main(cfg)["folder"])


@dataclasses.dataclass
class Seen:
    """What went through a PPO run: each rollout, and what each update was given beside its state."""

    folder: Path
    rollouts: list
    frozen: list
    states: list


def watched(cfg):
    """Run ppo.py and look on."""
    seen = Seen(Path(cfg.out), [], [], [])
    collect, build = rollout.collect, ppo.build_update

    def build_update(*given):
        update = build(*given)

        def watch(state, batch, key, frozen):
            seen.frozen.append(frozen)
            state, steps = update(state, batch, key, frozen)
            seen.states.append(jax.tree.map(np.asarray, state.params))
            return state, steps

        watch._cache_size = update._cache_size
        return watch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "collect", lambda *a, **k: seen.rollouts.append(collect(*a, **k)) or seen.rollouts[-1])
        patch.setattr(ppo, "build_update", build_update)
        seen.result = ppo.main(cfg)
    return seen


@pytest.fixture(scope="module")
def aligned(world, tuned, judged, tmp_path_factory):
    """Two iterations from the SFT adapter, on the reward adapter, with a value model that starts from it."""
    rewards = {"judged": Reward(model=str(judged)), "words": Reward(function=world.function("words"))}
    cfg = world.ppo(tmp_path_factory.mktemp("ppo") / "run", rewards, value="reward", lora=SETTINGS)
    with optimised(False):
        return watched(dataclasses.replace(cfg, policy=str(tuned / "model")))


def logprobs(world, params, facts):
    """The policy's log-probabilities of a rollout, by the program and in the chunks that ppo.py uses."""
    cfg = models.open_model(world.model).cfg
    row = functools.partial(heads.policy, window=6, cfg=cfg, temperature=0.7)
    forward = jax.jit(rollout.in_chunks(row, 4))
    return forward(params, facts.tokens, facts.prompt_length, facts.response_length)[0]


@pytest.mark.long
def test_the_reference_is_the_base_with_the_adapter_it_started_from(world, tuned, aligned):
    """Bit by bit, before and after the policy has moved; never the bare base."""
    opened = models.open_model(str(tuned / "model"))
    for facts in aligned.rollouts:
        assert np.array_equal(facts.ref_logprobs[facts.mask], logprobs(world, opened.params, facts)[facts.mask])
        assert not np.array_equal(facts.ref_logprobs[facts.mask], logprobs(world, opened.base, facts)[facts.mask])
    rows = lines(aligned.folder / "metrics.jsonl")
    assert rows[0]["rollout/kl"] == 0 and rows[1]["rollout/kl"] != 0
    assert [row["policy/first_ratio_deviation"] for row in rows] == [0.0, 0.0]
    assert aligned.result["compilations"]["update"] == aligned.result["compilations"]["policy"] == 1


@pytest.mark.long
def test_the_base_is_one_stays_where_it_is_and_as_it_is(world, aligned):
    """Policy and value stand on the same buffers through all updates; what is trained, and what Adam counts, is the rest."""
    before = hf.load(world.model)[1]
    first, last = aligned.frozen[0], aligned.frozen[-1]
    for path, x in before.items():
        assert np.array_equal(last["policy"][path], x), path
        assert last["policy"][path].unsafe_buffer_pointer() == first["policy"][path].unsafe_buffer_pointer()
    shared = before.keys() - {"unembed"}
    assert all(last["value"][path] is last["policy"][path] for path in shared)
    trained = aligned.states[-1]
    wanted = {path for path in lora.specs(models.open_model(world.model).cfg, SETTINGS) if "scale" not in path}
    assert trained["policy"].keys() == wanted
    assert {path for path in trained["value"] if "_lora_" not in path} == {"value", "value_bias"}
    assert trained["value"]["layers/gate_lora_b"].shape[1] == 3, "the value model goes on with the reward's own adapter"
    for role in trained:
        moved = [not np.array_equal(aligned.states[0][role][path], x) for path, x in trained[role].items()]
        assert all(moved), role


@pytest.mark.long
def test_the_saved_adapter_is_the_policy_and_the_next_stage_opens_it(world, aligned, tmp_path):
    opened = models.open_model(str(aligned.folder / "model"))
    assert peft.base_of(aligned.folder / "model")[0] == str(Path(world.model).resolve())
    for path, x in aligned.states[-1]["policy"].items():
        assert np.array_equal(opened.adapter[path], x)
    assert not (aligned.folder / "model" / "model.safetensors").exists()
    out = tmp_path / "out.jsonl"
    told = generate.Experiment(
        str(aligned.folder / "model"), world.prompts, str(out), prompt_window=10, response_window=4
    )
    assert generate.main(told)["responses"] == len(lines(out)) == 36


def test_a_merged_model_has_the_logits_of_its_adapter(tuned):
    opened = models.open_model(str(tuned / "model"))
    cfg, merged = hf.load(tuned / "merged")
    tokens, lengths = jnp.arange(1, 15, dtype=jnp.int32)[None], jnp.array([14])

    @jax.jit
    def forward(params):
        return transformer.logits(params, transformer.hidden(params, tokens, lengths, cfg=cfg), cfg=cfg)

    np.testing.assert_allclose(forward(merged), forward(opened.params), atol=1e-5)
    assert np.abs(forward(merged) - forward(opened.base)).max() > 1e-2, "fine-tuning must have moved it"


def test_a_reward_adapter_scores_on_a_base_that_is_open_already(world, judged):
    bases = {}
    policy = models.open_model(world.model, bases=bases)
    opened = models.open_model(str(judged), bases=bases)
    assert len(bases) == 1 and all(opened.base[path] is policy.base[path] for path in opened.base)
    assert opened.cfg.axes == 1 and opened.cfg.reward_mean and opened.cfg.reward_std != (1.0,)
    score = reward_model.scorer(str(judged), window=20, rows=2, bases=bases)
    texts = [tuple(lines(world.prompts)[0]["prompt"])] * 2, ["The otter eats fish.", "The otter eats grass."], [{}, {}]
    found = score(*texts)
    assert found.shape == (2,) and found[0] != found[1]


def test_a_shared_trunk_has_one_trunk_and_a_head(world, tmp_path):
    """The first ratio is 1, the KL starts at 0, the policy's own parameters learn from the value loss alone."""
    chosen = world.settings(policy_loss=world.function("nothing"), kl_coef=0.0)
    functions = world.folder / "functions.py"
    if "def nothing" not in functions.read_text():
        functions.write_text(
            functions.read_text() + "\n\ndef nothing(logprobs, old, advantages):\n    return 0 * logprobs\n"
        )
    seen = watched(world.ppo(tmp_path / "run", value="shared", lora=SETTINGS, ppo=chosen))
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["rollout/kl"] == 0 and rows[1]["rollout/kl"] != 0
    assert rows[0]["policy/first_ratio_deviation"] == 0 and rows[0]["policy/loss"] == 0
    assert seen.states[-1]["value"].keys() == {"value", "value_bias"} and seen.frozen[0]["value"] == {}
    assert np.abs(seen.states[-1]["policy"]["layers/q_lora_b"]).max() > 0


@pytest.mark.long
def test_while_the_critic_warms_up_only_the_head_of_a_shared_trunk_learns(world, tmp_path):
    seen = watched(world.ppo(tmp_path / "run", value="shared", ppo=world.settings(critic_warmup=2)))
    assert {row["rollout/kl"] for row in lines(tmp_path / "run" / "metrics.jsonl")} == {0.0}
    before = hf.load(world.model)[1]
    assert all(np.array_equal(seen.states[-1]["policy"][path], x) for path, x in before.items())
    assert np.abs(seen.states[-1]["value"]["value"]).max() > 0


@pytest.mark.parametrize("name", ["sft", pytest.param("ppo", marks=pytest.mark.long)])
def test_a_run_with_an_adapter_resumes_to_the_same_bytes(world, tmp_path, name):
    if name == "ppo":
        small = world.settings(reference_every=2)
        main, cfg = ppo.main, world.ppo(tmp_path / "whole", iterations=3, save_every=1, lora=SETTINGS, ppo=small)
    else:
        main, cfg = sft.main, world.sft(tmp_path / "whole", epochs=1.0, save_every=1, lora=SETTINGS)
    main(cfg)
    alike.killed_and_resumed(main, dataclasses.replace(cfg, out=str(tmp_path / "run")), after=2, saved=2)
    alike.same_bytes(tmp_path / "run", tmp_path / "whole", alike.ADAPTED)


def test_an_adapter_goes_on_as_it_was_or_not_at_all(world, tuned, tmp_path):
    """Another rank is refused; without an adapter wanted, the merged model is trained whole."""
    cfg = dataclasses.replace(world.sft(tmp_path / "run"), model=str(tuned / "model"))
    for other in (Lora(3, 6.0, "q,v,down"), Lora(2, 5.0, "q,v,down"), Lora(2, 6.0, "q,v")):
        with pytest.raises(UserError, match="rank 2, alpha / rank 3 and targets q,v,down"):
            sft.main(dataclasses.replace(cfg, lora=other))
    opened = models.open_model(str(tuned / "model"))
    trained, frozen = models.trainable(opened, Lora(), jax.random.key(0))
    assert not frozen and trained.keys() == opened.base.keys()
    assert not np.array_equal(trained["layers/q"], opened.base["layers/q"])
    with pytest.raises(UserError, match="reference_share must be 1"):
        world.ppo(tmp_path, lora=SETTINGS, ppo=world.settings(reference_every=1, reference_share=0.5))


def test_a_reward_adapter_is_opened_without_the_output_matrix_of_its_base(world, judged):
    """A score stands in its place; the base, which other roles share, keeps it."""
    bases = {}
    opened = models.open_model(str(judged), bases=bases)
    ((_, base),) = bases.values()
    assert opened.cfg.axes == 1 and "unembed" in base
    assert opened.base.keys() == transformer.param_specs(opened.cfg).keys() - {"score"}
