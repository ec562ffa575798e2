"""What would be found late, after sampling or training, or never: windows, outputs, files, tokenizers, a run cut short."""

import dataclasses
import importlib
import re
import shutil
from pathlib import Path

import distill
import dpo
import evaluate
import generate
import grpo
import nash_md
import online_dpo
import ppo
import pytest
import quickstart
import reward_model
import sft

from rlhf_jax.algorithms import rollout
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import hf
from rlhf_jax.playground import tokenizer
from rlhf_jax.runs import config, data, session, settings
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling
from tests.experiments.conftest import PROMPT, RESPONSE, draw, lines, model_config, write
from tests.experiments.test_bad_input import refused

ROOT = Path(__file__).parent.parent.parent
POSITIONS = PROMPT + RESPONSE


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """The test fails if a run is begun in it or a response sampled: all programs worth the name come after that."""
    for module, name in ((session, "session"), (rollout, "collect"), (engine, "generate")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))


@pytest.fixture(scope="module")
def learned(world, tmp_path_factory):
    """Folders of a GPT-2 and of a reward model on it, with as many positions as PPO's two windows have tokens."""
    folder, words = tmp_path_factory.mktemp("learned"), hf.tokenizer(world.model)
    changes = {"family": "gpt2", "norm": "layer", "positions": "learned", "activation": "gelu_tanh", "kv_heads": 4}
    changes |= {"gated_mlp": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": True}
    cfg = model_config(words, max_positions=POSITIONS, **changes)
    for name, each in (("model", cfg), ("reward", hf.classifier(cfg, 1))):
        hf.save(folder / name, each, draw(each), words)
    return folder


def sampling(world, out, **changes):
    small = {"prompt_window": PROMPT, "response_window": RESPONSE}
    return generate.Experiment(world.model, world.prompts, str(out), **small | changes)


def evaluation(world, **changes):
    given = {"policy": world.model, "start": world.model, "reward_model": world.reward, "prompts": world.prompts}
    return evaluate.Experiment(**given | {"prompt_window": PROMPT, "response_window": RESPONSE} | changes)


def test_no_window_goes_past_the_learned_positions(world, tmp_path, learned):
    model, judge, out = str(learned / "model"), str(learned / "reward"), tmp_path / "run"
    past = f"the model's {POSITIONS} learned positions"
    refused(lambda: sft.main(dataclasses.replace(world.sft(out), model=model)), "window 20", past)
    refused(lambda: reward_model.main(dataclasses.replace(world.reward_model(out), model=model)), "window 20", past)
    refused(lambda: ppo.main(world.ppo(out, {"a": Reward(model=judge)})), f"{judge} reads 17 tokens", past)
    refused(lambda: ppo.main(world.ppo(out, value=judge, response_window=7)), "value model", "response window 7", past)
    refused(lambda: evaluate.main(evaluation(world, reward_model=judge)), f"{judge} reads 17 tokens", past)
    assert reward_model.scorer(judge, window=POSITIONS, rows=1), "as many as there are may be read"


def test_a_window_of_rotary_positions_has_no_end(world):
    assert reward_model.scorer(world.reward, window=1000, rows=1), "of 64 positions in training"


@pytest.mark.parametrize("token", [9999, -1])
def test_a_stop_sequence_of_ids_that_there_are_not(world, tmp_path, token):
    rule, words = Sampling(stop=((5, token),)), ("sampling.stop", str([token]))
    refused(lambda: ppo.main(world.ppo(tmp_path / "run", sampling=rule)), *words)
    refused(lambda: generate.main(sampling(world, tmp_path / "out.jsonl", sampling=rule)), *words)
    refused(lambda: evaluate.main(evaluation(world, sampling=rule)), *words)
    assert not list(tmp_path.iterdir())


def test_rows_that_do_not_divide_over_the_devices(world, tmp_path):
    mesh, words = settings.Layout(data=3), ("mesh.data 3 x mesh.fsdp 1", "must divide the rows", "multiple of 3")
    for script, make in ((sft, world.sft), (reward_model, world.reward_model), (ppo, world.ppo)):
        refused(lambda script=script, make=make: script.main(make(tmp_path / "run", mesh=mesh)), *words)
    refused(lambda: generate.main(sampling(world, tmp_path / "out.jsonl", mesh=mesh, batch=8)), *words)
    assert settings.make_mesh(settings.Layout(data=2, fsdp=2, tensor=2), 4) is not None


def test_a_reward_window_too_small_for_a_response_and_its_eos(world, tmp_path):
    def rewards(window):
        return {"a": Reward(model=world.reward, window=window)}

    refused(lambda: world.ppo(tmp_path, rewards(RESPONSE + 1)), "rewards.a.window", f"at least {RESPONSE + 2}", "got 7")
    assert world.ppo(tmp_path, rewards(RESPONSE + 2)) and world.ppo(tmp_path, rewards(0))


def test_a_policy_of_another_size_is_found_before_its_start_is_sampled(world, tmp_path):
    larger = model_config(hf.tokenizer(world.model), d_ff=64)
    hf.save(tmp_path / "larger", larger, draw(larger), hf.tokenizer(world.model))
    refused(lambda: evaluate.main(evaluation(world, policy=str(tmp_path / "larger"))), "different sizes")


@pytest.mark.parametrize(("responses", "got"), [([], "[]"), ([3], "[3]"), ("text", "'text'"), (None, "nothing")])
def test_reference_responses_are_texts(world, tmp_path, responses, got):
    rows = [{"prompt": "What?", "responses": ["The otter eats fish."]}, {"prompt": "Who?", "responses": responses}]
    path = write(tmp_path / "reference.jsonl", rows)
    cfg = world.reward_model(tmp_path / "run", reference=path)
    refused(lambda: reward_model.main(cfg), "reference.jsonl, prompt 2", "generate.py", f"got {got}")


class TestTheFileThatGenerateWrites:
    def test_is_not_its_input(self, world, tmp_path):
        prompts = shutil.copy(world.prompts, tmp_path / "prompts.jsonl")
        before = prompts.read_bytes()
        cfg = dataclasses.replace(sampling(world, tmp_path / "x" / ".." / "prompts.jsonl"), prompts=str(prompts))
        (tmp_path / "x").mkdir()
        refused(lambda: generate.main(cfg), "out is the file of the prompts", "name another")
        assert prompts.read_bytes() == before

    @pytest.mark.parametrize(("out", "word"), [("file/out.jsonl", "cannot be written"), ("pipe", "no regular file")])
    def test_can_be_written(self, world, tmp_path, out, word):
        (tmp_path / "file").write_text("in the way")
        (tmp_path / "pipe").symlink_to("/dev/null")
        refused(lambda: generate.main(sampling(world, tmp_path / out)), "out ", word)

    def test_is_the_old_one_until_all_is_sampled(self, world, tmp_path, monkeypatch, capsys):
        out, rows = tmp_path / "out.jsonl", [{"prompt": "a", "tokens": [1], "stop": ["eos"], "responses": ["\udc80"]}]
        out.write_text("old")
        monkeypatch.setattr(generate, "respond", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            generate.main(sampling(world, out))
        assert out.read_text() == "old" and list(tmp_path.iterdir()) == [out]
        monkeypatch.setattr(generate, "respond", lambda *_, **__: rows)
        generate.main(sampling(world, out))
        assert lines(out) == rows and list(tmp_path.iterdir()) == [out]
        assert "columns" not in capsys.readouterr().out

    def test_replaces_columns_of_the_prompts_and_says_so(self, world, tmp_path, monkeypatch, capsys):
        prompts = write(tmp_path / "prompts.jsonl", [row | {"stop": 1, "tokens": 2} for row in lines(world.prompts)])
        monkeypatch.setattr(generate, "respond", lambda *_, **__: [{"tokens": [1], "stop": ["eos"]}])
        generate.main(dataclasses.replace(sampling(world, tmp_path / "out.jsonl"), prompts=prompts))
        assert f"{prompts}: columns that are replaced in the file to write: stop, tokens" in capsys.readouterr().out


class TestATokenizerThatDoesNotKnowTheTexts:
    def test_is_refused(self, world, tmp_path):
        folder = shutil.copytree(world.model, tmp_path / "model")
        tokenizer.train_tokenizer(["alpha beta gamma"]).save_pretrained(str(folder))
        words, model = ("are unknown to the tokenizer (<unk>): '", "that the model was made with"), str(folder)
        windows = {"window": 60}
        for script, cfg in (
            (sft, dataclasses.replace(world.sft(tmp_path / "run", **windows), model=model)),
            (reward_model, dataclasses.replace(world.reward_model(tmp_path / "run", **windows), model=model)),
            (ppo, dataclasses.replace(world.ppo(tmp_path / "run", prompt_window=30), policy=model)),
        ):
            refused(lambda script=script, cfg=cfg: script.main(cfg), *words)

    def test_is_told_of_where_it_knows_most(self, world, capsys):
        words = hf.tokenizer(world.model)
        known, unknown = words("The otter eats fish.", add_special_tokens=False)["input_ids"], words.unk_token_id
        ends = [words.bos_token_id, words.eos_token_id]
        assert len(known) == 5 and unknown not in known
        data.check_known([[*ends, *known] * 40, ends], words, "texts")
        assert capsys.readouterr().out == ""
        data.check_known([[*ends, *known] * 3, [unknown] * 5], words, "texts")
        assert "warning: 25% of the tokens of the texts are unknown" in capsys.readouterr().out
        refused(lambda: data.check_known([known, [unknown] * 6], words, "texts"), "55% of the tokens of the texts")
        for text, told in (
            ("The otter eats cat, cat and dog; a yak", ": 'cat' 2, ',' 1, 'and' 1, 'dog' 1, ';' 1 and 1 other word; "),
            ("The otter eats fish", "; "),
        ):
            ending = told + "use the tokenizer that the model was made with, and texts that it was made for"
            said = refused(lambda text=text: data.check_known([[unknown]], words, "texts", [text]), ending)
            assert said.endswith("(<unk>)" + ending)
        words.unk_token = words.eos_token  # as in GPT-2: the end of a text is nothing unknown
        data.check_known([[words.eos_token_id] * 3], words, "texts")


def test_a_start_that_fails_leaves_no_run_behind(world, tmp_path, monkeypatch):
    """So that the same command can be given again."""
    monkeypatch.undo()
    cfg = world.sft(tmp_path / "runs" / "a")
    monkeypatch.setattr(session, "restore", lambda *_: (_ for _ in ()).throw(UserError("no room")))
    refused(lambda: sft.main(cfg), "no room")
    assert not list(tmp_path.iterdir())


def test_the_readme_names_the_scripts_that_resume():
    text = " ".join((ROOT / "README.md").read_text().split())
    (named,) = re.findall(r"Those that train \((.*?)\) also take `--resume true`", text)
    scripts = [sft, reward_model, ppo, grpo, dpo, online_dpo, nash_md, distill, generate, evaluate, quickstart]
    assert re.findall(r"`(\w+)`", named) == [each.__name__ for each in scripts if hasattr(each.Experiment, "resume")]


@pytest.mark.parametrize(
    ("script", "setting", "value", "words"),
    [
        ("ppo", "ppo.policy_loss", "unclip", "did you mean 'unclipped'?"),
        ("ppo", "rewards.brief.function", "FILE:breif", "has no function 'breif'; did you mean 'brief'?"),
        ("grpo", "grpo.policy_loss", "nowhere.py:loss", "nowhere.py"),
        ("grpo", "grpo.advantage", "rlo", "did you mean 'rloo'?"),
        ("nash_md", "rewards.brief.function", "FILE:breif", "did you mean 'brief'?"),
        ("online_dpo", "rewards.brief.function", "FILE:breif", "did you mean 'brief'?"),
    ],
)
def test_a_dry_run_tells_of_functions_that_are_not_there(script, setting, value, words, tmp_path, capsys):
    """Before it looks for a model, of which there is none."""
    file = tmp_path / "mine.py"
    file.write_text("def brief(prompts, responses, meta):\n    return [0.0] * len(responses)\n")
    told = {"policy": "none", "prompts": "none", "rewards.brief.function": f"{file}:brief", "dry_run": "true"}
    told |= {setting: value.replace("FILE", str(file))}
    module = importlib.import_module(script)
    with pytest.raises(SystemExit) as ended:
        config.command(module.main, module.Experiment, [f"--{key}={text}" for key, text in told.items()])
    assert ended.value.code == 2 and words in capsys.readouterr().err
