"""Hugging Face checkpoints in and out, against numbers that torch made once (tests/fixtures/hf) and against bytes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax import sharding
from rlhf_jax.model import heads, hf, transformer
from rlhf_jax.model.config import ModelConfig, RopeScaling
from rlhf_jax.model.hf import files as hf_files
from rlhf_jax.model.hf import tensors as hf_tensors
from tests.fixtures.hf import checkpoints

EVERY = checkpoints.CAUSAL + checkpoints.REWARD
ATOL = 1e-4


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Each case once, as transformers 5 would have saved it."""
    root = tmp_path_factory.mktemp("hf")
    return {case: checkpoints.write(root / case, case) for case in EVERY}


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def edit(folder, name="config.json", **changes):
    """Change keys of a JSON file of the folder; None stands for null, ... takes the key away."""
    document = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    document = {key: value for key, value in (document | changes).items() if value is not ...}
    (folder / name).write_text(json.dumps(document))
    return folder


def rewrite(folder, change):
    """Write the folder's tensors again, changed."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def shard(folder, files):
    """Cut model.safetensors into this many files, with the index that transformers 5 writes."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-{number:05}-of-{files:05}.safetensors" for number in range(1, files + 1)]
    placed = {name: names[place % files] for place, name in enumerate(sorted(tensors))}
    for file in names:
        mine = {name: tensors[name] for name in tensors if placed[name] == file}
        save_file(mine, folder / file, metadata={"format": "pt"})
    metadata = {
        "total_parameters": sum(x.size for x in tensors.values()),
        "total_size": sum(x.nbytes for x in tensors.values()),
    }
    index = {"metadata": metadata, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return folder


def same(params, others):
    assert params.keys() == others.keys()
    for name in params:
        assert params[name].dtype == others[name].dtype
        np.testing.assert_array_equal(np.asarray(params[name]), np.asarray(others[name]), err_msg=name)


# What the model computes.


@pytest.mark.parametrize("case", checkpoints.CAUSAL)
def test_logits_and_gradients_are_those_of_transformers(folders, case):
    cfg, params = hf.load(folders[case])
    told = checkpoints.numbers(case)
    tokens = jnp.asarray(told["tokens"], jnp.int32)
    assert tokens.size >= 512
    cfg = checkpoints.fitted(cfg, tokens.size)

    @jax.jit
    def logprob(params):
        states = transformer.hidden(params, tokens[None], jnp.array([tokens.size]), cfg=cfg)
        logits = transformer.logits(params, states[0], cfg=cfg)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], axis=-1)
        return jnp.sum(chosen), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(logprob, has_aux=True))(params)
    logits = np.asarray(logits)
    np.testing.assert_allclose(logits[:, told["columns"]], told["logits"], rtol=0, atol=ATOL)
    np.testing.assert_allclose(np.logaddexp.reduce(logits, axis=-1), told["lse"], rtol=0, atol=ATOL)

    grads = {path: np.asarray(x) for path, x in grads.items()}
    theirs = {}
    for name, tensor in hf_tensors.tensors(cfg, params).items():
        pieces = [grads[path][tensor.at] for path in tensor.row.paths]
        theirs[name] = hf_tensors.to_theirs(pieces, tensor.row, tensor.shape)
    assert sorted(theirs) == sorted(checkpoints.shapes(case))
    norms = {name: np.linalg.norm(theirs[name].astype(np.float64)) for name in sorted(theirs)}
    # The gradient of a key bias is 0 but for rounding: softmax does not see a constant added to all scores.
    floor = 1e-5 * told["gradient_norms"].max()
    np.testing.assert_allclose(list(norms.values()), told["gradient_norms"], rtol=1e-3, atol=floor)
    kept = [name for name in told if name.startswith("gradient/")]
    assert len(kept) >= min(9, len(norms) // 2)
    for name in kept:
        expected = told[name]
        error = np.linalg.norm(theirs[name.removeprefix("gradient/")][:16] - expected)
        assert error <= 1e-3 * np.linalg.norm(expected) + floor, name


@pytest.mark.parametrize("case", checkpoints.CAUSAL)
def test_greedy_tokens_are_those_of_transformers(folders, case):
    cfg, params = hf.load(folders[case])
    told = checkpoints.numbers(case)
    prompt, expected = told["prompt"].tolist(), told["greedy"].tolist()
    row = np.zeros((1, len(prompt) + len(expected)), np.int32)
    row[0, : len(prompt)] = prompt

    @jax.jit
    def likeliest(tokens, length):
        states = transformer.hidden(params, tokens, length[None], cfg=cfg)
        return jnp.argmax(transformer.logits(params, states[0, length - 1], cfg=cfg))

    for length in range(len(prompt), row.shape[1]):
        row[0, length] = likeliest(row, jnp.int32(length))
    assert row[0, len(prompt) :].tolist() == expected


@pytest.mark.parametrize("case", checkpoints.REWARD)
def test_rewards_are_those_of_transformers(folders, case):
    cfg, params = hf.load(folders[case])
    told = checkpoints.numbers(case)
    tokens, lengths = (jnp.asarray(told[name], jnp.int32) for name in ("tokens", "lengths"))
    for one in {
        checkpoints.fitted(cfg, int(length)) for length in lengths
    }:  # rows that need the long factors of "longrope" apart from those that do not
        rows = np.array([checkpoints.fitted(cfg, int(length)) == one for length in lengths])
        scores = heads.reward(params, tokens[rows, : max(lengths[rows])], lengths[rows], cfg=one)
        np.testing.assert_allclose(scores, told["scores"][rows], rtol=0, atol=ATOL)
    assert cfg.axes == told["scores"].shape[1]


def test_a_saved_normalisation_is_applied(folders, tmp_path):
    cfg, params = hf.load(folders["llama_reward"])
    told = checkpoints.numbers("llama_reward")
    mean, std = (0.1, -2.5, 1 / 3), (1.0, 0.7, 1e-3)
    hf.save(tmp_path, dataclasses.replace(cfg, reward_mean=mean, reward_std=std), params)
    again, params = hf.load(tmp_path)
    assert (again.reward_mean, again.reward_std) == (mean, std)
    tokens, lengths = (jnp.asarray(told[name], jnp.int32) for name in ("tokens", "lengths"))
    scores = heads.reward(params, tokens, lengths, cfg=again)
    np.testing.assert_allclose(scores * np.array(std) + np.array(mean), told["scores"], rtol=1e-6, atol=2 * ATOL)


# What comes in.


@pytest.mark.parametrize("case", EVERY)
def test_configs_of_transformers_4_and_5_say_the_same(folders, tmp_path, case):
    cfg, params = hf.load(folders[case])
    older, others = hf.load(checkpoints.write(tmp_path, case, style=4))
    assert older == cfg
    same(params, others)


def test_a_config_is_read_as_what_it_says(folders):
    cfg, _ = hf.load(folders["llama3"])
    assert (cfg.family, cfg.vocab_size, cfg.d_model, cfg.layers, cfg.heads, cfg.kv_heads) == ("llama", 256, 64, 2, 4, 2)
    assert (cfg.head_dim, cfg.d_ff, cfg.max_positions, cfg.norm, cfg.norm_eps) == (16, 96, 1024, "rms", 1e-5)
    assert (cfg.rope_theta, cfg.rope_scaling) == (500000.0, RopeScaling("llama3", 8.0, 1.0, 4.0, 128))
    assert (cfg.tied, cfg.gated_mlp, cfg.qkv_bias, cfg.axes) == (True, True, False, 0)
    assert (cfg.bos_id, cfg.eos_ids, cfg.pad_id) == (1, (2, 3), None)
    flags, _ = hf.load(folders["llama_flags"])
    assert (flags.qkv_bias, flags.out_bias, flags.mlp_bias, flags.head_dim) == (True, True, True, 8)
    assert (flags.activation, flags.rope_scaling) == ("gelu", RopeScaling("linear", 4.0))
    gpt2, _ = hf.load(folders["gpt2"])
    assert (gpt2.d_ff, gpt2.max_positions, gpt2.activation, gpt2.tied) == (256, 640, "gelu_tanh", True)


def test_parameters_are_those_that_the_trunk_declares(folders):
    for case in EVERY:
        cfg, params = hf.load(folders[case])
        specs = transformer.param_specs(cfg)
        assert {path: x.shape for path, x in params.items()} == {path: spec.shape for path, spec in specs.items()}
        assert {x.dtype for x in params.values()} == {jnp.dtype("float32")}


def test_ids_outside_the_vocabulary_are_left_out_aloud(folders, tmp_path):
    checkpoints.write(tmp_path, "gpt2")
    edit(tmp_path, eos_token_id=[7, 50256], pad_token_id=-1, bos_token_id=...)
    with pytest.warns(UserWarning) as told:
        cfg, _ = hf.load(tmp_path)
    assert [str(one.message).split(": ")[1] for one in told] == [
        "eos_token_id [50256] is outside the vocabulary of 256 and is left out",
        "pad_token_id [-1] is outside the vocabulary of 256 and is left out",
    ]
    assert (cfg.eos_ids, cfg.pad_id, cfg.bos_id) == ((7,), None, None)


def test_unknown_keys_are_told(tmp_path):
    edit(checkpoints.write(tmp_path, "qwen2"), sideways_factor=2)
    with pytest.warns(UserWarning, match="sideways_factor"):
        hf.load(tmp_path)


def test_eos_ids_of_the_generation_config_are_added_and_kept(tmp_path):
    folder = edit(checkpoints.write(tmp_path / "a", "qwen2"), "generation_config.json", eos_token_id=[9, 2, 4])
    cfg, params = hf.load(folder)
    assert cfg.eos_ids == (2, 9, 4)
    hf.save(tmp_path / "b", cfg, params)
    assert contents(tmp_path / "b") == contents(folder)
    hf.save(tmp_path / "c", dataclasses.replace(cfg, eos_ids=(5,)), params)
    assert hf.load(tmp_path / "c")[0].eos_ids == (5,)
    assert json.loads((tmp_path / "c" / "generation_config.json").read_text())["eos_token_id"] == 5


def test_gpt2_as_on_the_hub_has_no_prefix_and_holds_masks(folders, tmp_path):
    cfg, params = hf.load(folders["gpt2"])
    bare = {
        name.removeprefix("transformer."): x for name, x in load_file(folders["gpt2"] / "model.safetensors").items()
    }
    masks = {f"h.{i}.attn.bias": np.tril(np.ones((1, 1, 640, 640), np.uint8)) for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(2)}
    folder = rewrite(checkpoints.write(tmp_path / "a", "gpt2"), lambda tensors: bare | masks)
    again, others = hf.load(folder)
    assert again == cfg
    same(params, others)
    hf.save(tmp_path / "b", again, others)
    saved = load_file(tmp_path / "b" / "model.safetensors")
    assert saved.keys() == bare.keys()
    assert all(np.array_equal(saved[name], bare[name]) for name in bare)


def test_rotary_frequencies_in_an_old_file_are_passed_over(folders, tmp_path):
    old = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32) for i in range(2)}
    folder = rewrite(checkpoints.write(tmp_path, "llama2"), lambda tensors: tensors | old)
    same(hf.load(folder)[1], hf.load(folders["llama2"])[1])


def test_a_tied_head_stored_twice_must_be_the_embedding(folders, tmp_path):
    def twice(tensors):
        return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}

    folder = rewrite(checkpoints.write(tmp_path / "a", "qwen2"), twice)
    cfg, params = hf.load(folder)
    assert "unembed" not in params
    same(params, hf.load(folders["qwen2"])[1])
    hf.save(tmp_path / "b", cfg, params)
    assert contents(tmp_path / "b") == contents(folder)

    def differ(tensors):
        tensors["lm_head.weight"][200, 3] += 1e-3
        return tensors

    with pytest.raises(hf.UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        hf.load(rewrite(folder, differ))


def test_a_mesh_gets_the_same_numbers_and_reads_each_once(folders, tmp_path, monkeypatch):
    mesh = sharding.make_mesh(data=1, fsdp=2, tensor=4)
    boxes = []

    def read(weights, name, box, read=hf_files.read_slice):
        boxes.append((name, box))
        return read(weights, name, box)

    monkeypatch.setattr(hf_files, "read_slice", read)
    for case in ("llama3", "gpt2", "qwen2_reward", "llama_flags"):
        cfg, params = hf.load(folders[case])
        boxes.clear()
        again, placed = hf.load(folders[case], mesh=mesh)
        assert again == cfg
        same(params, placed)
        for path, spec in transformer.param_specs(cfg).items():
            assert placed[path].sharding == sharding.of(spec.axes, spec.shape, mesh), path
        up = "transformer.h.1.mlp.c_fc.weight" if case == "gpt2" else "model.layers.1.mlp.up_proj.weight"
        mine = [box for name, box in boxes if name == up]
        shape = checkpoints.shapes(case)[up]
        count = sum(np.prod([part.stop - part.start for part in box]) for box in mine)
        assert len(mine) == 8 and count == np.prod(shape)
        hf.save(tmp_path / case, again, placed)
        assert contents(tmp_path / case) == contents(folders[case])


def test_only_the_asked_slices_of_heads_are_read(folders):
    cfg, params = hf.load(folders["gpt2"])
    weights = hf_files.open_weights(folders["gpt2"])
    tensor = hf_tensors.tensors(cfg, params)["transformer.h.1.attn.c_attn.weight"]
    letters = hf_tensors.sizes(cfg, 3)
    spans = {"D": (5, 40), "N": (1, 3), "H": (4, 12)}
    for part, path in enumerate(("layers/q", "layers/k", "layers/v")):
        box = hf_tensors.their_slices(tensor.row, part, spans, letters)
        block = hf_files.read_slice(weights, "transformer.h.1.attn.c_attn.weight", box)
        assert block.size == 35 * 2 * 16  # whole heads are contiguous, and half of them are not read
        ours = hf_tensors.to_ours(block, tensor.row, spans, letters, part)
        np.testing.assert_array_equal(ours, params[path][1][5:40, 1:3, 4:12])


# What goes out.


@pytest.mark.parametrize("style", [4, 5])
@pytest.mark.parametrize("case", EVERY)
def test_an_unchanged_model_goes_back_byte_for_byte(tmp_path, case, style):
    folder = checkpoints.write(tmp_path / "a", case, style)
    hf.save(tmp_path / "b", *hf.load(folder))
    assert contents(tmp_path / "b") == contents(folder)


@pytest.mark.parametrize("case", ["llama2", "gpt2_reward"])
def test_shards_go_back_byte_for_byte(folders, tmp_path, case):
    folder = shard(checkpoints.write(tmp_path / "a", case), files=3)
    cfg, params = hf.load(folder)
    same(params, hf.load(folders[case])[1])
    hf.save(tmp_path / "b", cfg, params)
    assert contents(tmp_path / "b") == contents(folder)


def test_a_large_model_is_cut_into_files(folders, tmp_path):
    cfg, params = hf.load(folders["llama2"])
    hf.save(tmp_path, cfg, params, max_shard_bytes=100_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "model.safetensors").exists()
    sizes = [sum(x.nbytes for x in load_file(file).values()) for file in files]
    assert max(sizes) <= 100_000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(sizes)
    assert index["weight_map"] == {name: file.name for file in files for name in load_file(file)}
    again, others = hf.load(tmp_path)
    assert again == cfg
    same(params, others)
    # In one file again: what an earlier save left must not be read any more, and what else lies there stays.
    for name in ("generation_config.json", "README.md"):
        (tmp_path / name).write_text("{}")
    hf.save(tmp_path, cfg, params)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_types_are_those_of_the_source_unless_told(folders, tmp_path):
    narrow = ml_dtypes.bfloat16
    folder = edit(checkpoints.write(tmp_path / "a", "qwen2", style=4), torch_dtype="bfloat16")
    rewrite(folder, lambda tensors: {k: x if "norm" in k else x.astype(narrow) for k, x in tensors.items()})
    cfg, params = hf.load(folder)
    assert {x.dtype for x in params.values()} == {jnp.dtype("float32")}
    hf.save(tmp_path / "b", cfg, params)
    assert contents(tmp_path / "b") == contents(folder)

    _, half = hf.load(folder, dtype=jnp.bfloat16)
    assert {x.dtype for x in half.values()} == {jnp.dtype("bfloat16")}
    np.testing.assert_array_equal(half["layers/q"].astype(jnp.float32), params["layers/q"])

    hf.save(tmp_path / "c", cfg, params, dtype="float16")
    tensors = load_file(tmp_path / "c" / "model.safetensors")
    assert {x.dtype for x in tensors.values()} == {np.dtype("float16")}
    assert json.loads((tmp_path / "c" / "config.json").read_text())["torch_dtype"] == "float16"
    wide = load_file(folders["qwen2"] / "model.safetensors")["model.norm.weight"]
    np.testing.assert_array_equal(tensors["model.norm.weight"], wide.astype(np.float16))

    reward, others = hf.classifier(cfg, 1), {k: x for k, x in params.items() if k != "unembed"}
    hf.save(tmp_path / "d", reward, others | {"score": jnp.ones((64, 1))})
    assert load_file(tmp_path / "d" / "model.safetensors")["score.weight"].dtype == narrow


@pytest.mark.parametrize("style", [4, 5])
@pytest.mark.parametrize("case", ["gpt2", "llama2", "llama3", "qwen2"])
def test_a_reward_model_from_a_language_model_and_back(tmp_path, case, style):
    cfg, params = hf.load(checkpoints.write(tmp_path / "a", case, style))
    reward = dataclasses.replace(hf.classifier(cfg, 3), reward_mean=(1.0, 2.0, 3.0), reward_std=(0.5, 0.5, 0.25))
    trunk = {path: x for path, x in params.items() if path != "unembed"}
    score = jax.random.normal(jax.random.key(0), (64, 3))
    hf.save(tmp_path / "b", reward, trunk | {"score": score})
    document = json.loads((tmp_path / "b" / "config.json").read_text())
    family = {"gpt2": "GPT2", "llama2": "Llama", "llama3": "Llama", "qwen2": "Qwen2"}[case]
    assert document["architectures"] == [f"{family}ForSequenceClassification"]
    assert document["num_labels"] == 3 and len(document["id2label"]) == 3
    assert document["rlhf_jax"] == {"reward_mean": [1.0, 2.0, 3.0], "reward_std": [0.5, 0.5, 0.25]}
    again, others = hf.load(tmp_path / "b")
    assert again == reward
    same(others, trunk | {"score": score})
    assert load_file(tmp_path / "b" / "model.safetensors").keys() == {
        *(name for name in checkpoints.shapes(case) if name != "lm_head.weight"),
        "score.weight",
    }
    hf.save(tmp_path / "c", hf.causal(again), params)
    document = json.loads((tmp_path / "c" / "config.json").read_text())
    assert document == json.loads((tmp_path / "a" / "config.json").read_text())
    same(hf.load(tmp_path / "c")[1], params)


ROTARY = dict(vocab_size=40, d_model=16, layers=3, heads=4, kv_heads=2, head_dim=6, d_ff=20, max_positions=99)
MADE = {
    "gpt2": ModelConfig(
        "gpt2",
        40,
        16,
        3,
        4,
        4,
        4,
        50,
        99,
        "layer",
        1e-5,
        "learned",
        activation="gelu",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
        eos_ids=(3,),
        bos_id=2,
        pad_id=0,
    ),  # fmt: skip
    "llama": ModelConfig(
        "llama",
        **ROTARY,
        norm="rms",
        norm_eps=1e-6,
        positions="rope",
        rope_theta=1e5,
        activation="gelu_tanh",
        rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, 32),
        eos_ids=(4, 5),
    ),  # fmt: skip
    "linear": ModelConfig(
        "llama",
        **ROTARY,
        norm="rms",
        norm_eps=1e-6,
        positions="rope",
        rope_scaling=RopeScaling("linear", 2.5),
        mlp_bias=True,
        qkv_bias=True,
        out_bias=True,
    ),  # fmt: skip
    "qwen2": ModelConfig(
        "qwen2",
        **ROTARY,
        norm="rms",
        norm_eps=1e-6,
        positions="rope",
        qkv_bias=True,
        tied=True,
        eos_ids=(),
        pad_id=7,
    ),  # fmt: skip
}


@pytest.mark.parametrize("axes", [0, 1])
@pytest.mark.parametrize("name", MADE)
def test_a_model_made_here_is_read_back_and_by_transformers(tmp_path, name, axes):
    from transformers import AutoConfig

    cfg = hf.classifier(MADE[name], axes) if axes else MADE[name]
    random = np.random.default_rng(1)
    specs = transformer.param_specs(cfg)
    params = {path: jnp.asarray(random.normal(size=spec.shape), jnp.float32) for path, spec in specs.items()}
    hf.save(tmp_path, cfg, params)
    again, others = hf.load(tmp_path)
    assert again == cfg
    same(params, others)

    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == cfg.family
    assert (theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers) == (40, 16, 3)
    assert (theirs.num_attention_heads, theirs.max_position_embeddings) == (4, 99)
    assert theirs.tie_word_embeddings == cfg.tied
    assert str(theirs.dtype).removeprefix("torch.") == "float32"
    eos = theirs.eos_token_id
    assert tuple([] if eos is None else eos if isinstance(eos, list) else [eos]) == cfg.eos_ids
    assert (theirs.bos_token_id, theirs.pad_token_id) == (cfg.bos_id, cfg.pad_id)
    if axes:
        assert theirs.num_labels == axes
    if name == "gpt2":
        assert (theirs.n_inner, theirs.activation_function) == (50, "gelu")
        return
    assert (theirs.head_dim, theirs.num_key_value_heads, theirs.intermediate_size) == (6, 2, 20)
    scaling = {"llama": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}, "linear": {"rope_type": "linear", "factor": 2.5}}  # fmt: skip
    assert theirs.rope_parameters == scaling.get(name, {"rope_type": "default"}) | {"rope_theta": cfg.rope_theta}
    document = json.loads((tmp_path / "config.json").read_text())  # as transformers 4 reads it
    assert (document["rope_theta"], document["rope_scaling"]) == (cfg.rope_theta, scaling.get(name))


def test_changed_settings_are_written_into_the_config_it_came_from(folders, tmp_path):
    cfg, params = hf.load(folders["llama3"])
    wider = dataclasses.replace(cfg, vocab_size=260, pad_id=256, rope_scaling=None, rope_theta=7.0)
    params = params | {"embed": jnp.concatenate([params["embed"], jnp.zeros((4, 64))])}
    hf.save(tmp_path, wider, params)
    assert hf.load(tmp_path)[0] == wider
    before, after = (json.loads((x / "config.json").read_text()) for x in (folders["llama3"], tmp_path))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed == {"vocab_size", "pad_token_id", "rope_parameters", "rope_theta"}


def test_how_it_is_computed_is_not_saved(folders, tmp_path):
    cfg, params = hf.load(folders["llama3"])
    hf.save(tmp_path, dataclasses.replace(cfg, dtype="bfloat16", remat="full", unroll=2), params)
    assert contents(tmp_path) == contents(folders["llama3"])


# Tokenizers and the hub.


@pytest.fixture(scope="session")
def small_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghij"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.chat_template = "{% for m in messages %}{{ m['content'] }} </s>{% endfor %}"
    return made


def test_a_tokenizer_is_saved_beside_the_model_and_read_back(folders, tmp_path, small_tokenizer):
    cfg, params = hf.load(folders["qwen2"])
    hf.save(tmp_path, cfg, params, small_tokenizer)
    again = hf.tokenizer(tmp_path)
    assert again("a j b")["input_ids"] == [4, 13, 5]
    chat = [{"role": "user", "content": "c d"}]
    assert again.apply_chat_template(chat, tokenize=False) == "c d </s>"
    assert hf.load(tmp_path)[0] == cfg


def test_a_tokenizer_larger_than_the_model_is_refused(folders, tmp_path, small_tokenizer):
    cfg, params = hf.load(folders["qwen2"])
    hf.check_tokenizer(small_tokenizer, dataclasses.replace(cfg, vocab_size=14))
    with pytest.raises(hf.UserError, match="14 ids.*13 rows"):
        hf.check_tokenizer(small_tokenizer, dataclasses.replace(cfg, vocab_size=13))
    narrow = dataclasses.replace(cfg, vocab_size=13, eos_ids=(), bos_id=None)
    with pytest.raises(hf.UserError, match="14 ids"):
        hf.save(tmp_path / "a", narrow, params | {"embed": params["embed"][:13]}, small_tokenizer)
    assert not (tmp_path / "a").exists()


def test_a_hub_name_fetches_only_data(folders, monkeypatch):
    import fnmatch

    import huggingface_hub

    asked = []

    def snapshot_download(name, *, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        files = ["config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "tokenizer.json",
            "tokenizer.model", "merges.txt", "chat_template.jinja", "pytorch_model.bin", "modeling_x.py", "tf_model.h5",
            "onnx/model.safetensors", "original/params.json", "README.md", "rng_state.pth", "consolidated.safetensors",
            "consolidated-00001-of-00002.safetensors"]  # fmt: skip
        wanted = [x for x in files if any(fnmatch.fnmatch(x, pattern) for pattern in allow_patterns)]
        wanted = [x for x in wanted if not any(fnmatch.fnmatch(x, pattern) for pattern in ignore_patterns)]
        assert wanted == files[:7]
        return str(folders["llama2"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cfg, params = hf.load("somebody/some-model.1", revision="abc")
    assert asked == [("somebody/some-model.1", "abc")]
    same(params, hf.load(folders["llama2"])[1])


def test_links_of_the_hub_cache_are_followed(folders, tmp_path):
    repository = tmp_path / "models--somebody--some-model"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for place, (name, data) in enumerate(contents(folders["llama2"]).items()):
        (repository / "blobs" / str(place)).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{place}")
    same(hf.load(snapshot)[1], hf.load(folders["llama2"])[1])
