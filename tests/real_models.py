"""config.json of the models that the recipes name, as their pages have it, and how many parameters each has."""

PYTHIA, QWEN, LLAMA = "EleutherAI/pythia-1b-deduped", "Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-8B-Instruct"

CONFIGS = {
    PYTHIA: {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 50304,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "max_position_embeddings": 2048,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-05,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    QWEN: {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
    },
    LLAMA: {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": False,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
    },
}

PARAMETERS = {PYTHIA: 1_011_781_632, QWEN: 494_032_768, LLAMA: 8_030_261_248}
"""As safetensors on the models' pages count them; `counted` is the sum by hand."""


def counted(name):
    """Parameters by the sizes of the architecture, written out: matrices, biases and norms of a layer, and what is outside."""
    c = CONFIGS[name]
    D, F, L, V, N = (
        c[f"{key}_size" if key in ("hidden", "intermediate", "vocab") else key]
        for key in ("hidden", "intermediate", "num_hidden_layers", "vocab", "num_attention_heads")
    )
    K, H = c.get("num_key_value_heads", N), D // N
    if (
        name == PYTHIA
    ):  # fused QKV and three more matrices, a bias to each, two norms with biases; embedding, output, norm
        layer = 4 * D * D + 2 * D * F + (3 * D + D + F + D) + 2 * 2 * D
        return L * layer + 2 * V * D + 2 * D
    attention = D * N * H + 2 * D * K * H + N * H * D
    biases = N * H + 2 * K * H if name == QWEN else 0
    outside = V * D * (1 if c["tie_word_embeddings"] else 2) + D
    return L * (attention + biases + 3 * D * F + 2 * D) + outside
