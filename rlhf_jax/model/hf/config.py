"""config.json <-> ModelConfig, by the family's table in `hf.families`, read in both directions."""

import dataclasses
import math
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf import layers as hf_layers
from rlhf_jax.model.hf import rope as hf_rope
from rlhf_jax.model.hf.families import FAMILIES, REQUIRED, WRAPPERS
from rlhf_jax.model.hf.refuse import KNOWN, NEUTRAL, refuse_other_mathematics, typed

Document = dict[str, Any]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}

MAX_LAYERS = 10_000

COMPUTE_FIELDS = ("dtype", "long_context", "remat", "unroll", "source")
"""Fields of ModelConfig that no config.json holds."""


def read(document: Document, generation: Document | None = None, where: str = "config.json") -> ModelConfig:
    """The model that a parsed config.json describes; `generation` (generation_config.json) may add EOS ids.

    Raises UserError naming the key for an unknown architecture, activation or rope type, a missing or ill-typed key, or
    one that asks for mathematics that is not computed here.
    """
    family, reward = _architecture(document, where)
    refuse_other_mathematics(document, family, where)
    fields = dict(FAMILIES[family].fixed)
    for field, key, kind, default, null, alias in FAMILIES[family].keys:
        if alias in document:
            if document.get(key, document[alias]) != document[alias]:
                raise UserError(
                    f"{where}: {key} is {document[key]!r}, but {alias}, which means it too, {document[alias]!r}"
                )
            key = alias
        if default is REQUIRED and key not in document:
            raise UserError(f"{where}: {key} is missing; a {family} model needs it")
        fields[field] = typed(document.get(key, default), kind, key, where, optional=null or default is None)
    if fields["layers"] > MAX_LAYERS:  # lists of this length are made before any tensor is looked at
        raise UserError(f"{where}: asks for {fields['layers']} layers; at most {MAX_LAYERS} are read")
    if fields["activation"] not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"{where}: activation {fields['activation']!r} is not supported; supported: {known}")
    fields["activation"] = ACTIVATIONS[fields["activation"]]
    fields["kv_heads"] = fields.get("kv_heads") or fields["heads"]
    if not fields.get("head_dim") and fields["d_model"] % fields["heads"]:
        raise UserError(f"{where}: {fields['heads']} heads do not divide the model width {fields['d_model']}")
    fields["head_dim"] = fields.get("head_dim") or fields["d_model"] // fields["heads"]
    fields["d_ff"] = fields["d_ff"] or 4 * fields["d_model"]
    if fields["heads"] % fields["kv_heads"]:
        raise UserError(f"{where}: {fields['kv_heads']} key heads do not divide {fields['heads']} attention heads")
    if fields["positions"] == "rope":
        fields |= hf_layers.read(document, family, fields["layers"], where)
        fields |= hf_rope.read(document, family, fields["head_dim"], fields["max_positions"], where)
    if fields.get("experts_used", 0) > fields.get("experts", 0):
        raise UserError(
            f"{where}: {fields['experts_used']} experts a token are more than the {fields['experts']} there are"
        )
    if reward:
        fields |= _reward(document, where)
    return ModelConfig(family=family, **fields, **_token_ids(document, generation, family, fields["vocab_size"], where))


def remarks(document: Document, generation: Document | None, cfg: ModelConfig) -> list[str]:
    """What `read` passed over and a user may want to know: keys that no version of transformers writes for this family,
    and token ids outside the vocabulary, which can neither be sampled nor embedded."""
    told = FAMILIES[cfg.family]
    known = KNOWN | NEUTRAL.keys() | told.neutral.keys() | {key.key for key in told.keys} | set(told.reads)
    unknown = sorted(document.keys() - known)
    lines = [f"unknown keys are ignored: {', '.join(unknown)}"] if unknown else []
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = _ids(document.get(key), key, "")
        if generation and key == "eos_token_id":
            ids += _ids(generation.get(key), key, "")
        outside = [x for x in dict.fromkeys(ids) if not 0 <= x < cfg.vocab_size]
        if outside:
            lines.append(f"{key} {outside} is outside the vocabulary of {cfg.vocab_size} and is left out")
    return lines


def write(cfg: ModelConfig, document: Document | None, generation: Document | None) -> tuple[Document, Document | None]:
    """config.json and generation_config.json for `cfg`: the ones that it came from with the changed keys changed, or a
    new config.json that transformers 4 and 5 both read. Raises UserError for a `cfg` that its family cannot express."""
    document = dict(document or {})
    changed = {field.name for field in dataclasses.fields(cfg)}
    if document and _architecture(document, "config.json")[0] == cfg.family:
        before = read(document, generation)
        changed = {name for name in changed if getattr(before, name) != getattr(cfg, name)}
    else:
        document = {"model_type": cfg.family}
        generation = None
    for each in FAMILIES[cfg.family].keys:
        if each.field in changed:
            value = getattr(cfg, each.field)
            if each.field == "activation":
                value = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == value), value)
            document[each.alias if each.alias in document else each.key] = value
    if cfg.positions == "rope" and changed & hf_layers.FIELDS:
        document |= hf_layers.write(cfg)
    if cfg.positions == "rope" and changed & hf_rope.FIELDS:
        document |= hf_rope.write(cfg)
    if changed & {"axes", "axis_names", "reward_mean", "reward_std"}:
        document = _write_heads(cfg, document, relabel=bool(changed & {"axes", "axis_names"}))
    for name, key in (("bos_id", "bos_token_id"), ("pad_id", "pad_token_id")):
        if name in changed:
            document[key] = getattr(cfg, name)
    if "eos_ids" in changed:
        document["eos_token_id"] = cfg.eos_ids[0] if len(cfg.eos_ids) == 1 else list(cfg.eos_ids) or None
        if generation is not None:
            generation = generation | {"eos_token_id": document["eos_token_id"]}
    after = read(document, generation)
    for name in (field.name for field in dataclasses.fields(cfg)):
        mine, theirs = getattr(cfg, name), getattr(after, name)
        if name not in COMPUTE_FIELDS and mine != theirs:
            raise UserError(f"a {cfg.family} config.json cannot say {name}={mine!r}; it would mean {theirs!r}")
    return document, generation


def _architecture(document: Document, where: str) -> tuple[str, bool]:
    """The family, and whether it is a reward model."""
    named = document.get("architectures")
    for family, told in FAMILIES.items():
        for name in (told.causal, told.reward):
            if named == [name]:
                kind = document.get("model_type", family)
                if kind != family:
                    raise UserError(f"{where}: model_type {kind!r} does not go with architecture {name}")
                return family, name == told.reward
    for name in named if isinstance(named, list) else ():
        if name in WRAPPERS:
            text = WRAPPERS[name]
            raise UserError(f"{where}: {name} is a model of text and more; save the text model in it as {text}")
    supported = ", ".join(name for told in FAMILIES.values() for name in (told.causal, told.reward))
    raise UserError(f"{where}: architectures is {named!r}; supported is one of {supported}")


def _reward(document: Document, where: str) -> Document:
    """Axes and normalisation of a reward model. Two labels are the default, which version 4 leaves unsaid."""
    labels, ours = document.get("id2label"), document.get("rlhf_jax") or {}
    for key, value in (("id2label", labels or {}), ("rlhf_jax", ours)):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key} is {value!r}; it must be an object")
    count = document.get("num_labels", len(labels) if labels else 2)
    axes = typed(count, int, "num_labels", where)
    if labels and len(labels) != axes:
        raise UserError(f"{where}: num_labels is {axes}, but id2label names {len(labels)}")
    fields: Document = {"axes": axes, "axis_names": _axis_names(labels or {}, axes)}
    for name in ("reward_mean", "reward_std"):
        values = ours.get(name, [])
        if not isinstance(values, list) or not all(isinstance(x, (int, float)) and math.isfinite(x) for x in values):
            raise UserError(f"{where}: rlhf_jax.{name} is {values!r}; it must be a list of finite numbers")
        if values and len(values) != axes:
            raise UserError(f"{where}: rlhf_jax.{name} has {len(values)} numbers for {axes} reward axes")
        fields[name] = tuple(float(x) for x in values)
    if any(x <= 0 for x in fields["reward_std"]):
        raise UserError(f"{where}: rlhf_jax.reward_std is {list(fields['reward_std'])}; each must be positive")
    return fields


def _axis_names(labels: Document, axes: int) -> tuple[str, ...]:
    """What id2label calls the axes; () where it says nothing of them."""
    names = [labels.get(str(axis)) for axis in range(axes)]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < axes:
        return ()
    given = tuple(str(name) for name in names)
    return () if given == _unnamed(axes) else given


def _unnamed(axes: int) -> tuple[str, ...]:
    """What transformers calls labels without a name."""
    return tuple(f"LABEL_{axis}" for axis in range(axes))


def _write_heads(cfg: ModelConfig, document: Document, relabel: bool) -> Document:
    """The document with the architecture, labels and normalisation of cfg's head."""
    document = {key: value for key, value in document.items() if key != "rlhf_jax"}
    if relabel:
        for key in ("num_labels", "id2label", "label2id", "problem_type"):
            document.pop(key, None)
        document["architectures"] = [FAMILIES[cfg.family].reward if cfg.axes else FAMILIES[cfg.family].causal]
        if cfg.axes:
            names = cfg.axis_names or _unnamed(cfg.axes)
            document["id2label"] = {str(axis): name for axis, name in enumerate(names)}
            document["label2id"] = {name: axis for axis, name in enumerate(names)}
            document["num_labels"] = cfg.axes
    ours = {name: list(getattr(cfg, name)) for name in ("reward_mean", "reward_std") if getattr(cfg, name)}
    return document | ({"rlhf_jax": ours} if ours else {})


def _ids(value: Any, key: str, where: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(x, int) or isinstance(x, bool) for x in ids):
        raise UserError(f"{where}: {key} is {value!r}; it must be a token id or a list of them")
    return tuple(ids)


def _token_ids(document: Document, generation: Document | None, family: str, vocab_size: int, where: str) -> Document:
    """BOS, EOS and padding ids that lie in the vocabulary; generation_config.json may add to the EOS ids."""
    bos, eos, pad = FAMILIES[family].tokens
    found = {
        "bos_id": _ids(document.get("bos_token_id", bos), "bos_token_id", where),
        "eos_ids": _ids(document.get("eos_token_id", eos), "eos_token_id", where)
        + _ids((generation or {}).get("eos_token_id"), "eos_token_id of generation_config.json", where),
        "pad_id": _ids(document.get("pad_token_id", pad), "pad_token_id", where),
    }
    inside = {name: tuple(dict.fromkeys(x for x in ids if 0 <= x < vocab_size)) for name, ids in found.items()}
    return {name: ids if name == "eos_ids" else next(iter(ids), None) for name, ids in inside.items()}
