"""Recipes for real models: they parse, say how they are run, fit the machine they name by a dry run of the true sizes, and run
scaled down from random checkpoints of the same architectures."""

import ast
import dataclasses
import json
import re
import shlex
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import ppo
import pytest
import reward_model
import sft

from rlhf_jax.model import hf, transformer
from rlhf_jax.model.hf import config as hf_config
from rlhf_jax.playground import tokenizer
from rlhf_jax.runs import config
from rlhf_jax.runs.ppo_settings import PPO
from tests.real_models import CONFIGS, LLAMA, PYTHIA, QWEN

RECIPES = Path(__file__).parent.parent.parent / "experiments" / "configs" / "recipes"
PATHS = sorted(RECIPES.glob("*.yaml"))
SCRIPTS = {"sft": sft, "reward": reward_model, "ppo": ppo}
MODELS = {"pythia": PYTHIA, "qwen": QWEN, "llama": LLAMA}
DEVICE_GB = {"ppo_llama_lora_v5e8": 16, "sft_qwen_hh": 40, "reward_qwen_hh": 40, "ppo_qwen_hh": 40}
"""Memory of the devices that a recipe names, where it is not 80 GB."""

named = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def script(path):
    return SCRIPTS[path.stem.split("_")[0]]


def parse(path, *arguments):
    return config.parse(script(path).Experiment, ["--config", str(path), *map(str, arguments)])


def header(path):
    return [line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#")]


def starting_model(path):
    """The setting that names what is trained."""
    return "--policy" if path.stem.startswith("ppo") else "--model"


def test_the_promised_recipes_are_there():
    stages = {f"{stage}_{task}" for stage in SCRIPTS for task in ("pythia_tldr", "qwen_hh")}
    llama = {"reward_llama_lora_h100", "ppo_llama_lora_h100", "ppo_llama_lora_v5e8"}
    assert {path.stem for path in PATHS} == stages | llama


@named
def test_a_recipe_says_how_it_is_run_and_that_nobody_has(path, monkeypatch):
    monkeypatch.chdir(RECIPES.parent.parent.parent)
    lines = header(path)
    commands = [line for line in lines if line.startswith("python experiments/")]
    assert (
        commands[0]
        == f"python experiments/{Path(script(path).__file__).name} --config experiments/configs/recipes/{path.name}"
    )
    assert any(line.endswith("--dry-run") for line in commands)
    for command in commands:
        cfg = config.parse(script(path).Experiment, shlex.split(command)[2:])
        assert cfg.dry_run == command.endswith("--dry-run")
    text = " ".join(lines)
    assert "NOT RUN YET by anybody" in text and "Expect " in text
    assert all(len(line) <= 130 for line in path.read_text().splitlines() if "python " not in line)


@named
def test_the_commands_that_fetch_data_are_whole_and_make_the_files_named(path):
    cfg = parse(path)
    file = {"sft": "demonstrations", "reward": "comparisons", "ppo": "prompts"}[path.stem.split("_")[0]]
    wanted = getattr(cfg, file)
    sources = [path] if "etch" not in " ".join(header(path)) or file != "prompts" else PATHS
    fetched = []
    for line in (line for source in sources for line in header(source)):
        words = shlex.split(line) if line.startswith(("hf download", "python -c")) else []
        if words[:2] == ["python", "-c"]:
            calls = [node for node in ast.walk(ast.parse(words[2])) if isinstance(node, ast.Call)]
            fetched += [call.args[0].value for call in calls if getattr(call.func, "attr", "") == "to_json"]
        elif words:
            assert words[3:5] == ["--repo-type", "dataset"]
            folder, inside = words[words.index("--local-dir") + 1], words[words.index("--include") + 1]
            fetched.append(f"{folder}/{inside.removesuffix('*')}train.jsonl.gz")
    assert wanted in fetched


def test_the_reproduction_has_the_constants_of_its_paper():
    """arXiv 2403.17031 and its code: 8 devices, 16 rows a micro-batch each, 4 of them: 512 a batch."""
    cfg = parse(RECIPES / "ppo_pythia_tldr.yaml")
    assert (cfg.rows, cfg.ppo.minibatches, cfg.ppo.epochs, cfg.samples_per_prompt) == (512, 1, 4, 1)
    assert (cfg.prompt_window, cfg.response_window, cfg.sampling.temperature) == (512, 53, 0.7)
    assert abs(cfg.rows * cfg.iterations - 1_000_000) < cfg.rows
    assert (cfg.optimizer.lr, cfg.optimizer.schedule, cfg.optimizer.eps) == (3e-6, "linear", 1e-5)
    assert cfg.rows // cfg.ppo.microbatches // cfg.mesh.fsdp == 16
    ours = {"epochs": 4, "gamma": 1.0, "lam": 0.95, "kl_coef": 0.05, "kl_in": "reward", "clip": 0.2, "value_clip": 0.2}
    ours |= {"value_coef": 0.1, "whiten_advantages": True, "whiten_rewards": False, "missing_eos_penalty": -1.0}
    assert cfg.ppo == PPO(**ours, microbatches=4)
    first, second = parse(RECIPES / "sft_pythia_tldr.yaml"), parse(RECIPES / "reward_pythia_tldr.yaml")
    assert (first.batch, first.window, first.epochs) == (128, 562, 1) and first.learn == "all"
    assert (second.batch, second.window, second.epochs, second.centring_coef) == (64, 638, 1, 0)
    for each in (first.optimizer, second.optimizer):
        assert (each.lr, each.schedule, each.warmup, each.eps) == (3e-6, "cosine", 0, 1e-5)


@named
def test_a_recipe_names_what_the_step_before_it_makes(path):
    made = {f"{parse(other).out}/model" for other in PATHS}
    cfg = parse(path)
    names = [cfg.policy, *(part.model for part in cfg.rewards.values())] if path.stem.startswith("ppo") else [cfg.model]
    assert all(name in made or name in CONFIGS for name in names)


@named
def test_a_dry_run_of_the_true_sizes_fits_the_machine(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = MODELS[path.stem.split("_")[1]]
    (tmp_path / "true").mkdir()
    (tmp_path / "true" / "config.json").write_text(json.dumps(CONFIGS[name]))
    result = script(path).main(parse(path, "--dry-run", starting_model(path), tmp_path / "true"))
    assert 0.3e9 < result["peak_bytes"] < 0.9e9 * DEVICE_GB.get(path.stem, 80)
    shown = capsys.readouterr().out
    assert "at the most" in shown and "FLOPs a step" in shown
    assert [child.name for child in tmp_path.iterdir()] == ["true"]


SMALL = {
    "vocab_size": 0,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
}
TEXTS = [
    f"{verb} the {noun} ."
    for verb in ("See", "Feed", "Draw")
    for noun in ("otter", "seal", "heron", "moose", "goat", "frog")
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder with small data in the places and forms of the true ones, and a function that makes a random two-layer
    checkpoint of a real model's architecture, with a tokenizer."""
    monkeypatch.chdir(tmp_path)
    words = tokenizer.train_tokenizer([*TEXTS, "Human Assistant : \n yes no"])
    good, bad = " yes yes yes", " no no"
    turns = [f"\n\nHuman: {text}\n\nAssistant:" for text in TEXTS]
    write(tmp_path / "hh.jsonl", [{"chosen": turn + good, "rejected": turn + bad} for turn in turns])
    eos = words.eos_token
    write(tmp_path / "data/tldr/sft.jsonl", [{"prompt": text, "completion": good + eos} for text in TEXTS])
    pairs = [{"prompt": text, "chosen": good + eos, "rejected": bad + eos} for text in TEXTS]
    write(tmp_path / "data/tldr/comparisons.jsonl", pairs)

    def checkpoint(name):
        sizes = {key: value for key, value in SMALL.items() if key in CONFIGS[name]}
        document = CONFIGS[name] | sizes | {"vocab_size": len(words), "eos_token_id": words.eos_token_id}
        cfg = hf_config.read(document | {"bos_token_id": words.bos_token_id})
        rng = np.random.default_rng(0)
        params = {
            path: jnp.asarray(np.ones(spec.shape) if "norm" in path else rng.normal(0, 0.1, spec.shape), jnp.float32)
            for path, spec in sorted(transformer.param_specs(cfg).items())
        }
        hf.save(tmp_path / "checkpoint", cfg, params, words)
        return str(tmp_path / "checkpoint")

    return checkpoint


def run(stem, model, *changes, **scaled):
    """A stage of a recipe with everything but its sizes as it is."""
    path = RECIPES / f"{stem}.yaml"
    hh = "tldr" not in stem
    kind = stem.split("_")[0]
    file = {"sft": "--demonstrations", "reward": "--comparisons", "ppo": "--prompts"}[kind]
    arguments = [file, "hh.jsonl"] if hh else []
    if kind == "ppo":
        arguments += ["--iterations", 2, "--prompts_per_iteration", 8, "--samples_per_prompt", 1, "--show", 1]
        arguments += ["--prompt_window", 16, "--response_window", 4, "--ppo.minibatches", 1, "--ppo.microbatches", 2]
    else:
        arguments += ["--window", 32, "--batch", 8, "--microbatches", 2, "--held_out", 0.3, "--epochs", 2]
    start = [starting_model(path), model] if model else []
    cfg = parse(path, *arguments, *start, *changes, "--save_every", 0)
    result = script(path).main(cfg)
    lines = [json.loads(line) for line in (Path(cfg.out) / "metrics.jsonl").read_text().splitlines()]
    numbers = [value for line in lines for value in line.values() if isinstance(value, float)]
    assert len(lines) >= 2 and np.isfinite(numbers).all()
    assert (Path(result["folder"]) / "tokenizer.json").exists()
    return result, lines


@pytest.mark.long
def test_the_first_stage_of_a_recipe_runs_scaled_down(small):
    _, lines = run("sft_qwen_hh", small(QWEN))
    assert lines[0]["sft/loss"] > 0 and "sft/held_out_loss" in lines[-1]


@pytest.mark.long
@pytest.mark.parametrize(("task", "name"), [("qwen_hh", QWEN), ("pythia_tldr", PYTHIA)])
def test_three_stages_of_a_recipe_run_scaled_down_one_after_another(small, task, name):
    """Each stage finds what the one before it made where the recipe says it lies."""
    run(f"sft_{task}", small(name))
    judged, _ = run(f"reward_{task}", "")
    assert set(judged["held_out"]) == {"reward model", "longer or shorter", "bag of words", "annotators"}
    single = ["--mesh.fsdp", 1] if task == "pythia_tldr" else []
    result, lines = run(f"ppo_{task}", "", *single)
    assert lines[0]["rollout/kl"] == 0 and lines[1]["rollout/kl"] != 0
    assert lines[0]["kl/coef"] == pytest.approx(0.05)
    assert result["folder"] == f"runs/ppo_{task}/model"


@pytest.mark.long
@pytest.mark.parametrize("machine", ["h100", "v5e8"])
def test_stages_with_adapters_run_scaled_down_one_after_another(small, machine):
    """On one device, and on eight pretended ones cut as the TPU's are."""
    model = small(LLAMA)
    mesh = ["--mesh.fsdp", 4, "--mesh.tensor", 2] if machine == "v5e8" else []
    run("reward_llama_lora_h100", model, *mesh)
    result, lines = run(f"ppo_llama_lora_{machine}", model)
    assert lines[0]["rollout/kl"] == pytest.approx(0, abs=1e-5)
    assert (Path(result["folder"]) / "adapter_model.safetensors").exists()
    assert not (Path(result["folder"]) / "model.safetensors").exists()


def test_the_scaled_down_checkpoints_have_the_architectures_of_the_true_ones(small):
    """All that is not a size: what a family's recipe rests on."""
    for name in CONFIGS:
        true, made = hf_config.read(CONFIGS[name]), hf.load(small(name))[0]
        sizes = {"vocab_size", "d_model", "layers", "heads", "kv_heads", "head_dim", "d_ff", "max_positions"}
        ids = {"eos_ids", "bos_id", "pad_id", "source"}
        for field in dataclasses.fields(true):
            if field.name not in sizes | ids:
                assert getattr(made, field.name) == getattr(true, field.name), field.name
        Path("checkpoint/model.safetensors").unlink()


def test_every_recipe_has_a_row_here():
    assert re.findall(r"\w+_(?:h100|v5e8|hh|tldr)", " ".join(path.stem for path in PATHS)) == [
        path.stem for path in PATHS
    ]
