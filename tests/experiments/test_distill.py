"""distill.py end to end: what it writes, that it goes on where it was killed, and what it refuses."""

import dataclasses
import json

import distill
import distill_parts
import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf
from rlhf_jax.model.lora import Lora
from rlhf_jax.objectives import distillation
from rlhf_jax.runs import settings
from rlhf_jax.runs.ppo_settings import Reward
from rlhf_jax.types import Sampling
from tests.experiments import alike
from tests.experiments.conftest import PROMPT, RESPONSE, draw, finish, lines, model_config, optimised, write


@pytest.fixture(scope="module")
def teacher(world, tmp_path_factory):
    """Another random model, deeper and narrower, with the world's words."""
    words = hf.tokenizer(world.model)
    cfg = model_config(words, layers=3, d_model=24)
    hf.save(folder := tmp_path_factory.mktemp("teacher") / "model", cfg, draw(cfg, seed=1, scale=0.5), words)
    return str(folder)


def experiment(world, teacher, out, **changes):
    """Of the smallest size; keywords change its fields."""
    small = {
        "iterations": 4,
        "batch": 4,
        "prompt_window": PROMPT,
        "response_window": RESPONSE,
        "optimizer": settings.Optimizer(lr=3e-3, schedule="constant", eps=1e-8),
        "save_every": 0,
        "show": 0,
    }
    return distill.Experiment(world.model, teacher, world.prompts, out=str(out), **small | changes)


@pytest.fixture(scope="module")
def whole(world, teacher, compilations, tmp_path_factory):
    """Four iterations, some on own samples and some on given responses, with a checkpoint of the third."""
    out = tmp_path_factory.mktemp("distill") / "run"
    given = {"on_policy": 0.5, "demonstrations": world.demonstrations, "seed": 1}
    cfg = experiment(world, teacher, out, save_every=3, show=2, response_window=10, **given)
    with optimised(False):
        return finish(distill.main, cfg, compilations)


@pytest.mark.long
def test_the_run_folder_is_that_of_any_run(world, whole):
    rows = whole.metrics
    own = [row["distill/own"] for row in rows]
    alike.folder_is_whole(whole, iterations=4, shown=2, drawn="distill/loss")
    assert 0 < sum(own) < 4, "the seed was chosen so that both kinds occur"
    assert [("own/length" in row) for row in rows] == [bool(x) for x in own]
    assert not any("score" in row for row in lines(whole.out / "samples.jsonl")), "there is no reward"
    assert whole.result["compilations"] == {"update": 1, "generate": 2}
    alike.every_array_moved(world.model, whole.result["folder"])


@pytest.mark.long
def test_killed_and_resumed_it_ends_with_the_same_bytes(whole, tmp_path):
    alike.resumes_to_the_same_bytes(distill.main, whole, tmp_path / "run", after=3, saved=3, names=alike.ALIGNED)


@pytest.mark.long
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_the_student_becomes_its_teacher(world, teacher, tmp_path, divergence):
    """On its own samples alone. A first try of 60 steps at 3e-3 took the divergence of jsd from 0.32 to 0.26 nats: hence more
    of both. The teacher is a random model, of which there is little to generalise from."""
    adam = settings.Optimizer(lr=1e-2, schedule="constant", eps=1e-8)
    cfg = experiment(world, teacher, tmp_path / "run", divergence=divergence, iterations=200, batch=8, optimizer=adam)
    distill.main(dataclasses.replace(cfg, rewards={"words": Reward(function=world.function("words"))}, show=2))
    rows, shown = lines(tmp_path / "run" / "metrics.jsonl"), lines(tmp_path / "run" / "samples.jsonl")
    values = [row["distill/loss"] for row in rows]
    assert np.mean(values[-10:]) < 0.7 * np.mean(values[:10])
    assert all(row["score"] == len(row["response"].split()) for row in shown)


@pytest.mark.long
def test_an_adapter_learns_and_the_base_does_not(world, teacher, tmp_path):
    distill.main(experiment(world, teacher, tmp_path / "run", lora=Lora(rank=2), iterations=2, microbatches=2))
    rows = lines(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["distill/loss"] != rows[1]["distill/loss"]
    assert (tmp_path / "run" / "model" / "adapter_config.json").exists()


def test_given_responses_are_told_from_their_prompts(world, teacher, tmp_path, capsys):
    """What fits neither window is left out; prompt and response are those of the file, one EOS at the end."""
    words = hf.tokenizer(world.model)
    long = [{"prompt": "What does the otter eat?", "completion": " ".join(["The otter eats fish."] * 3)}]
    path = write(tmp_path / "given.jsonl", long + lines(world.demonstrations))
    cfg = experiment(world, teacher, tmp_path, on_policy=0.0, demonstrations=path, response_window=8)
    texts = distill_parts.build_read(cfg, words, ())(0)
    told = capsys.readouterr().out
    assert "longer than" in told and "given responses" in told
    answers = {words(row["completion"][0]["content"])["input_ids"].__len__() + 1 for row in lines(world.demonstrations)}
    for tokens, start, size in zip(*map(np.asarray, texts), strict=True):
        text = words.decode(tokens[start : start + size])
        assert text.endswith("<eos>") and "<|assistant|>" in words.decode(tokens[:start]) and size in answers
        assert not tokens[start + size :].any() and size <= 8
    short = dataclasses.replace(cfg, response_window=1, prompt_window=PROMPT + 8)
    with pytest.raises(UserError, match="no given response is left of .*longer than 1 tokens"):
        distill_parts.build_read(short, words, ())


def test_what_cannot_work_is_refused(world, teacher, tmp_path):
    for wanted, changes in (
        ("demonstrations must name a file where on_policy is below 1", {"on_policy": 0.5}),
        ("on_policy must be between 0 and 1", {"on_policy": 1.5}),
        ("beta must be between 0 and 1", {"beta": -1.0}),
        ("temperature must be > 0", {"temperature": 0.0}),
        ("sampling.temperature must be > 0", {"sampling": Sampling(temperature=0.0)}),
        ("weights must be one of", {"weights": "fixed_length"}),
        ("4 rows do not divide", {"microbatches": 3}),
    ):
        with pytest.raises(UserError, match=wanted):
            experiment(world, teacher, tmp_path, **changes)
    with pytest.raises(UserError, match="divergence must be one of .* did you mean"):
        distill.main(experiment(world, teacher, tmp_path / "run", divergence="reverse"))
    with pytest.raises(UserError, match="is a reward model; a causal language model"):
        distill.main(experiment(world, world.reward, tmp_path / "run"))


def test_a_teacher_with_other_words_is_refused(world, tmp_path):
    from rlhf_jax.playground import tokenizer

    words = tokenizer.train_tokenizer(["another set of words"])
    cfg = model_config(words)
    hf.save(tmp_path / "model", cfg, draw(cfg), words)
    with pytest.raises(UserError, match="have different vocabularies"):
        distill.main(experiment(world, str(tmp_path / "model"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_settings_reach_the_divergence(world, teacher, tmp_path):
    made = distill_parts.build_divergence(experiment(world, teacher, tmp_path, beta=0.3))
    assert made.func is distillation.jsd and made.keywords == {"beta": 0.3}
    made = distill_parts.build_divergence(experiment(world, teacher, tmp_path, divergence="reverse_kl"))
    assert made.func is distillation.reverse_kl and made.keywords == {}


def test_a_dry_run_reads_no_weights(world, teacher, tmp_path, capsys):
    folders = []
    for name, source in (("student", world.model), ("teacher", teacher)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(open(f"{source}/config.json").read())
        folders.append(str(tmp_path / name))
    cfg = dataclasses.replace(experiment(world, folders[1], tmp_path / "run", dry_run=True), student=folders[0])
    plan = distill.main(cfg)
    above = sum(x.size for x in hf.load(teacher)[1].values())
    assert plan["steps"] == 4 and plan["held_bytes"]["teacher"] == 4 * above and "dry run" in capsys.readouterr().out
    assert plan["held_bytes"]["Adam's moments of the student"] == 2 * 4 * plan["parameters"]
    assert not (tmp_path / "run").exists()
    assert json.dumps(plan)
