"""adapter_config.json of PEFT (https://github.com/huggingface/peft): what it asks for, and what of that is refused."""

import os
import re
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.model.hf import files as hf_files

CONFIG = "adapter_config.json"
READ = ("peft_type", "task_type", "r", "lora_alpha", "use_rslora", "target_modules", "modules_to_save", "rlhf_jax")
IGNORED = (
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "fan_in_fan_out"),
    *("lora_dropout", "megatron_core", "qalora_group_size", "runtime_config"),
)
"""Keys that change nothing of what a trained adapter computes, or only together with one that is refused."""
ALLOWED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
"""Values of further keys that mean the plain adapter. Other ways to start one (PiSSA, OLoRA, …) change the base too."""
HEADS = ({"score"}, {"score", "classifier"})
"""What modules_to_save may name, and only for a reward model: PEFT adds both names to every one."""


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether a local folder holds an adapter."""
    return (Path(folder) / CONFIG).is_file()


def base_of(folder: str | os.PathLike) -> tuple[str, str | None]:
    """Folder or hub name, and revision, of the model that the adapter in a folder was trained on."""
    document = read_config(folder)
    name = document.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise UserError(f"{Path(folder) / CONFIG}: base_model_name_or_path is {name!r}; it must name the base model")
    return name, document.get("revision")


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """adapter_config.json. Raises UserError naming the key for whatever asks for more than a plain LoRA."""
    where = Path(folder) / CONFIG
    text = hf_files.read_text(Path(folder), CONFIG)
    if text is None:
        raise UserError(f"{folder}: no {CONFIG}; an adapter's folder has one")
    document = hf_files.parse(text, where)
    for key, kind in (("peft_type", "LORA"), ("r", int), ("lora_alpha", (int, float)), ("use_rslora", bool)):
        value = document.get(key, False if key == "use_rslora" else None)
        if (value != kind) if key == "peft_type" else not isinstance(value, kind) or (kind is int and value < 1):  # type: ignore[arg-type]
            raise UserError(f"{where}: {key} is {value!r}; only a LoRA with a rank and an alpha can be read")
    for key, value in document.items():
        plain = value in ALLOWED[key] if key in ALLOWED else not value
        if key not in (*READ, *IGNORED) and not plain:
            raise UserError(f"{where}: {key} is {value!r}, which is not supported; a plain LoRA leaves it out")
    reward = document.get("task_type") == "SEQ_CLS"
    if document.get("task_type") not in ("CAUSAL_LM", "SEQ_CLS", None):
        raise UserError(f"{where}: task_type is {document['task_type']!r}; supported: CAUSAL_LM, SEQ_CLS")
    wanted = document.get("target_modules") or []
    try:
        listed = isinstance(wanted, list) and all(isinstance(name, str) for name in wanted)
        fine = listed or (isinstance(wanted, str) and re.compile(wanted) is not None)
    except re.error:
        fine = False
    if not fine:
        raise UserError(f"{where}: target_modules is {wanted!r}; it must be a list of names or one regular expression")
    saved = document.get("modules_to_save") or []
    if saved and not (reward and set(saved) in HEADS):
        raise UserError(f"{where}: modules_to_save is {saved!r}; only the score of a SEQ_CLS adapter can be read")
    return document


def matches(wanted: Any, module: str) -> bool:
    """PEFT's rule: a list names modules by their last parts, a text is a regular expression for the whole name."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in wanted)
