"""What a decoder is: every knob that changes its mathematics, and a few that only change how it is computed."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RopeScaling:
    """Stretching of rotary frequencies for long contexts.

    kind "llama3": frequencies with wavelengths above original_max_positions / low_freq_factor are divided by
    `factor`, those below original_max_positions / high_freq_factor are kept, in between they are blended (Llama
    3.1, arXiv 2407.21783).
    kind "linear": every frequency is divided by `factor` (arXiv 2306.15595).
    kind "longrope": each frequency is divided by its own number of `short_factors`, or of `long_factors` where
    `ModelConfig.long_context` says that rows may grow beyond original_max_positions; either way what is rotated is
    multiplied by `attention_factor` (arXiv 2402.13753).
    """

    kind: str
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """One decoder. Hashable, so that it can be a static argument of a jitted function."""

    family: str
    """Which tables `model.hf` uses for names and settings: a key of `hf.families.FAMILIES`."""
    vocab_size: int
    d_model: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    d_ff: int
    """Width of the feed-forward network, or of each expert."""
    max_positions: int
    norm: str
    """"rms" (arXiv 1910.07467) or "layer" (arXiv 1607.06450)."""
    norm_eps: float
    positions: str
    """"rope" (arXiv 2104.09864) or "learned"."""
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rope_local_theta: float | None = None
    """Base of the layers with a window, never stretched (Gemma 3); None: that of all layers."""
    rotary_fraction: float = 1.0
    """Share of each head's dimensions that are rotated: the first ones (GPT-NeoX)."""
    rope_layers: tuple[bool, ...] = ()
    """Which layers rotate (SmolLM3); the others know no positions (arXiv 2305.19466). Empty: all."""
    window: int | None = None
    """Tokens that a query of a layer with a window sees, its own included (arXiv 2004.05150); None: no layer has one."""
    window_layers: tuple[bool, ...] = ()
    """Which layers have the window; empty: all."""
    query_scale: int | None = None
    """Scores are divided by the root of this (Gemma 2); None: of head_dim."""
    attention_softcap: float | None = None
    """Scores s become c · tanh(s / c) with this c (Gemma 2, arXiv 2408.00118)."""
    logit_softcap: float | None = None
    """The same for the logits of the language model."""
    qk_norm: str = ""
    """RMSNorm of queries and keys before they are rotated: "head" (each head by itself, one weight for all), "full"
    (all heads as one vector; OLMo 2, arXiv 2501.00656) or "" for none."""
    norms: str = "pre"
    """Where a block has norms: "pre" (before attention and MLP), "post" (of what they return, OLMo 2) or "both"."""
    norm_offset: bool = False
    """RMSNorm multiplies by 1 + weight (Gemma)."""
    parallel: bool = False
    """Attention and MLP both read the block's input, and both are added to it (GPT-NeoX)."""
    embed_scale: bool = False
    """Embeddings are multiplied by the root of d_model, rounded to the compute dtype (Gemma)."""
    activation: str = "silu"
    """"silu", "gelu" (erf) or "gelu_tanh"."""
    gated_mlp: bool = True
    """SwiGLU and its kin (arXiv 2002.05202) against a plain two-layer MLP."""
    experts: int = 0
    """Feed-forward networks a layer, E, of which a router chooses some for each token (arXiv 2401.04088); 0: one for all."""
    experts_used: int = 0
    """How many each token goes through."""
    renormalise: bool = True
    """Weights of the chosen experts sum to 1, not to their share of the softmax over all of them."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    """The output matrix is the embedding, transposed."""
    axes: int = 0
    """Reward axes A of the score head; 0 for a language model."""
    reward_mean: tuple[float, ...] = ()
    """Per axis, subtracted from the raw score; empty means 0."""
    reward_std: tuple[float, ...] = ()
    """Per axis, divides the centred score; empty means 1."""
    axis_names: tuple[str, ...] = ()
    """Of the reward axes; empty where they have none."""
    eos_ids: tuple[int, ...] = ()
    bos_id: int | None = None
    pad_id: int | None = None

    dtype: str = "float32"
    """Of activations and of the weights as used; master weights stay float32."""
    long_context: bool = False
    """Rows may be longer than a "longrope" was trained for: the long factors then hold for every position of every
    row, so that a token's probability does not change while its row grows."""
    remat: str = "none"
    """"none", "dots" (keep matrix products) or "full": what the backward pass recomputes."""
    unroll: int = 1
    """Layers per scan step: more is faster to run on CPU and slower to compile."""
    source: str = field(default="", compare=False, repr=False)
    """What `hf.load` found beside the numbers (config.json, the tensors' names, types and files), as JSON text, kept so
    that `hf.save` can write it back."""
