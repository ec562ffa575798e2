"""What each family's config.json says: one table a family, read in both directions by `hf.config` and its helpers.

Keys and defaults are those of transformers' config classes, as version 4 wrote them and as version 5 does. A family is
named by its `model_type`.
"""

from typing import Any, NamedTuple

REQUIRED = "required"


class Key(NamedTuple):
    """One field of ModelConfig and its key. `default` is what an absent key means (None: it follows from other sizes,
    or there is none); with `null` the key may also be there and say nothing."""

    field: str
    key: str
    kind: type
    default: Any = REQUIRED
    null: bool = False
    alias: str = ""
    """Another key for the same, which some version of transformers writes; in `Family.reads` too."""


class Family(NamedTuple):
    """What transformers knows about a family."""

    causal: str
    """Class of its language model."""
    reward: str
    """Class of its reward model."""
    fixed: dict[str, Any]
    """Fields that its config.json does not say, because they are always so."""
    keys: tuple[Key, ...]
    tokens: tuple[int | None, int | None, int | None]
    """bos_token_id, eos_token_id and pad_token_id where config.json is silent."""
    reads: tuple[str, ...] = ()
    """Keys that `hf.layers` and `hf.rope` read for it, besides those that all families may have."""
    neutral: dict[str, tuple[Any, ...]] = {}
    """Keys that would change the mathematics, with the values at which they do not; beside `hf.refuse.NEUTRAL`."""
    own_code: tuple[str, ...] = ()
    """Code that its checkpoints may name because it became transformers' own. It is never run."""
    theta: float = 10_000.0
    """Rotary base where config.json is silent."""
    ropes: tuple[str, ...] = ("default", "linear", "llama3")
    """Rope types: rows of `hf.rope.KEYS`."""
    window: int | None = None
    """sliding_window where config.json is silent."""
    windows: str = ""
    """Which layers have the window if layer_types does not say: "all", "late" (from max_window_layers on), "nope"
    (those without positions), "alternate" (the first, the third …), "pattern" (all but every sliding_window_pattern-th);
    "" for a family without windows."""


SIZES = (
    Key("vocab_size", "vocab_size", int),
    Key("d_model", "hidden_size", int),
    Key("layers", "num_hidden_layers", int),
    Key("heads", "num_attention_heads", int),
    Key("d_ff", "intermediate_size", int),
)
BIASES = (Key("qkv_bias", "attention_bias", bool, False), Key("out_bias", "attention_bias", bool, False))


def _rotary(positions: int, *, eps: float = 1e-6, act: str = "hidden_act", tied: bool = False) -> tuple[Key, ...]:
    return (
        *SIZES,
        Key("norm_eps", "rms_norm_eps", float, eps),
        Key("activation", act, str, "silu" if act == "hidden_act" else "gelu_pytorch_tanh"),
        Key("tied", "tie_word_embeddings", bool, tied),
        Key("max_positions", "max_position_embeddings", int, positions),
    )


HEAD_DIM = Key("head_dim", "head_dim", int, None)
OWN_HEAD_DIM = HEAD_DIM._replace(default=REQUIRED)
KV_HEADS = Key("kv_heads", "num_key_value_heads", int)
ANY_KV_HEADS = KV_HEADS._replace(default=None)
MLP_BIAS = Key("mlp_bias", "mlp_bias", bool, False)
RMS = dict(norm="rms", positions="rope", gated_mlp=True)
GEMMA = RMS | dict(norms="both", norm_offset=True, embed_scale=True)
GEMMA_KEYS = (OWN_HEAD_DIM, KV_HEADS, *BIASES, Key("query_scale", "query_pre_attn_scalar", int, 256))
ROUTING = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")
"""Keys of mixtures of experts that are about training: a run says these things itself."""
LATE = ("use_sliding_window", "sliding_window", "max_window_layers", "layer_types")

FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        "GPT2ForSequenceClassification",
        dict(norm="layer", positions="learned", gated_mlp=False, qkv_bias=True, out_bias=True, mlp_bias=True),
        (
            Key("vocab_size", "vocab_size", int),
            Key("d_model", "n_embd", int),
            Key("layers", "n_layer", int),
            Key("heads", "n_head", int),
            Key("d_ff", "n_inner", int, None),
            Key("max_positions", "n_positions", int, 1024),
            Key("norm_eps", "layer_norm_epsilon", float, 1e-5),
            Key("activation", "activation_function", str, "gelu_new"),
            Key("tied", "tie_word_embeddings", bool, True),
        ),
        (50256, 50256, None),
        neutral={
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
        },
    ),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        "GPTNeoXForSequenceClassification",
        dict(norm="layer", positions="rope", gated_mlp=False, mlp_bias=True),
        (
            *SIZES,
            Key("norm_eps", "layer_norm_eps", float, 1e-5),
            Key("activation", "hidden_act", str, "gelu"),
            Key("tied", "tie_word_embeddings", bool, False),
            Key("max_positions", "max_position_embeddings", int, 2048),
            Key("parallel", "use_parallel_residual", bool, True),
            Key("qkv_bias", "attention_bias", bool, True),
            Key("out_bias", "attention_bias", bool, True),
        ),
        (0, 2, None),
        reads=("rotary_pct", "rotary_emb_base", "partial_rotary_factor"),
        neutral={"mlp_bias": (True, None), "head_dim": (None,)},
    ),
    "llama": Family(
        "LlamaForCausalLM",
        "LlamaForSequenceClassification",
        RMS,
        (*_rotary(2048), HEAD_DIM, ANY_KV_HEADS, *BIASES, MLP_BIAS),
        (1, 2, None),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        "MistralForSequenceClassification",
        RMS,
        (*_rotary(131_072), HEAD_DIM, KV_HEADS),
        (1, 2, None),
        reads=("sliding_window", "layer_types"),
        window=4096,
        windows="all",
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        "Qwen2ForSequenceClassification",
        RMS | dict(qkv_bias=True),
        (*_rotary(32_768), HEAD_DIM, KV_HEADS),
        (None, None, None),
        reads=LATE,
        neutral={"attention_bias": (True, None)},
        window=4096,
        windows="late",
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        "Qwen3ForSequenceClassification",
        RMS | dict(qk_norm="head"),
        (*_rotary(32_768), OWN_HEAD_DIM, KV_HEADS, *BIASES),
        (None, None, None),
        reads=LATE,
        window=4096,
        windows="late",
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        "MixtralForSequenceClassification",
        RMS,
        (
            *_rotary(131_072, eps=1e-5),
            HEAD_DIM,
            KV_HEADS,
            Key("experts", "num_local_experts", int, 8, alias="num_experts"),
            Key("experts_used", "num_experts_per_tok", int, 2),
        ),
        (1, 2, None),
        reads=("sliding_window", "layer_types", "num_experts", *ROUTING),
        theta=1_000_000.0,
        windows="all",
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeForSequenceClassification",
        RMS | dict(qk_norm="head"),
        (
            *(key for key in _rotary(32_768) if key.field != "d_ff"),
            HEAD_DIM,
            KV_HEADS,
            *BIASES,
            Key("d_ff", "moe_intermediate_size", int, 768),
            Key("experts", "num_experts", int, 128, alias="num_local_experts"),
            Key("experts_used", "num_experts_per_tok", int, 8),
            Key("renormalise", "norm_topk_prob", bool, False),
        ),
        (None, None, None),
        reads=("use_sliding_window", "sliding_window", "intermediate_size", "num_local_experts", *ROUTING),
        neutral={"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)},
        window=4096,
        windows="all",
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        "Gemma2ForSequenceClassification",
        GEMMA,
        (
            *_rotary(8192, act="hidden_activation", tied=True),
            *GEMMA_KEYS,
            Key("attention_softcap", "attn_logit_softcapping", float, 50.0, null=True),
            Key("logit_softcap", "final_logit_softcapping", float, 30.0, null=True),
        ),
        (2, 1, 0),
        reads=("sliding_window", "layer_types", "hidden_act"),
        window=4096,
        windows="alternate",
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        "Gemma3TextForSequenceClassification",
        GEMMA | dict(qk_norm="head"),
        (
            *_rotary(131_072, act="hidden_activation", tied=True),
            *GEMMA_KEYS,
            Key("logit_softcap", "final_logit_softcapping", float, None),
        ),
        (2, 1, 0),
        reads=("sliding_window", "layer_types", "hidden_act", "sliding_window_pattern", "_sliding_window_pattern",
            "rope_local_base_freq"),
        theta=1_000_000.0,
        window=4096,
        windows="pattern",
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        "Olmo2ForSequenceClassification",
        RMS | dict(norms="post", qk_norm="full"),
        (*_rotary(2048, eps=1e-5), HEAD_DIM, ANY_KV_HEADS, *BIASES),
        (None, 50279, 1),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        "SmolLM3ForSequenceClassification",
        RMS,
        (*_rotary(32_768, tied=True), HEAD_DIM, KV_HEADS, *BIASES, MLP_BIAS),
        (128000, 128001, 128004),
        reads=(*LATE, "no_rope_layers", "no_rope_layer_interval"),
        theta=2_000_000.0,
        windows="nope",
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        "Phi3ForSequenceClassification",
        RMS,
        (*_rotary(4096, eps=1e-5), HEAD_DIM, ANY_KV_HEADS),
        (1, 32000, 32000),
        reads=("sliding_window", "layer_types", "partial_rotary_factor", "original_max_position_embeddings"),
        neutral={"lm_head_bias": (False, None), "full_attn_mod": (1, None), "interpolate_factor": (1, None)},
        own_code=("modeling_phi3.Phi3ForCausalLM", "modeling_phi3.Phi3ForSequenceClassification"),
        ropes=("default", "longrope"),
        windows="all",
    ),
}  # fmt: skip

WRAPPERS = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Gemma3ForSequenceClassification": "Gemma3TextForSequenceClassification",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
    "Phi4MultimodalForCausalLM": "Phi3ForCausalLM",
    "Qwen2VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2ForCausalLM",
    "Qwen3VLForConditionalGeneration": "Qwen3ForCausalLM",
}
"""Models of text and images, and the class of the text model inside."""
