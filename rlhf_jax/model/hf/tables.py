"""How each family names its tensors and lays them out.

A row says in letters how one tensor is laid out: theirs "KH D" is a matrix whose rows run over heads and, within a
head, over its dimensions; ours "DKH" is the same numbers as [D, K, H]. A tensor may hold several parameters: "c" is the
dimension that counts them, or, where they differ in size, "+" joins their letters in the order in which they lie.
"""

import re
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table; a name with {layer} stands for one tensor a layer, one with {expert} too for one an expert."""

    name: str
    paths: tuple[str, ...]
    theirs: str
    ours: str


PRE = {"input_layernorm": "attention_norm", "post_attention_layernorm": "mlp_norm"}
POST = {"post_attention_layernorm": "attention_post_norm", "post_feedforward_layernorm": "mlp_post_norm"}
BOTH = POST | {"input_layernorm": "attention_norm", "pre_feedforward_layernorm": "mlp_norm"}
"""Norms of a block under the names that Llama, OLMo 2 and Gemma gave them."""


def _mixture(rows: tuple[Row, ...], block: str, gate: str, up: str, down: str) -> tuple[Row, ...]:
    """A table with a router and experts in place of the feed-forward network: where they lie and what they are called."""
    one = "{base}layers.{layer}." + block
    return (
        *(row for row in rows if ".mlp." not in row.name),
        Row(one + ".gate.weight", ("layers/router",), "E D", "DE"),
        *(
            Row(f"{one}.experts.{{expert}}.{name}.weight", (f"layers/expert_{mine}",), theirs, theirs[2] + theirs[0])
            for name, mine, theirs in ((gate, "gate", "F D"), (up, "up", "F D"), (down, "down", "D F"))
        ),
    )


def _fused(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The same with the experts of a layer in two tensors, as transformers 5 holds them in memory (and writes them if asked
    for, with `save_original_format=False`)."""
    one = "{base}layers.{layer}.mlp."
    return (
        *(row for row in rows if "expert" not in row.name and row.paths != ("layers/router",)),
        Row(one + "gate.weight", ("layers/router",), "E D", "DE"),
        Row(one + "experts.gate_up_proj", ("layers/expert_gate", "layers/expert_up"), "E cF D", "EDF"),
        Row(one + "experts.down_proj", ("layers/expert_down",), "E D F", "EFD"),
    )


def _rotary(norms: dict[str, str] = PRE, *, fused: bool = False, qk_norm: str = "") -> tuple[Row, ...]:
    """Llama's table, or that of a family that differs from it in so much."""
    block = "{base}layers.{layer}."
    rows = [
        Row("{base}embed_tokens.weight", ("embed",), "V D", "VD"),
        *(Row(f"{block}{theirs}.weight", (f"layers/{mine}",), "D", "D") for theirs, mine in norms.items()),
        Row(block + "self_attn.o_proj.weight", ("layers/o",), "D NH", "NHD"),
        Row(block + "self_attn.o_proj.bias", ("layers/o_bias",), "D", "D"),
        Row(block + "mlp.down_proj.weight", ("layers/down",), "D F", "FD"),
        Row(block + "mlp.down_proj.bias", ("layers/down_bias",), "D", "D"),
        Row("{base}norm.weight", ("final_norm",), "D", "D"),
        Row("lm_head.weight", ("unembed",), "V D", "DV"),
        Row("score.weight", ("score",), "A D", "DA"),
    ]
    if fused:
        qkv = tuple(f"layers/{name}" for name in "qkv")
        rows.append(Row(block + "self_attn.qkv_proj.weight", qkv, "NH+KH+KH D", "DNH+DKH+DKH"))
        rows.append(Row(block + "mlp.gate_up_proj.weight", ("layers/gate", "layers/up"), "cF D", "DF"))
        return tuple(rows)
    for name, heads in (("q", "NH"), ("k", "KH"), ("v", "KH")):
        rows.append(Row(f"{block}self_attn.{name}_proj.weight", (f"layers/{name}",), f"{heads} D", f"D{heads}"))
        rows.append(Row(f"{block}self_attn.{name}_proj.bias", (f"layers/{name}_bias",), heads, heads))
        if qk_norm and name != "v":
            one = "H" if qk_norm == "head" else heads
            rows.append(Row(f"{block}self_attn.{name}_norm.weight", (f"layers/{name}_norm",), one, one))
    for name in ("gate", "up"):
        rows.append(Row(f"{block}mlp.{name}_proj.weight", (f"layers/{name}",), "F D", "DF"))
        rows.append(Row(f"{block}mlp.{name}_proj.bias", (f"layers/{name}_bias",), "F", "F"))
    return tuple(rows)


GPT2 = (
    Row("{base}wte.weight", ("embed",), "V D", "VD"),
    Row("{base}wpe.weight", ("positions",), "M D", "MD"),
    Row("{base}h.{layer}.ln_1.weight", ("layers/attention_norm",), "D", "D"),
    Row("{base}h.{layer}.ln_1.bias", ("layers/attention_norm_bias",), "D", "D"),
    Row("{base}h.{layer}.attn.c_attn.weight", ("layers/q", "layers/k", "layers/v"), "D cNH", "DNH"),
    Row("{base}h.{layer}.attn.c_attn.bias", ("layers/q_bias", "layers/k_bias", "layers/v_bias"), "cNH", "NH"),
    Row("{base}h.{layer}.attn.c_proj.weight", ("layers/o",), "NH D", "NHD"),
    Row("{base}h.{layer}.attn.c_proj.bias", ("layers/o_bias",), "D", "D"),
    Row("{base}h.{layer}.ln_2.weight", ("layers/mlp_norm",), "D", "D"),
    Row("{base}h.{layer}.ln_2.bias", ("layers/mlp_norm_bias",), "D", "D"),
    Row("{base}h.{layer}.mlp.c_fc.weight", ("layers/up",), "D F", "DF"),
    Row("{base}h.{layer}.mlp.c_fc.bias", ("layers/up_bias",), "F", "F"),
    Row("{base}h.{layer}.mlp.c_proj.weight", ("layers/down",), "F D", "FD"),
    Row("{base}h.{layer}.mlp.c_proj.bias", ("layers/down_bias",), "D", "D"),
    Row("{base}ln_f.weight", ("final_norm",), "D", "D"),
    Row("{base}ln_f.bias", ("final_norm_bias",), "D", "D"),
    Row("lm_head.weight", ("unembed",), "V D", "DV"),
    Row("score.weight", ("score",), "A D", "DA"),
)
_NEOX = "{base}layers.{layer}."
GPT_NEOX = (
    Row("{base}embed_in.weight", ("embed",), "V D", "VD"),
    Row(_NEOX + "input_layernorm.weight", ("layers/attention_norm",), "D", "D"),
    Row(_NEOX + "input_layernorm.bias", ("layers/attention_norm_bias",), "D", "D"),
    Row(_NEOX + "attention.query_key_value.weight", ("layers/q", "layers/k", "layers/v"), "NcH D", "DNH"),
    Row(_NEOX + "attention.query_key_value.bias", ("layers/q_bias", "layers/k_bias", "layers/v_bias"), "NcH", "NH"),
    Row(_NEOX + "attention.dense.weight", ("layers/o",), "D NH", "NHD"),
    Row(_NEOX + "attention.dense.bias", ("layers/o_bias",), "D", "D"),
    Row(_NEOX + "post_attention_layernorm.weight", ("layers/mlp_norm",), "D", "D"),
    Row(_NEOX + "post_attention_layernorm.bias", ("layers/mlp_norm_bias",), "D", "D"),
    Row(_NEOX + "mlp.dense_h_to_4h.weight", ("layers/up",), "F D", "DF"),
    Row(_NEOX + "mlp.dense_h_to_4h.bias", ("layers/up_bias",), "F", "F"),
    Row(_NEOX + "mlp.dense_4h_to_h.weight", ("layers/down",), "D F", "FD"),
    Row(_NEOX + "mlp.dense_4h_to_h.bias", ("layers/down_bias",), "D", "D"),
    Row("{base}final_layer_norm.weight", ("final_norm",), "D", "D"),
    Row("{base}final_layer_norm.bias", ("final_norm_bias",), "D", "D"),
    Row("embed_out.weight", ("unembed",), "V D", "DV"),
    Row("score.weight", ("score",), "A D", "DA"),
)
TABLE = {
    "gpt2": GPT2,
    "gpt_neox": GPT_NEOX,
    "llama": _rotary(),
    "mistral": _rotary(),
    "qwen2": _rotary(),
    "qwen3": _rotary(qk_norm="head"),
    "mixtral": _mixture(_rotary(), "block_sparse_moe", "w1", "w3", "w2"),
    "qwen3_moe": _mixture(_rotary(qk_norm="head"), "mlp", "gate_proj", "up_proj", "down_proj"),
    "gemma2": _rotary(BOTH),
    "gemma3_text": _rotary(BOTH, qk_norm="head"),
    "olmo2": _rotary(POST, qk_norm="full"),
    "smollm3": _rotary(),
    "phi3": _rotary(fused=True),
}
FUSED = {family: _fused(TABLE[family]) for family in ("mixtral", "qwen3_moe")}
FUSED_NAME = ".mlp.experts.gate_up_proj"
"""What a name in such a checkpoint ends in."""

BASE = dict.fromkeys(TABLE, "model.") | {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}
"""The prefix of all names but the head's. Files of a bare trunk, as GPT-2's own on the hub, go without."""

IGNORED = dict.fromkeys(TABLE, re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")) | {
    "gpt2": re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"),
    "gpt_neox": re.compile(r"(gpt_neox\.)?layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)"),
}
"""Constants that old files hold beside the weights: causal masks and rotary frequencies. Neither read nor written."""
