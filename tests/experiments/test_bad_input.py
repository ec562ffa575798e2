"""More bad input, beside test_refusals: found before a model is trained, not after; and through the command line."""

import dataclasses
import json
import shutil

import evaluate
import generate
import ppo
import pytest
import reward_model
import sft

from rlhf_jax.algorithms import rollout
from rlhf_jax.feedback import formats, records
from rlhf_jax.generate import engine
from rlhf_jax.model import hf
from rlhf_jax.playground import tokenizer
from rlhf_jax.runs import config, session, settings
from rlhf_jax.runs.ppo_settings import Reward
from tests.experiments.alike import refused
from tests.experiments.conftest import draw, lines, model_config, write


@pytest.fixture
def nothing_runs(monkeypatch):
    """The test fails if a run is begun in it or a response sampled: all programs worth the name come after that."""
    for module, name in ((session, "session"), (rollout, "collect"), (engine, "generate")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


def test_a_broken_yaml_is_one_line_on_stderr_and_exit_code_2(start, world, tmp_path):
    (tmp_path / "broken.yaml").write_text("policy: [1, 2\nprompts: x\n")
    processes = [
        start("ppo", "--config", tmp_path / "broken.yaml"),
        start("sft", "--model", world.model, "--demonstrations", "nowhere.jsonl", "--out", tmp_path / "run"),
    ]
    for process, told in zip(processes, (f"{tmp_path}/broken.yaml, line 2", "no data at nowhere.jsonl")):
        _, stderr = process.communicate()
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert process.returncode == 2 and len(errors) == 1 and told in errors[0], stderr
        assert "Traceback" not in stderr
    assert not (tmp_path / "run").exists(), "nothing is left behind"


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_a_learning_rate_that_is_no_rate(world, tmp_path, value):
    given = ["--model", world.model, "--demonstrations", world.demonstrations, "--optimizer.lr", value]
    refused(lambda: config.parse(sft.Experiment, given), "optimizer.lr", value)


@pytest.mark.parametrize(
    "name", ["window", "batch", "microbatches", "keep", "seed", "save_every", "epochs", "held_out"]
)
def test_negative_numbers(world, tmp_path, name):
    for make in (world.sft, world.reward_model):
        refused(lambda make=make: make(tmp_path, **{name: -1}), name, "-1")
    refused(lambda: world.sft(tmp_path, batch=8, microbatches=3), "8 rows", "3 micro-batches")


def test_rewards_that_say_nothing_or_too_much(world, tmp_path):
    refused(lambda: world.ppo(tmp_path, {}), "rewards")
    for both in ({}, {"model": world.reward, "function": world.function("words")}):
        refused(lambda both=both: Reward(**both), "model or function", "not both")


@pytest.mark.usefixtures("nothing_runs")
class TestBeforeAnything:
    """Each is refused before the run folder is opened, and before anything is sampled or trained."""

    def test_a_reward_model_is_no_policy(self, world, tmp_path):
        for main, cfg in (
            (ppo.main, dataclasses.replace(world.ppo(tmp_path / "run"), policy=world.reward)),
            (sft.main, dataclasses.replace(world.sft(tmp_path / "run"), model=world.reward)),
            (generate.main, generate.Experiment(world.reward, world.prompts, str(tmp_path / "out.jsonl"))),
            (evaluate.main, evaluate.Experiment(world.reward, world.reward, world.reward, world.prompts)),
        ):
            refused(lambda main=main, cfg=cfg: main(cfg), "is a reward model", "causal language model")

    def test_a_policy_is_no_reward_model(self, world, tmp_path):
        refused(lambda: ppo.main(world.ppo(tmp_path / "run", {"a": Reward(model=world.model)})), "0 reward axes")
        other = {"a": Reward(model=world.reward, axis=1)}
        refused(lambda: ppo.main(world.ppo(tmp_path / "run", other)), "has 1 reward axes; axis 1 is not one")

    def test_no_eos(self, world, tmp_path):
        folder = shutil.copytree(world.model, tmp_path / "model")
        told = json.loads((folder / "tokenizer_config.json").read_text())
        del told["eos_token"]
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        refused(lambda: ppo.main(dataclasses.replace(world.ppo(tmp_path / "run"), policy=str(folder))), "no EOS token")

    def test_an_unknown_format_names_the_known_ones(self, world, tmp_path):
        refused(lambda: ppo.main(world.ppo(tmp_path / "run", format="pandas")), "'pandas'", "pandalm", "trl_prompt")

    def test_more_devices_than_there_are(self, world, tmp_path):
        cfg = world.ppo(tmp_path / "run", mesh=settings.Layout(data=16))
        refused(lambda: ppo.main(cfg), "16 x 1 x 1 needs 16 devices", "shows 8")

    def test_an_unknown_policy_loss_names_the_nearest(self, world, tmp_path):
        cfg = world.ppo(tmp_path / "run", ppo=world.settings(policy_loss="clippd"))
        refused(lambda: ppo.main(cfg), "ppo.policy_loss", "did you mean 'clipped'?")

    def test_windows_past_the_learned_positions(self, world, tmp_path):
        words = hf.tokenizer(world.model)
        changes = {"family": "gpt2", "norm": "layer", "positions": "learned", "activation": "gelu_tanh", "kv_heads": 4}
        changes |= {"gated_mlp": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": True}
        cfg = model_config(words, max_positions=16, **changes)
        hf.save(tmp_path / "model", cfg, draw(cfg), words)
        chosen = dataclasses.replace(world.ppo(tmp_path / "run"), policy=str(tmp_path / "model"), response_window=7)
        refused(lambda: ppo.main(chosen), "prompt window 10 + response window 7", "16 learned positions")

    def test_nothing_fits_the_window(self, world, tmp_path):
        refused(lambda: sft.main(world.sft(tmp_path / "run", window=3)), "no demonstration is left", "3 tokens")

    def test_an_output_that_is_a_folder(self, world, tmp_path):
        refused(
            lambda: generate.main(generate.Experiment(world.model, world.prompts, str(tmp_path))), "out is a folder"
        )

    def test_no_pair_fits_the_window(self, world, tmp_path):
        cfg = world.reward_model(tmp_path / "run", window=3)
        refused(lambda: reward_model.main(cfg), "no pair is left", "longer than 3 tokens")

    def test_no_pair_has_a_winner(self, world, tmp_path):
        """Nothing could be learnt; and without a held-out winner nothing could be told of what was learnt."""
        rows = lines(world.comparisons)
        ties = write(tmp_path / "ties.jsonl", [row | {"ranks": [0, 0]} for row in rows])
        kept, _ = records.split_by_prompt(formats.load(world.comparisons)[0], 0.2, seed=world.reward_model("").seed)
        one = str(tmp_path / "one.jsonl")
        formats.dump(one, kept[:3])
        for path, part in ((ties, "training"), (one, "held-out")):
            cfg = dataclasses.replace(world.reward_model(tmp_path / "run"), comparisons=path)
            refused(lambda cfg=cfg: reward_model.main(cfg), f"no {part} pair has a winner")

    def test_reference_responses_that_cannot_be_used(self, world, tmp_path):
        long = write(tmp_path / "long.jsonl", [{"prompt": "What?", "responses": ["The otter eats fish. " * 9]}])
        for path, word in ((world.prompts, "generate.py"), ("nope.jsonl", "nope.jsonl"), (long, "window is 20")):
            refused(lambda path=path: reward_model.main(world.reward_model(tmp_path / "run", reference=path)), word)


def test_an_evaluation_of_models_that_do_not_belong_together(world, tmp_path, nothing_runs):
    words = tokenizer.train_tokenizer(["other words entirely"])
    stranger, larger = model_config(words), model_config(hf.tokenizer(world.model), d_ff=64)
    hf.save(tmp_path / "stranger", stranger, draw(stranger), words)
    hf.save(tmp_path / "larger", larger, draw(larger), hf.tokenizer(world.model))
    one = write(tmp_path / "one.jsonl", lines(world.prompts)[:1])

    def evaluated(**changes):
        given = {"policy": world.model, "start": world.model, "reward_model": world.reward, "prompts": world.prompts}
        return evaluate.main(evaluate.Experiment(**given | {"prompt_window": 10, "response_window": 4} | changes))

    refused(lambda: evaluated(start=str(tmp_path / "stranger")), "different vocabularies")
    refused(lambda: evaluated(prompts=one), "an interval needs 2")
    refused(lambda: evaluated(reward_model=world.model), "0 reward axes")
    cfg = evaluate.Experiment(str(tmp_path / "larger"), world.model, "", "")
    refused(lambda: evaluate.sampled(cfg, cfg.policy, None, None, 1, 0), "different sizes")


def test_a_run_without_checkpoints_is_not_begun_anew_over_what_it_did(world, tmp_path):
    cfg = dataclasses.replace(world.sft(tmp_path / "run"), save_every=0)
    sft.main(cfg)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    refused(
        lambda: sft.main(dataclasses.replace(cfg, resume=True)), "without checkpoints (save_every 0)", "another --out"
    )
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert (tmp_path / "run" / "model").is_dir()


def test_a_run_is_not_resumed_with_other_settings(world, tmp_path, sft_run):
    """But for where it lies and how often it is saved. The folder is left as it was."""
    folder = shutil.copytree(sft_run.out, tmp_path / "run")
    cfg = dataclasses.replace(sft_run.cfg, out=str(folder))
    refused(lambda: sft.main(cfg), "not empty", "--resume true")
    other = dataclasses.replace(cfg, resume=True, optimizer=dataclasses.replace(cfg.optimizer, lr=0.5))
    refused(lambda: sft.main(other), "optimizer.lr", "0.01", "0.5", "same settings")
    assert lines(folder / "metrics.jsonl") == sft_run.metrics
    assert (folder / "config.yaml").read_text() == (sft_run.out / "config.yaml").read_text()
