"""What in a config.json is refused: keys that ask for mathematics not computed here, and values of the wrong type."""

import json
import math
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.model.hf.families import FAMILIES

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "compression_config": (None,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "pruned_heads": (None, {}),
    "per_layer_config": (None, {}),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1, None),
    "rotary_pct": (1, None),
    "rope_interleaved": (False, None),
    "use_mrope": (False, None),
    "original_max_position_embeddings": (None,),
    "no_rope_layers": (None, []),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "query_pre_attn_scalar": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1),
    "residual_multiplier": (None, 1),
    "logits_scaling": (None, 1),
    "num_experts": (None,),
    "num_local_experts": (None,),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "sliding_window": (None,),
    "use_bidirectional_attention": (False, None),
    "clip_qkv": (None,),
}
"""Keys that would change the mathematics, with the values at which they do not."""

KNOWN = frozenset(
    """architectures model_type dtype torch_dtype transformers_version _name_or_path name_or_path bos_token_id
    eos_token_id pad_token_id sep_token_id decoder_start_token_id rope_theta rope_scaling rope_parameters
    layer_types rlhf_jax num_labels id2label label2id problem_type use_cache initializer_range attention_dropout
    attn_pdrop embd_pdrop resid_pdrop hidden_dropout summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj n_ctx max_window_layers sliding_window pretraining_tp
    output_hidden_states output_attentions return_dict torchscript use_bfloat16 tf_legacy_loss
    chunk_size_feed_forward is_decoder cross_attention_hidden_size tie_encoder_decoder gradient_checkpointing
    max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k
    top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens finetuning_task tokenizer_class prefix task_specific_params tie_last_hidden_states
    _attn_implementation_autoset head_dim unsloth_version unsloth_fixed model_max_length auto_map _num_labels
    is_llama_config transformers.js_config max_sequence_length cache_implementation classifier_dropout
    classifier_hidden_dropout""".split()
)
"""Keys read elsewhere, or that do not change what the model computes from its weights (dropout is never applied)."""


def neutral(family: str) -> dict[str, tuple[Any, ...]]:
    """Keys that would change the mathematics of this family, with the values at which they do not."""
    told = FAMILIES[family]
    handled = {key.key for key in told.keys} | set(told.reads)
    return {key: values for key, values in NEUTRAL.items() if key not in handled} | told.neutral


def refuse_other_mathematics(document: dict[str, Any], family: str, where: str) -> None:
    """Raise UserError for a key whose value asks for something that the trunk of this family does not compute."""
    for key, values in neutral(family).items():
        if key in document and document[key] not in values:
            told, allowed = json.dumps(document[key])[:80], " or ".join(json.dumps(value) for value in values)
            raise UserError(f"{where}: {key} is {told}, not supported for {family}; it would have to be {allowed}")
    code = document.get("auto_map") or {}
    named = [str(path).rpartition("--")[2] for name, path in code.items() if name.startswith("AutoModel")]
    if any(name not in FAMILIES[family].own_code for name in named):
        raise UserError(f"{where}: auto_map asks for code of its own, {json.dumps(code)[:80]}; it is never run")


def typed(value: Any, kind: type, key: str, where: str, optional: bool = False) -> Any:
    """The value if it is of that type (and positive, if a number), else a UserError naming the key."""
    if value is None and optional:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    right = {
        int: number and isinstance(value, int) and value > 0,
        float: number and math.isfinite(value) and value > 0,
        bool: isinstance(value, bool),
        str: isinstance(value, str),
    }
    if not right[kind]:
        told = {int: "a positive whole number", float: "a positive number", bool: "true or false", str: "a name"}[kind]
        raise UserError(f"{where}: {key} is {value!r}; it must be {told}")
    return float(value) if kind is float else value
