"""config.json of each family, as found on the hub and as versions of transformers spell it."""

import dataclasses
import json
import math
import re

import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf
from rlhf_jax.model.config import RopeScaling
from rlhf_jax.model.hf import config as hf_config
from tests.fixtures.hf import checkpoints
from tests.model import decoder_oracle as oracle


def document(case, **changes):
    """The fixture's config.json, changed; ... takes a key away."""
    found = json.loads((checkpoints.FOLDER / case / "config.5.json").read_text()) | changes
    return {key: value for key, value in found.items() if value is not ...}


def read(case, **changes):
    return hf_config.read(document(case, **changes))


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("case", "changes", "window", "layers"),
    [
        ("mistral", {"sliding_window": ...}, 4096, ()),
        ("mistral", {"sliding_window": None}, None, ()),
        ("mistral", {"layer_types": [SLIDING, SLIDING]}, 29, ()),
        ("phi3", {"sliding_window": ...}, None, ()),
        ("qwen2_window", {"layer_types": ...}, 29, (False, True, True)),
        ("qwen2_window", {"layer_types": ..., "max_window_layers": 0}, 29, ()),
        ("qwen2_window", {"layer_types": ..., "max_window_layers": 3}, None, ()),
        ("qwen2_window", {"layer_types": ..., "use_sliding_window": False}, None, ()),
        ("qwen2_window", {"layer_types": ..., "use_sliding_window": ...}, None, ()),
        ("qwen2_window", {"layer_types": [SLIDING, FULL, FULL]}, 29, (True, False, False)),
        ("gemma2", {"layer_types": ...}, 29, (True, False, True)),
        ("gemma2", {"layer_types": [FULL] * 3}, None, ()),
        ("gemma3", {"layer_types": ..., "sliding_window_pattern": 3}, 29, (True, True, False, True)),
        ("gemma3", {"layer_types": ..., "sliding_window": ..., "sliding_window_pattern": ...}, 4096, ()),
        (
            "gemma3",
            {"layer_types": ..., "sliding_window_pattern": ..., "num_hidden_layers": 7},
            29,
            (True,) * 5 + (False, True),
        ),
        (
            "smollm3",
            {"layer_types": ..., "use_sliding_window": True, "sliding_window": 9},
            9,
            (False, True, False, True),
        ),
    ],
)
def test_which_layers_have_the_window(case, changes, window, layers):
    cfg = read(case, **changes)
    assert (cfg.window, cfg.window_layers) == (window, layers)


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"no_rope_layers": ..., "no_rope_layer_interval": ...}, (True, True, True, False)),
        ({"no_rope_layers": None, "no_rope_layer_interval": 3}, (True, True, False, True)),
        ({"no_rope_layers": [0, 1, 1, 1, 0, 0]}, (False, True, True, True)),
        ({"no_rope_layers": [1, 1, 1, 1]}, ()),
    ],
)
def test_which_layers_rotate(changes, layers):
    assert read("smollm3", **changes).rope_layers == layers


def test_keys_of_the_hub_say_what_they_say():
    pythia = document("gpt_neox", rope_parameters=...)
    assert hf_config.read(pythia).rotary_fraction == 0.25
    cfg = hf_config.read(pythia | {"rotary_pct": 0.5, "rotary_emb_base": 25000})
    assert (cfg.rotary_fraction, cfg.rope_theta, cfg.parallel, cfg.activation) == (0.5, 25000.0, True, "gelu")
    assert read("gpt_neox", hidden_act="gelu_fast").activation == "gelu_tanh"

    legacy = {"rope_parameters": ..., "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    cfg = read("gemma3", **legacy, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert (cfg.rope_theta, cfg.rope_local_theta, cfg.rope_scaling) == (1e6, 1e4, RopeScaling("linear", 8.0))
    cfg = read("gemma3", rope_parameters=...)
    assert (cfg.rope_theta, cfg.rope_local_theta, cfg.rope_scaling) == (1e6, 1e4, None)
    assert read("gemma2", hidden_act="gelu", cache_implementation="hybrid").activation == "gelu_tanh"
    assert (read("gemma2").attention_softcap, read("gemma2").logit_softcap) == (6.0, 30.0)
    cfg = read("gemma2", attn_logit_softcapping=None, final_logit_softcapping=...)
    assert (cfg.attention_softcap, cfg.logit_softcap) == (None, 30.0)

    code = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    assert read("phi3", auto_map=code) == read("phi3")
    elsewhere = {"AutoModelForCausalLM": "microsoft/Phi-4-mini-instruct--modeling_phi3.Phi3ForCausalLM"}
    assert read("phi3", auto_map=elsewhere) == read("phi3")
    assert read("smollm3", rope_parameters=...).rope_theta == 2e6


def test_longrope_says_its_factor():
    scaling = read("phi4_mini").rope_scaling
    assert (scaling.kind, scaling.original_max_positions) == ("longrope", 128)
    assert scaling.attention_factor == pytest.approx(math.sqrt(1 + math.log(8) / math.log(128)))
    assert (len(scaling.short_factors), scaling.long_factors[-1]) == (6, 20.0)
    entry = document("phi4_mini")["rope_parameters"]
    su = {key: value for key, value in entry.items() if key not in ("rope_type", "rope_theta")} | {"type": "su"}
    assert read("phi4_mini", rope_parameters=..., rope_scaling=su).rope_scaling == scaling
    assert read("phi4_mini", rope_parameters=entry | {"attention_factor": 1.5}).rope_scaling.attention_factor == 1.5
    assert read("phi4_mini", max_position_embeddings=128).rope_scaling.attention_factor == 1.0


@pytest.mark.parametrize(
    ("case", "changes", "pattern"),
    [
        ("gemma3", {"architectures": ["Gemma3ForConditionalGeneration"]}, "text model in it as Gemma3ForCausalLM"),
        ("gemma3", {"model_type": "gemma3"}, "model_type 'gemma3' does not go with"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention is true"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping is 50\.0"),
        ("gemma3", {"rope_theta": 5.0}, "rope_theta, rope_parameters.full_attention.rope_theta contradict"),
        ("gemma3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "is not a kind of layer"),
        ("gemma3", {"rope_parameters": {SLIDING: {"rope_type": "linear", "factor": 2.0}}}, "only its rope_theta"),
        ("gemma3", {"rope_parameters": {FULL: {"rope_type": "yarn", "factor": 2.0}}}, "rope type 'yarn'"),
        ("gemma3", {"layer_types": [SLIDING] * 3}, "layer_types.*list of 4"),
        ("gemma3", {"layer_types": [SLIDING] * 3 + ["chunked_attention"]}, "layer_types.*list of 4, of full_attention"),
        ("gemma3", {"sliding_window": None}, "layer_types has sliding_attention, but no sliding_window"),
        ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ("gemma2", {"final_logit_softcapping": "30"}, "final_logit_softcapping is '30'"),
        ("gemma2", {"hidden_activation": "relu"}, "activation 'relu'"),
        ("gemma2", {"head_dim": ...}, "head_dim is missing"),
        ("mistral", {"layer_types": [SLIDING, FULL]}, "only sliding_attention is supported"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1"),
        ("mistral", {"attention_bias": True}, "attention_bias is true"),
        ("qwen2_window", {"use_sliding_window": False}, r"no sliding_window is set \(or it is not in use\)"),
        ("qwen2_window", {"layer_types": ..., "max_window_layers": "28"}, "max_window_layers is '28'"),
        ("smollm3", {"no_rope_layers": [1, 1]}, "no_rope_layers.*list of 4"),
        ("smollm3", {"no_rope_layers": [1, 1, 2, 1]}, "no_rope_layers.*of 0 and 1"),
        ("olmo2", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
        ("phi3", {"auto_map": {"AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM"}}, "auto_map asks for code"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "'linear' is not supported.*longrope"),
        ("phi3", {"lm_head_bias": True}, "lm_head_bias is true"),
        ("phi4_mini", {"original_max_position_embeddings": 256}, "is 128 here and 256 beside it"),
        ("phi4_mini", {"partial_rotary_factor": 0.5}, "partial_rotary_factor.*contradict"),
        ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.2}}, "0.2 of head_dim 16 is 3"),
        ("gpt_neox", {"use_parallel_residual": None}, "use_parallel_residual is None"),
        ("llama2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ("llama2", {"num_hidden_layers": 10**9}, "asks for 1000000000 layers; at most"),
    ],
)  # fmt: skip
def test_what_is_refused(case, changes, pattern):
    with pytest.raises(UserError) as told:
        read(case, **changes)
    assert "\n" not in str(told.value)
    assert re.search(pattern, str(told.value)), str(told.value)


@pytest.mark.parametrize("axes", [0, 2])
@pytest.mark.parametrize("case", checkpoints.FAMILIES)
def test_a_model_made_here_is_read_back_and_by_transformers(tmp_path, case, axes):
    from transformers import AutoConfig

    cfg = read(case)
    cfg = hf.classifier(cfg, axes) if axes else cfg
    params = oracle.parameters(cfg)
    hf.save(tmp_path, cfg, params)
    again, others = hf.load(tmp_path)
    assert again == cfg
    assert all((others[path] == params[path]).all() for path in params)
    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.model_type == cfg.family
    assert (theirs.num_hidden_layers, theirs.vocab_size, theirs.pad_token_id) == (cfg.layers, 256, cfg.pad_id)


def test_changed_windows_and_angles_are_written(tmp_path):
    for case, changes in (
        ("gemma3", {"window_layers": (False, True, True, False), "rope_local_theta": 3.0, "rope_scaling": None}),
        ("smollm3", {"rope_layers": (False, True, True, True), "rope_theta": 7.0}),
        ("qwen2_window", {"window": None, "window_layers": ()}),
        ("phi4_mini", {"max_positions": 4096}),
        ("gpt_neox", {"rotary_fraction": 0.5, "rope_theta": 99.0}),
    ):
        cfg, params = hf.load(checkpoints.write(tmp_path / case, case))
        changed = dataclasses.replace(cfg, **changes)
        hf.save(tmp_path / f"{case}_changed", changed, params)
        assert hf.load(tmp_path / f"{case}_changed")[0] == changed
    cfg, params = hf.load(checkpoints.write(tmp_path / "mistral", "mistral"))
    with pytest.raises(UserError, match="mistral config.json cannot say window_layers"):
        hf.save(tmp_path / "no", dataclasses.replace(cfg, window_layers=(True, False)), params)
