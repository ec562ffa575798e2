"""Bad checkpoints are refused in one line that names what is wrong."""

import dataclasses
import json
import re
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf
from tests.fixtures.hf import checkpoints


def edit(folder, name="config.json", **changes):
    """Change keys of a JSON file; ... takes the key away."""
    document = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def refused(pattern, call, *arguments, **keywords):
    """The call raises UserError, in one line that matches."""
    with pytest.raises(UserError) as told:
        call(*arguments, **keywords)
    message = str(told.value)
    assert "\n" not in message
    assert re.search(pattern, message), message


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def without(document, key):
    return {name: value for name, value in document.items() if name != key}


@pytest.mark.parametrize(
    ("case", "changes", "pattern"),
    [
        ("llama2", {"architectures": ["FalconForCausalLM"]}, r"architectures.*FalconForCausalLM.*LlamaForCausalLM"),
        ("llama2", {"architectures": ...}, "architectures is None"),
        ("llama2", {"architectures": ["LlamaForCausalLM", "GPT2LMHeadModel"]}, "architectures"),
        ("llama2", {"architectures": "LlamaForCausalLM"}, "architectures"),
        ("llama2", {"model_type": "mistral"}, r"model_type 'mistral'.*LlamaForCausalLM"),
        ("llama2", {"hidden_size": ...}, "hidden_size is missing"),
        ("llama2", {"vocab_size": ...}, "vocab_size is missing"),
        ("qwen2", {"num_key_value_heads": ...}, "num_key_value_heads is missing"),
        ("gpt2", {"n_layer": ...}, "n_layer is missing"),
        ("llama2", {"hidden_size": "64"}, r"hidden_size is '64'.*positive whole number"),
        ("llama2", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("llama2", {"num_hidden_layers": True}, "num_hidden_layers is True"),
        ("llama2", {"num_hidden_layers": 2.0}, r"num_hidden_layers is 2\.0"),
        ("llama2", {"vocab_size": None}, "vocab_size is None"),
        ("llama2", {"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
        ("llama2", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ("llama2", {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ("llama2", {"hidden_act": "relu"}, "activation 'relu'.*silu"),
        ("gpt2", {"activation_function": "quick_gelu"}, "activation 'quick_gelu'"),
        ("gpt2", {"n_head": 5}, "5 heads do not divide the model width 64"),
        ("llama2", {"num_key_value_heads": 3}, "3 key heads do not divide 4"),
        ("llama2", {"head_dim": 15}, "head_dim 15 is odd"),
        ("llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'.*llama3"),
        ("llama3", {"rope_parameters": ..., "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ("llama3", {"rope_parameters": {"rope_type": ["llama3"]}}, "rope type"),
        ("llama3", {"rope_parameters": 3}, "rope_parameters is 3"),
        ("llama3", {"rope_parameters": LLAMA3 | {"factor": 0}}, "rope_parameters: factor is 0"),
        ("llama3", {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor 4.0 must be below"),
        ("llama3", {"rope_parameters": LLAMA3 | {"rope_theta": "big"}}, "rope_theta is 'big'"),
        ("llama3", {"rope_parameters": without(LLAMA3, "factor")}, "factor is missing"),
        ("llama3", {"rope_parameters": LLAMA3 | {"attention_factor": 2.0}}, "attention_factor is not supported"),
        ("llama3", {"rope_parameters": LLAMA3 | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("llama3", {"rope_parameters": {"full_attention": LLAMA3}}, "full_attention"),
        ("llama3", {"rope_theta": 10000.0}, r"rope_theta, rope_parameters\.rope_theta contradict"),
        ("llama3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "contradict"),
        ("llama2", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor is 0\.5"),
        ("llama2", {"original_max_position_embeddings": 64}, "original_max_position_embeddings is 64"),
        ("llama2", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config.*gptq"),
        ("llama2", {"sliding_window": 4096}, "sliding_window is 4096"),
        ("llama2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types.*sliding_attention"),
        ("llama2", {"layer_types": [["full_attention"]]}, "layer_types"),
        ("llama2", {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}, "auto_map.*modeling_x"),
        ("llama2", {"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ("llama2", {"embedding_multiplier": 12.0}, "embedding_multiplier is 12.0"),
        ("llama2", {"per_layer_config": {"0": {"head_dim": 8}}}, "per_layer_config"),
        ("qwen2", {"use_sliding_window": 1}, "use_sliding_window is 1; it must be true or false"),
        ("qwen2", {"use_mrope": True}, "use_mrope is true"),
        ("qwen2", {"attention_bias": False}, "attention_bias is false.*qwen2"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is true"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn is true"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights is false"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention is true"),
        ("llama2", {"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ("llama2", {"pad_token_id": 1.5}, r"pad_token_id is 1\.5"),
        ("llama_reward", {"num_labels": 2}, "num_labels is 2, but id2label names 3"),
        ("llama_reward", {"id2label": ["a", "b", "c"]}, "id2label"),
        ("llama_reward", {"rlhf_jax": {"reward_mean": [1.0, 2.0]}}, "reward_mean has 2 numbers for 3"),
        ("llama_reward", {"rlhf_jax": {"reward_std": [1.0, 0.0, 2.0]}}, r"reward_std is \[1\.0, 0\.0, 2\.0\]"),
        ("llama_reward", {"rlhf_jax": {"reward_mean": ["a", 1, 1]}}, "reward_mean"),
        ("llama_reward", {"rlhf_jax": {"reward_mean": [float("inf"), 1, 1]}}, "reward_mean"),
        ("llama_reward", {"rlhf_jax": [1]}, "rlhf_jax is"),
        # The config is well-formed, and the tensors are not those that it asks for.
        ("llama2", {"num_hidden_layers": 3}, r"missing tensors.*model\.layers\.2\.input_layernorm\.weight.* 5 more"),
        ("llama2", {"num_hidden_layers": 1}, r"no place for: model\.layers\.1"),
        ("llama2", {"num_hidden_layers": 2**40}, "asks for 1099511627776 layers"),
        ("llama2", {"vocab_size": 2**40}, r"model\.embed_tokens\.weight has shape \(256, 64\).*\(1099511627776, 64\)"),
        ("llama2", {"intermediate_size": 97}, r"mlp\.down_proj\.weight has shape \(64, 96\).*\(64, 97\)"),
        ("llama2", {"attention_bias": True}, r"missing tensors.*self_attn\.\w_proj\.bias"),
        ("llama2", {"tie_word_embeddings": True}, r"lm_head\.weight differs from model\.embed_tokens\.weight"),
        ("gpt2", {"n_inner": 128}, r"h\.0\.mlp\.c_fc\.weight has shape \(64, 256\).*\(64, 128\)"),
        ("qwen2", {"tie_word_embeddings": False}, r"missing tensors.*lm_head\.weight"),
        ("qwen2", {"architectures": ["Qwen2ForSequenceClassification"]}, r"missing tensors.*score\.weight"),
        ("qwen2_reward", {"id2label": {"0": "A"}}, r"score\.weight has shape \(2, 64\).*\(1, 64\)"),
    ],
)
def test_a_config_that_cannot_be_followed(tmp_path, case, changes, pattern):
    edit(checkpoints.write(tmp_path, case), **changes)
    refused(pattern, hf.load, tmp_path)


def set_number(value):
    def change(tensors):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 7] = value

    return change


@pytest.mark.parametrize(
    ("change", "pattern"),
    [
        (set_number(np.nan), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity$"),
        (set_number(-np.inf), r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN or infinity$"),
        (lambda tensors: tensors.pop("model.norm.weight"), r"missing tensors.*model\.norm\.weight"),
        (lambda tensors: tensors.update(surprise=np.ones(3)), "no place for: surprise"),
        (lambda tensors: tensors.update({"score.weight": np.ones((1, 64))}), r"no place for: score\.weight"),
        (
            lambda tensors: tensors.update({"model.norm.weight": np.ones((64, 1), np.float32)}),
            r"model\.norm\.weight has shape \(64, 1\).*\(64,\)",
        ),
        (
            lambda tensors: tensors.update({"model.norm.weight": np.ones(64, np.int8)}),
            r"model\.norm\.weight has type I8; supported: F32",
        ),
    ],
)
def test_tensors_that_cannot_be_used(tmp_path, change, pattern):
    rewrite(checkpoints.write(tmp_path, "llama2"), change)
    refused(pattern, hf.load, tmp_path)


def test_numbers_too_large_for_the_asked_type(tmp_path):
    rewrite(checkpoints.write(tmp_path, "llama2"), set_number(1e5))
    cfg, params = hf.load(tmp_path)
    refused(r"up_proj\.weight holds NaN or infinity once cast to float16", hf.load, tmp_path, dtype="float16")
    refused(r"up_proj\.weight .*as float16", hf.save, tmp_path / "b", cfg, params, dtype="float16")


def test_types_that_weights_do_not_have(tmp_path):
    checkpoints.write(tmp_path, "llama2")
    for dtype in ("float31", "int8", "int32", object(), "float8_e4m3fn"):
        refused("dtype .* is not supported; supported: float32, bfloat16", hf.load, tmp_path, dtype=dtype)
    refused("float64 needs jax_enable_x64", hf.load, tmp_path, dtype="float64")
    cfg, params = hf.load(tmp_path)
    refused("dtype 'bf17'", hf.save, tmp_path / "b", cfg, params, dtype="bf17")


def truncate(file, keep):
    file.write_bytes(file.read_bytes()[:keep])


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_truncated_file(tmp_path, keep):
    truncate(checkpoints.write(tmp_path, "llama2") / "model.safetensors", keep)
    refused(r"model\.safetensors: truncated, or not a safetensors file", hf.load, tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x95 a pickle, as it begins",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}',
    ],
)
def test_a_file_that_is_no_safetensors(tmp_path, data):
    (checkpoints.write(tmp_path, "llama2") / "model.safetensors").write_bytes(data)
    refused(r"model\.safetensors: truncated, or not a safetensors file", hf.load, tmp_path)


def test_folders_without_a_model(tmp_path):
    refused("no such folder", hf.load, tmp_path / "nowhere")
    refused("no such folder, and no hub name", hf.load, "../nowhere/at/all")
    refused("no such folder, and the hub did not deliver it", hf.load, "nobody/nothing")
    refused(r"no config\.json", hf.load, tmp_path)
    checkpoints.write(tmp_path, "llama2")
    refused("is a file; a folder", hf.load, tmp_path / "config.json")
    refused("revision 'main' goes with a hub name", hf.load, tmp_path, revision="main")


def test_pickled_weights_are_never_read(tmp_path):
    checkpoints.write(tmp_path, "llama2")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused(r"no model\.safetensors.*\.bin.*never read.*safetensors", hf.load, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("data", "pattern"),
    [
        (b"{", "not valid JSON"),
        (b"[1]", "holds list; a JSON object is needed"),
        (b"[" * 100_000, "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "cannot be read as text"),
    ],
)
def test_broken_json(tmp_path, name, data, pattern):
    (checkpoints.write(tmp_path, "llama2") / name).write_bytes(data)
    refused(rf"{name}: {pattern}", hf.load, tmp_path)


def test_eos_ids_of_the_generation_config_are_checked(tmp_path):
    (checkpoints.write(tmp_path, "llama2") / "generation_config.json").write_text('{"eos_token_id": [1, "x"]}')
    refused("eos_token_id of generation_config.json", hf.load, tmp_path)


INDEX = "model.safetensors.index.json"
ONE = "model-00001-of-00001.safetensors"


def index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def sharded(folder):
    checkpoints.write(folder, "llama2")
    (folder / "model.safetensors").rename(folder / ONE)
    placed = dict.fromkeys(checkpoints.shapes("llama2"), ONE)
    index(folder, placed)
    return placed


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b"])
def test_a_shard_outside_the_folder(tmp_path, name):
    placed = sharded(tmp_path / "a")
    checkpoints.write(tmp_path, "llama2")
    index(tmp_path / "a", placed | {"model.norm.weight": name})
    refused("is not a bare file name", hf.load, tmp_path / "a")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors", ONE, INDEX])
def test_a_link_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "a"
    sharded(folder)
    outside = tmp_path / "outside"
    outside.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(outside)
    refused(f"{name} is a link out of the folder", hf.load, folder)


def test_an_index_that_does_not_fit_the_shards(tmp_path):
    placed = sharded(tmp_path)
    hf.load(tmp_path)
    index(tmp_path, without(placed, "model.norm.weight"))
    refused(rf"{ONE}: holds model\.norm\.weight, which {INDEX} does not place there", hf.load, tmp_path)
    index(tmp_path, placed | {"model.more.weight": ONE})
    refused(r"has no tensor model\.more\.weight", hf.load, tmp_path)
    index(tmp_path, placed | {"model.norm.weight": "model-00002-of-00002.safetensors"})
    refused(r"model-00002-of-00002\.safetensors: missing", hf.load, tmp_path)
    for broken in ({}, [1], None, placed | {"model.norm.weight": 3}):
        index(tmp_path, broken)
        refused(f"{INDEX}: weight_map is missing or broken", hf.load, tmp_path)
    (tmp_path / ONE).unlink()
    index(tmp_path, placed)
    refused(f"{ONE}: missing, though {INDEX} names it", hf.load, tmp_path)


# What cannot be saved.


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return hf.load(checkpoints.write(tmp_path_factory.mktemp("llama"), "llama2"))


def test_parameters_that_do_not_fit(tmp_path, llama):
    cfg, params = llama
    refused("missing layers/q", hf.save, tmp_path, cfg, without(params, "layers/q"))
    refused("unknown value", hf.save, tmp_path, cfg, params | {"value": jnp.zeros(64)})
    refused("missing score.*unknown unembed", hf.save, tmp_path, hf.classifier(cfg, 1), params)
    wrong = params | {"final_norm": jnp.ones(65)}
    refused(r"final_norm has shape \(65,\).*\(64,\)", hf.save, tmp_path, cfg, wrong)
    for value in (jnp.nan, jnp.inf):
        broken = params | {"layers/up": params["layers/up"].at[1, 2, 3].set(value)}
        pattern = r"model\.layers\.1\.mlp\.up_proj\.weight \(layers/up\) holds NaN or infinity as float32"
        refused(pattern, hf.save, tmp_path, cfg, broken)
    refused("max_shard_bytes is 0", hf.save, tmp_path, cfg, params, max_shard_bytes=0)


def test_configs_that_a_family_cannot_say(tmp_path, llama):
    cfg, params = llama
    extra = params | {name: jnp.zeros((2, 4, 16)) for name in ("layers/q_bias", "layers/k_bias", "layers/v_bias")}
    lopsided = dataclasses.replace(cfg, qkv_bias=True)
    refused("llama config.json cannot say (qkv_bias=True|out_bias=False)", hf.save, tmp_path, lopsided, extra)
    refused("cannot say pad_id=256", hf.save, tmp_path, dataclasses.replace(cfg, pad_id=256), params)
    refused("activation 'relu'", hf.save, tmp_path, dataclasses.replace(cfg, activation="relu"), params)
    refused("norm_eps|rms_norm_eps", hf.save, tmp_path, dataclasses.replace(cfg, norm_eps=0.0), params)
    reward = {path: x for path, x in params.items() if path != "unembed"} | {"score": jnp.ones((64, 2))}
    wrong = dataclasses.replace(hf.classifier(cfg, 2), reward_std=(1.0,))
    refused("reward_std has 1 numbers for 2", hf.save, tmp_path, wrong, reward)
    refused("at least 1 axis, not 0", hf.classifier, cfg, 0)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, llama):
    (tmp_path / "file").write_text("in the way")
    refused("file/b: cannot be made", hf.save, tmp_path / "file" / "b", *llama)
    (tmp_path / "c" / "model.safetensors").mkdir(parents=True)
    refused(r"model\.safetensors: cannot be written", hf.save, tmp_path / "c", *llama)
    assert [file.name for file in (tmp_path / "c").iterdir()] == ["model.safetensors"]


def test_no_tokenizer(tmp_path):
    checkpoints.write(tmp_path, "llama2")
    refused(r"no tokenizer here; one of tokenizer\.json", hf.tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    refused("no tokenizer can be read", hf.tokenizer, tmp_path)
    refused("no tokenizer can be read", hf.tokenizer, "nobody/nothing")
