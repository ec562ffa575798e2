"""The Hugging Face bridge against live transformers and torch: `make parity`.

What transformers saves is read, computed alike, and written back byte for byte; what is saved here, transformers loads.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers.models.mixtral import modeling_mixtral as mixtral  # noqa: E402

from rlhf_jax.model import heads, hf, transformer  # noqa: E402
from rlhf_jax.model.config import ModelConfig, RopeScaling  # noqa: E402
from rlhf_jax.model.hf import config as hf_config  # noqa: E402
from rlhf_jax.model.hf import tensors as hf_tensors  # noqa: E402
from rlhf_jax.objectives import routing  # noqa: E402
from tests.fixtures.hf import checkpoints  # noqa: E402

pytestmark = pytest.mark.parity
LENGTH = 600
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=500000.0,
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=100,
)
ROTARY = dict(
    vocab_size=200,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=2,
)
GPT2 = dict(vocab_size=200, n_embd=48, n_layer=3, n_head=6, n_positions=LENGTH, bos_token_id=1, eos_token_id=2)
CASES = {
    "gpt2": ("GPT2", GPT2),
    "gpt2_inner": ("GPT2", GPT2 | dict(n_inner=100, activation_function="gelu", tie_word_embeddings=False)),
    "llama": ("Llama", ROTARY | dict(num_key_value_heads=6)),
    "llama_one_key_head": ("Llama", ROTARY | dict(num_key_value_heads=1, head_dim=16)),
    "llama3": ("Llama", ROTARY | dict(rope_parameters=LLAMA3, tie_word_embeddings=True, eos_token_id=[2, 5])),
    "llama_linear": ("Llama", ROTARY | dict(rope_parameters=dict(rope_type="linear", rope_theta=1e4, factor=3.0))),
    "llama_biases": ("Llama", ROTARY | dict(attention_bias=True, mlp_bias=True, hidden_act="gelu_pytorch_tanh")),
    "qwen2": ("Qwen2", ROTARY | dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen2_tied": ("Qwen2", ROTARY | dict(tie_word_embeddings=True)),
}
NEOX = {key: value for key, value in ROTARY.items() if key != "num_key_value_heads"}
GEMMA = ROTARY | dict(hidden_size=60, head_dim=10, query_pre_attn_scalar=13, sliding_window=33, pad_token_id=0)
PHI3 = ROTARY | dict(hidden_size=96, pad_token_id=0)
LONGROPE = dict(
    rope_type="longrope",
    rope_theta=1e4,
    partial_rotary_factor=0.75,
    original_max_position_embeddings=128,
    short_factor=[1.0, 1.05, 1.1, 1.3, 1.5, 1.9],
    long_factor=[1.1, 1.5, 2.5, 4.0, 9.0, 20.0],
)
LOCAL = dict(
    full_attention=dict(rope_type="linear", rope_theta=1e6, factor=8.0),
    sliding_attention=dict(rope_type="default", rope_theta=7e3),
)
LLAMA3_SMOL = dict(LLAMA3, factor=8.0)
CASES |= {
    "gpt_neox": ("GPTNeoX", NEOX),
    "gpt_neox_sequential": (
        "GPTNeoX",
        NEOX
        | dict(use_parallel_residual=False, attention_bias=False, hidden_act="gelu_new", tie_word_embeddings=True)
        | dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=3e4, partial_rotary_factor=0.5)),
    ),
    "mistral": ("Mistral", ROTARY | dict(sliding_window=33)),
    "mistral_global": ("Mistral", ROTARY | dict(sliding_window=None, head_dim=12)),
    "qwen2_window": ("Qwen2", ROTARY | dict(use_sliding_window=True, sliding_window=33, max_window_layers=1)),
    "qwen3": ("Qwen3", ROTARY | dict(head_dim=14, tie_word_embeddings=True)),
    "qwen3_window": (
        "Qwen3",
        ROTARY
        | dict(head_dim=14, attention_bias=True, use_sliding_window=True, sliding_window=33)
        | dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    ),
    "gemma2": ("Gemma2", GEMMA | dict(attn_logit_softcapping=5.0)),
    "gemma2_uncapped": (
        "Gemma2",
        GEMMA | dict(attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True),
    ),
    "gemma3": ("Gemma3Text", GEMMA | dict(rope_parameters=LOCAL, sliding_window_pattern=3)),
    "gemma3_capped": ("Gemma3Text", GEMMA | dict(final_logit_softcapping=25.0, sliding_window_pattern=2)),
    "olmo2": ("Olmo2", ROTARY | dict(pad_token_id=0)),
    "smollm3": ("SmolLM3", ROTARY | dict(no_rope_layer_interval=2, pad_token_id=0)),
    "smollm3_window": (
        "SmolLM3",
        ROTARY
        | dict(no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=33, pad_token_id=0)
        | dict(rope_parameters=LLAMA3_SMOL, attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    ),
    "phi3": ("Phi3", PHI3 | dict(sliding_window=33)),
    "phi4_mini": ("Phi3", PHI3 | dict(rope_parameters=LONGROPE, original_max_position_embeddings=128)),
}
CASES |= {
    "mixtral": ("Mixtral", ROTARY | dict(num_local_experts=5, intermediate_size=32)),
    "mixtral_window": ("Mixtral", ROTARY | dict(num_local_experts=3, head_dim=12, sliding_window=33)),
    "qwen3_moe": (
        "Qwen3Moe",
        ROTARY | dict(num_experts=9, num_experts_per_tok=4, moe_intermediate_size=20, head_dim=14, norm_topk_prob=True),
    ),
    "qwen3_moe_window": (
        "Qwen3Moe",
        ROTARY
        | dict(num_experts=4, num_experts_per_tok=1, moe_intermediate_size=24, attention_bias=True)
        | dict(use_sliding_window=True, sliding_window=33, tie_word_embeddings=True),
    ),
}
CAUSAL = {"GPT2": "LMHeadModel"}


def model_of(case, labels=None):
    """A model of transformers with the drawn weights of the fixtures, in f32."""
    family, fields = CASES[case]
    extra = {"num_labels": labels, "pad_token_id": 0} if labels else {}
    cfg = getattr(transformers, f"{family}Config")(**(fields | extra))
    cfg._attn_implementation = cfg._experts_implementation = "eager"
    name = family if labels else family.removesuffix("Text")
    head = "ForSequenceClassification" if labels else CAUSAL.get(family, "ForCausalLM")
    model = getattr(transformers, name + head)(cfg).eval()
    state = model.state_dict()
    if cfg.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    drawn = checkpoints.weights({name: x.shape for name, x in state.items()})
    model.load_state_dict({name: torch.from_numpy(x) for name, x in drawn.items()}, strict=False)
    return model


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def tokens_of(seed, length=LENGTH):
    return np.random.RandomState(seed).randint(3, 190, length)


def reload(folder, head, **how):
    """The folder through transformers' own loader, which must find everything it wants and nothing else."""
    model, told = head.from_pretrained(folder, output_loading_info=True, attn_implementation="eager", **how)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    return model.eval()


def logits_of(cfg, params, tokens):
    rows, lengths = jnp.asarray(tokens)[None], jnp.array([len(tokens)])
    return transformer.logits(params, transformer.hidden(params, rows, lengths, cfg=cfg)[0], cfg=cfg)


def same_state(model, other):
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]), name


@pytest.mark.parametrize("case", CASES)
def test_logits_and_every_gradient(tmp_path, case):
    model, tokens = model_of(case), tokens_of(1)
    model.save_pretrained(tmp_path)
    cfg, params = hf.load(tmp_path)
    cfg = checkpoints.fitted(cfg, LENGTH)

    theirs = model(torch.tensor(tokens)[None]).logits[0]
    chosen = torch.log_softmax(theirs[:-1], -1).gather(-1, torch.tensor(tokens[1:])[:, None])
    chosen.sum().backward()
    theirs = theirs.detach().numpy()

    @jax.jit
    def logprob(params):
        logits = logits_of(cfg, params, tokens)
        logprobs = jax.nn.log_softmax(logits[:-1])
        return jnp.sum(jnp.take_along_axis(logprobs, jnp.asarray(tokens)[1:, None], axis=-1)), logits

    (_, ours), grads = jax.value_and_grad(logprob, has_aux=True)(params)
    error = np.abs(np.asarray(ours) - theirs).max()
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (theirs.astype(np.float64), np.float64(ours)))
    divergence = np.sum(np.exp(p) * (p - q), axis=-1).max()
    print(f"{case}: max|logit difference| {error:.2e} of {np.abs(theirs).max():.1f}; max KL {divergence:.2e} nats")
    assert error <= 1e-4
    assert divergence <= 1e-7

    renamed = {"lm_head.weight": "embed_out.weight"} if cfg.family == "gpt_neox" else {}
    expected = {renamed.get(name, name): x.grad.numpy() for name, x in model.named_parameters()}
    expected = checkpoints.split_experts(CASES[case][0], expected)
    largest = max(np.linalg.norm(x) for x in expected.values())
    table = hf_tensors.tensors(cfg, params)
    assert table.keys() == expected.keys()
    for name, tensor in table.items():
        pieces = [grads[path][tensor.at] for path in tensor.row.paths]
        mine = hf_tensors.to_theirs([np.asarray(x) for x in pieces], tensor.row, tensor.shape)
        wrong = np.linalg.norm(mine - expected[name])
        assert wrong <= 1e-3 * np.linalg.norm(expected[name]) + 1e-6 * largest, name


@pytest.mark.parametrize(
    "case",
    [
        "gpt2",
        "llama3",
        "qwen2",
        "gpt_neox",
        "mistral",
        "qwen3",
        "gemma2",
        "gemma3",
        "olmo2",
        "smollm3",
        "phi3",
        "phi4_mini",
        "mixtral",
        "qwen3_moe",
    ],
)
def test_greedy_tokens(tmp_path, case):
    model = model_of(case)
    model.save_pretrained(tmp_path)
    cfg, params = hf.load(tmp_path)
    prompt = tokens_of(2, 40)
    theirs = model.generate(
        torch.tensor(prompt)[None], do_sample=False, max_new_tokens=64, eos_token_id=None, pad_token_id=0
    )
    row = np.zeros(104, np.int64)
    row[:40] = prompt
    step = jax.jit(lambda row: logits_of(cfg, params, row))
    for length in range(40, 104):
        row[length] = int(jnp.argmax(step(row)[length - 1]))
    assert row.tolist() == theirs[0].tolist()


@pytest.mark.parametrize("labels", [1, 2, 4])
@pytest.mark.parametrize(
    "case",
    ["gpt2", "llama3", "llama_biases", "qwen2_tied", "gpt_neox", "mistral", "qwen3", "gemma2", "gemma3", "olmo2", "smollm3",
        "phi3", "mixtral", "qwen3_moe"],
)  # fmt: skip
def test_rewards(tmp_path, case, labels):
    model = model_of(case, labels)
    model.save_pretrained(tmp_path / "a")
    cfg, params = hf.load(tmp_path / "a")
    assert cfg.axes == labels
    tokens, lengths = tokens_of(3, (3, LENGTH)), np.array([LENGTH, 77, 9])
    with torch.no_grad():
        theirs = np.stack([model(torch.tensor(row[:n])[None]).logits[0] for row, n in zip(tokens, lengths)])
    ours = heads.reward(params, jnp.asarray(tokens), jnp.asarray(lengths), cfg=cfg)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)
    hf.save(tmp_path / "b", cfg, params)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    same_state(reload(tmp_path / "b", transformers.AutoModelForSequenceClassification), model)


@pytest.mark.parametrize("size", ["1GB", "50KB"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves_comes_back_byte_for_byte(tmp_path, case, dtype, size):
    model = model_of(case).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "a", max_shard_size=size)
    cfg, params = hf.load(tmp_path / "a")
    assert {x.dtype for x in params.values()} == {jnp.dtype("float32")}
    hf.save(tmp_path / "b", cfg, params)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    assert (len(contents(tmp_path / "b")) > 5) == (size == "50KB")
    same_state(reload(tmp_path / "b", transformers.AutoModelForCausalLM), model)


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe_window"])
def test_fused_experts_come_back_fused(tmp_path, case):
    model = model_of(case)
    model.save_pretrained(tmp_path / "a", save_original_format=False)
    model.save_pretrained(tmp_path / "b")
    (cfg, params), (_, others) = hf.load(tmp_path / "a"), hf.load(tmp_path / "b")
    assert all((params[path] == others[path]).all() for path in params)
    hf.save(tmp_path / "c", cfg, params)
    assert contents(tmp_path / "c") == contents(tmp_path / "a") != contents(tmp_path / "b")
    same_state(reload(tmp_path / "c", transformers.AutoModelForCausalLM), model)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("used", [1, 2, 5])
def test_load_balancing(used, masked):
    random = np.random.RandomState(used)
    logits, mask = random.normal(size=(3, 4, 50, 7)).astype(np.float32) * 2, random.rand(4, 50) < 0.7
    expected = mixtral.load_balancing_loss_func(
        tuple(torch.tensor(x.reshape(-1, 7)) for x in logits), 7, used, torch.tensor(mask) if masked else None
    )
    found = routing.load_balancing(jnp.asarray(logits), jnp.asarray(mask | (not masked)), used=used)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_shards_cut_here_are_read_there(tmp_path):
    model = model_of("llama")
    model.save_pretrained(tmp_path / "a")
    hf.save(tmp_path / "b", *hf.load(tmp_path / "a"), max_shard_bytes=60_000)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 3
    same_state(reload(tmp_path / "b", transformers.AutoModelForCausalLM), model)


def test_gpt2_without_a_prefix(tmp_path):
    model = model_of("gpt2")
    model.transformer.save_pretrained(tmp_path / "a")  # a bare trunk, as GPT-2's own files on the hub
    document = json.loads((tmp_path / "a" / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(document))
    cfg, params = hf.load(tmp_path / "a")
    hf.save(tmp_path / "b", cfg, params)
    assert contents(tmp_path / "b") == contents(tmp_path / "a")
    same_state(reload(tmp_path / "b", transformers.AutoModelForCausalLM), model)


@pytest.mark.parametrize("case", ["gpt2", "llama", "llama3", "qwen2_tied"])
def test_a_reward_model_made_of_a_language_model(tmp_path, case):
    model = model_of(case)
    model.save_pretrained(tmp_path / "a")
    cfg, params = hf.load(tmp_path / "a")
    reward = dataclasses.replace(hf.classifier(cfg, 3), pad_id=0)
    trunk = {path: x for path, x in params.items() if path != "unembed"}
    params = trunk | {"score": jax.random.normal(jax.random.key(0), (cfg.d_model, 3))}
    hf.save(tmp_path / "b", reward, params)
    theirs = reload(tmp_path / "b", transformers.AutoModelForSequenceClassification)
    assert theirs.config.num_labels == 3
    tokens, lengths = tokens_of(4, (2, 64)), np.array([64, 30])
    tokens[1, 30:] = 0
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    ours = heads.reward(params, jnp.asarray(tokens), jnp.asarray(lengths), cfg=reward)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


MADE = dict(vocab_size=60, d_model=32, layers=2, heads=4, kv_heads=2, head_dim=8, d_ff=40, max_positions=700)
BY_HAND = {
    "gpt2": ModelConfig(
        "gpt2",
        **MADE | dict(kv_heads=4),
        norm="layer",
        norm_eps=1e-5,
        positions="learned",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied=True,
    ),  # fmt: skip
    "llama": ModelConfig(
        "llama",
        **MADE,
        norm="rms",
        norm_eps=1e-5,
        positions="rope",
        rope_theta=5e5,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 64),
        mlp_bias=True,
    ),  # fmt: skip
    "linear": ModelConfig(
        "llama",
        **MADE,
        norm="rms",
        norm_eps=1e-5,
        positions="rope",
        rope_scaling=RopeScaling("linear", 2.0),
    ),  # fmt: skip
    "qwen2": ModelConfig("qwen2", **MADE, norm="rms", norm_eps=1e-6, positions="rope", rope_theta=1e6, qkv_bias=True),
}


BY_HAND |= {
    case: hf_config.read(json.loads((checkpoints.FOLDER / case / "config.5.json").read_text()))
    for case in checkpoints.FAMILIES
}


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("case", BY_HAND)
def test_a_model_made_here_is_computed_alike_there(tmp_path, case, dtype):
    cfg = BY_HAND[case]
    random = np.random.RandomState(5)
    specs = transformer.param_specs(cfg)
    params = {path: jnp.asarray(random.normal(size=spec.shape) * 0.3, jnp.float32) for path, spec in specs.items()}
    hf.save(tmp_path, cfg, params, dtype=dtype)
    if dtype is not None:
        assert reload(tmp_path, transformers.AutoModelForCausalLM).dtype == torch.bfloat16
        params = hf.load(tmp_path)[1]
    theirs = reload(tmp_path, transformers.AutoModelForCausalLM, dtype=torch.float32)  # Gemma's scale too
    tokens = random.randint(0, 60, LENGTH)
    cfg = checkpoints.fitted(cfg, LENGTH)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits_of(cfg, params, tokens), expected, rtol=0, atol=1e-4)
