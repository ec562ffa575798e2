"""Mistakes in what tells one family of models from another: norms, windows, rotary angles, scales, layouts, settings."""

from tests.mutations.mutation import Mutation

ATTENTION, TRANSFORMER, ROPE, SPECS, CONFIG = (
    f"rlhf_jax/model/{name}.py" for name in ("attention", "transformer", "rope", "specs", "config")
)
TABLES, FAMILIES, TENSORS, LAYERS, HF_ROPE, HF_CONFIG, REFUSE = (
    f"rlhf_jax/model/hf/{name}.py" for name in ("tables", "families", "tensors", "layers", "rope", "config", "refuse")
)
HF, OWN, READ = (f"tests/model/test_{name}.py" for name in ("hf", "families", "hf_families"))


def logits(case: str) -> str:
    """The test that compares logits and gradients with torch's on this fixture."""
    return f"{HF}::test_logits_and_gradients_are_those_of_transformers[{case}]"


def cached(case: str) -> str:
    """The test that compares the cache with the whole row for this family."""
    return f"{OWN}::test_invariant_43_cached_decoding_equals_the_whole_row[{case}]"


def row(id: str, invariant: int, file: str, find: str, replace: str, reason: str, *tests: str) -> Mutation:
    """One mistake, and the tests that see it."""
    return Mutation(id=id, invariant=invariant, file=file, find=find, replace=replace, tests=tests, reason=reason)


# fmt: off
ROWS: tuple[Mutation, ...] = (
    # The block
    row("norm-without-one", 0, TRANSFORMER, "h * (1 + weight if cfg.norm_offset else weight)", "h * weight",
        "Gemma's norm weights taken as they are", logits("gemma2")),
    row("norm-with-one", 0, TRANSFORMER, "h * (1 + weight if cfg.norm_offset else weight)", "h * (1 + weight)",
        "every family gets Gemma's norm", logits("qwen3")),
    row("parallel-in-sequence", 0, TRANSFORMER, "between = x if cfg.parallel else x + attended", "between = x + attended",
        "GPT-NeoX's MLP reads what attention wrote", logits("gpt_neox")),
    row("sequence-in-parallel", 0, TRANSFORMER, "between = x if cfg.parallel else x + attended",
        "between = x", "every MLP reads the block's input", logits("gpt_neox_sequential")),
    row("post-norm-of-attention-missing", 0, TRANSFORMER,
        'attended = norm(attended, layer, "attention_post_norm", cfg)', "attended = attended * 1.0",
        "attention is added without its norm", logits("olmo2")),
    row("post-norm-of-mlp-missing", 0, TRANSFORMER, 'fed = norm(fed, layer, "mlp_post_norm", cfg)', "fed = fed * 1.0",
        "the MLP is added without its norm", logits("gemma3")),
    row("qk-norm-missing", 0, TRANSFORMER, "    if cfg.qk_norm:\n", "    if cfg.qk_norm and False:\n",
        "queries and keys as they come", logits("qwen3"), logits("olmo2")),
    row("qk-norm-by-head", 0, TRANSFORMER, "norm(x.reshape(*x.shape[:-2], -1), {name: weights[name].reshape(-1)}, name, cfg)",
        "norm(x, weights, name, cfg)", "OLMo 2's norm taken of each head by itself", logits("olmo2")),
    row("embedding-unscaled", 0, TRANSFORMER, "x * jnp.asarray(cfg.d_model**0.5, x.dtype) if cfg.embed_scale else x", "x",
        "Gemma's embeddings not multiplied", logits("gemma3")),
    row("embedding-scaled-in-f32", 0, TRANSFORMER, "x * jnp.asarray(cfg.d_model**0.5, x.dtype)",
        "(x * jnp.float32(cfg.d_model**0.5)).astype(x.dtype)", "the scale is not rounded to the compute dtype",
        f"{OWN}::test_an_embedding_is_scaled_in_the_compute_dtype"),
    row("logit-cap-missing", 0, TRANSFORMER, "**exact), cfg.logit_softcap)", "**exact), None)", "logits not capped",
        logits("gemma2")),

    # Attention
    row("score-cap-missing", 0, TRANSFORMER, "mask, scale=cfg.query_scale, cap=cfg.attention_softcap)",
        "mask, scale=cfg.query_scale, cap=None)", "scores of whole rows not capped", logits("gemma2")),
    row("score-cap-missing-in-the-cache", 43, TRANSFORMER,
        "window=trait.window, scale=cfg.query_scale, cap=cfg.attention_softcap)",
        "window=trait.window, scale=cfg.query_scale, cap=None)", "scores of the cache not capped", cached("gemma2")),
    row("cap-without-division", 0, ATTENTION, "cap * jnp.tanh(x / cap)", "cap * jnp.tanh(x)", "a cap that is far too steep",
        logits("gemma2")),
    row("query-scale-of-the-head", 0, TRANSFORMER, "mask, scale=cfg.query_scale,", "mask, scale=None,",
        "query_pre_attn_scalar passed over", logits("gemma3")),
    row("query-scale-of-the-cache", 43, TRANSFORMER, "window=trait.window, scale=cfg.query_scale,",
        "window=trait.window, scale=None,", "query_pre_attn_scalar passed over in decoding", cached("gemma3")),
    row("window-one-more", 0, ATTENTION, "places[:, None] - places < window", "places[:, None] - places <= window",
        "a token sees one token too many", logits("mistral"), f"{OWN}::test_a_window_is_as_wide_as_it_says"),
    row("window-one-less", 0, ATTENTION, "places[:, None] - places < window", "places[:, None] - places < window - 1",
        "a token sees one token too few", logits("mistral"), f"{OWN}::test_a_window_is_as_wide_as_it_says"),
    row("cache-window-one-more", 43, ATTENTION, "step - places < window)", "step - places <= window)",
        "decoding sees one token more than training", cached("mistral")),
    row("cache-window-from-the-padding", 43, ATTENTION, "prompt_length[:, None] + jnp.arange(R)], axis=-1",
        "P + jnp.broadcast_to(jnp.arange(R), (G, R))], axis=-1", "a response is placed after the prompt's window",
        f"{OWN}::test_windows_hold_for_short_prompts_of_unequal_length", cached("mistral")),
    row("window-on-all-layers", 0, TRANSFORMER, "window = None if cfg.window is None else cfg.window if local else",
        "window = None if cfg.window is None else cfg.window if True else", "global layers have the window too",
        logits("gemma2")),

    # Rotary positions
    row("local-base-forgotten", 0, TRANSFORMER, "rotates=rotates[index], local=local)", "rotates=rotates[index])",
        "Gemma 3's local layers turn like the global ones", logits("gemma3")),
    row("local-base-stretched", 0, ROPE, "stretch(periods, None if own_base else cfg.rope_scaling, ",
        "stretch(periods, cfg.rope_scaling, ", "linear scaling of the local layers too", logits("gemma3")),
    row("nope-rotated", 0, ROPE, "return found if rotates else 0 * found", "return found",
        "layers without positions are rotated", logits("smollm3")),
    row("partial-rotary-of-the-end", 0, ROPE, "turned, kept = jnp.split(x, [2 * angles.shape[-1]], axis=-1)",
        "turned, kept = jnp.flip(x, -1)[..., :2 * angles.shape[-1]], jnp.flip(x, -1)[..., 2 * angles.shape[-1]:]",
        "the last dimensions are rotated", logits("gpt_neox")),
    row("partial-rotary-frequencies", 0, ROPE, "dtype=f32) / f32(rotated))", "dtype=f32) / f32(cfg.head_dim))",
        "frequencies spread over the whole head", logits("gpt_neox"), logits("phi4_mini")),
    row("rotary-all", 0, ROPE, "rotated = int(cfg.head_dim * cfg.rotary_fraction)", "rotated = cfg.head_dim",
        "the whole head is rotated", logits("gpt_neox")),
    row("longrope-short-for-all", 0, ROPE, "scaling.long_factors if long else scaling.short_factors",
        "scaling.short_factors", "long rows with the short factors", logits("phi4_mini")),
    row("longrope-long-for-all", 0, ROPE, "scaling.long_factors if long else scaling.short_factors",
        "scaling.long_factors", "short rows with the long factors",
        f"{OWN}::test_short_rows_of_a_longrope_model_are_those_of_transformers"),
    row("longrope-unscaled", 0, ROPE, "cos, sin = scale * jnp.cos(angles), scale * jnp.sin(angles)",
        "cos, sin = jnp.cos(angles), jnp.sin(angles)", "rotated queries and keys not multiplied", logits("phi4_mini")),
    row("long-rows-pass", 0, ROPE, "length > scaling.original_max_positions and", "length > 2**30 and",
        "rows beyond the knee run with the short factors",
        f"{OWN}::test_rows_too_long_for_the_short_factors_are_refused"),

    # Checkpoints
    row("neox-qkv-in-thirds", 0, TABLES, '"NcH D", "DNH"', '"cNH D", "DNH"', "q, k and v taken one after the other",
        logits("gpt_neox")),
    row("phi-qkv-order", 0, TABLES, 'f"layers/{name}" for name in "qkv"', 'f"layers/{name}" for name in "qvk"',
        "keys and values swapped", logits("phi3")),
    row("phi-gate-and-up", 0, TABLES, '("layers/gate", "layers/up"), "cF D"', '("layers/up", "layers/gate"), "cF D"',
        "the wrong half is activated", logits("phi3")),
    row("gemma-norms-swapped", 0, TABLES, '"pre_feedforward_layernorm": "mlp_norm"}',
        '"pre_feedforward_layernorm": "attention_post_norm", "post_attention_layernorm": "mlp_norm"}',
        "post_attention_layernorm read as Llama's", logits("gemma2")),
    row("fused-part-offset", 0, TENSORS, 'before = group.split("+")[:part] if "+" in group else ()', "before = ()",
        "keys and values read from the queries' rows", logits("phi3")),
    row("late-window-by-one", 0, LAYERS, "tuple(index >= first for index in range(layers))",
        "tuple(index > first for index in range(layers))", "max_window_layers counted from 1",
        f"{READ}::test_which_layers_have_the_window"),
    row("pattern-off-by-one", 0, LAYERS, "(index + 1) % period != 0 for", "index % period != 0 for",
        "the global layers are the first of each group", f"{READ}::test_which_layers_have_the_window"),
    row("nope-interval-off-by-one", 0, LAYERS, "(index + 1) % every != 0 for", "index % every != 0 for",
        "the first layer loses its positions", f"{READ}::test_which_layers_rotate"),
    row("unused-window-used", 0, LAYERS, "    if used:\n", "    if told.windows:\n",
        "use_sliding_window: false passed over", f"{READ}::test_which_layers_have_the_window"),
    row("neox-default-share", 0, HF_ROPE, '0.25 if family == "gpt_neox" else 1.0', "1.0",
        "a silent GPT-NeoX config rotates whole heads", f"{READ}::test_keys_of_the_hub_say_what_they_say"),
    row("own-code-of-anybody", 0, REFUSE, "any(name not in FAMILIES[family].own_code for name in named)",
        "any(name in FAMILIES[family].own_code for name in named)", "code of strangers passed over",
        f"{READ}::test_what_is_refused"),
    row("bidirectional-passes", 0, REFUSE, '    "use_bidirectional_attention": (False, None),\n', "",
        "an encoder read as a decoder", f"{READ}::test_what_is_refused"),
    row("attention-factor-of-the-ratio", 0, HF_ROPE, "1 + math.log(ratio) / math.log(trained)", "1 + math.log(ratio)",
        "longrope's factor without its denominator", f"{READ}::test_longrope_says_its_factor"),
)
# fmt: on
