"""Rotary positions in config.json, as transformers 4 and 5 spell them <-> the rope fields of ModelConfig."""

import math
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.model.config import ModelConfig, RopeScaling
from rlhf_jax.model.hf.families import FAMILIES
from rlhf_jax.model.hf.refuse import typed

KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor"),
}
"""Supported rope types, and what each needs to be told."""
OPTIONAL = {"longrope": ("attention_factor", "original_max_position_embeddings")}
"""What it may be told besides."""

FIELDS = frozenset(("rope_theta", "rope_scaling", "rope_local_theta", "rotary_fraction", "max_positions"))
"""Fields of ModelConfig on which these keys depend."""

GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""Kinds of layers that rope_parameters tells apart in a family that reads rope_local_base_freq."""


def read(document: dict[str, Any], family: str, head_dim: int, max_positions: int, where: str) -> dict[str, Any]:
    """The rope fields, from whichever keys are there: rope_theta, rope_scaling, rope_parameters, and the older ones of
    some families. Raises UserError where they contradict each other or ask for something that is not computed here."""
    told = FAMILIES[family]
    two = "rope_local_base_freq" in told.reads
    partial = "partial_rotary_factor" in told.reads
    thetas = {key: document.get(key) for key in ("rope_theta", *_older(family, "rotary_emb_base"))}
    shares = {key: document.get(key) for key in _older(family, "partial_rotary_factor", "rotary_pct")}
    local = {"rope_local_base_freq": document.get("rope_local_base_freq")} if two else {}
    entries: dict[str, dict[str, Any]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        entry = document.get(name)
        if not entry:
            continue
        if not isinstance(entry, dict):
            raise UserError(f"{where}: {name} is {entry!r}; it must be an object")
        if two and name == "rope_parameters":
            local |= _local(entry, f"{where}: {name}")
            name, entry = f"{name}.{GLOBAL}", entry.get(GLOBAL) or {}
        entries[name] = entry
        thetas[f"{name}.rope_theta"] = entry.get("rope_theta")
        if partial:
            shares[f"{name}.partial_rotary_factor"] = entry.get("partial_rotary_factor")
    fraction = _one(shares, 0.25 if family == "gpt_neox" else 1.0, where) if partial else 1.0
    rotated = int(head_dim * fraction)
    if rotated % 2 or not 0 < rotated <= head_dim:
        what = f"head_dim {head_dim} is odd" if fraction == 1 else f"{fraction} of head_dim {head_dim} is {rotated}"
        raise UserError(f"{where}: {what}; rotary positions need an even number, at most head_dim")
    scalings = {
        _scaling(entry, document, family, rotated // 2, max_positions, f"{where}: {name}")
        for name, entry in entries.items()
    }
    if len(scalings) > 1:
        raise UserError(f"{where}: rope_theta, rope_scaling and rope_parameters contradict each other")
    return {
        "rope_theta": _one(thetas, told.theta, where),
        "rope_scaling": next(iter(scalings), None),
        "rope_local_theta": _one(local, 10_000.0, where) if two else None,
        "rotary_fraction": fraction,
    }


def _older(family: str, *keys: str) -> tuple[str, ...]:
    return tuple(key for key in keys if key in FAMILIES[family].reads)


def _one(told: dict[str, Any], default: float, where: str) -> float:
    """The one number that all keys with a value name."""
    given = {typed(value, float, key, where) for key, value in told.items() if value is not None}
    if len(given) > 1:
        names = ", ".join(key for key, value in told.items() if value is not None)
        raise UserError(f"{where}: {names} contradict each other")
    return next(iter(given), default)


def _local(entry: dict[str, Any], where: str) -> dict[str, Any]:
    """The base of the layers with a window, from rope_parameters with one object a kind of layer."""
    for key in entry.keys() - {GLOBAL, LOCAL}:
        raise UserError(f"{where}: {key} is not a kind of layer; the keys are {GLOBAL} and {LOCAL}")
    mine = entry.get(LOCAL) or {}
    kind = mine.get("rope_type", mine.get("type", "default")) if isinstance(mine, dict) else mine
    if kind != "default" or mine.keys() - {"rope_type", "type", "rope_theta"}:
        raise UserError(f"{where}: {LOCAL} is {mine!r}; only its rope_theta can be chosen")
    return {f"rope_parameters.{LOCAL}.rope_theta": mine.get("rope_theta")}


def _scaling(
    entry: dict[str, Any], document: dict[str, Any], family: str, pairs: int, max_positions: int, where: str
) -> RopeScaling | None:
    known = FAMILIES[family].ropes
    kind = str(entry.get("rope_type", entry.get("type", "default")))
    kind = "longrope" if kind == "su" else kind  # the name in Phi-3's first files
    if kind not in known:
        raise UserError(f"{where}: rope type {kind!r} is not supported; supported: {', '.join(known)}")
    keys, partial = KEYS[kind], "partial_rotary_factor" in FAMILIES[family].reads
    for key in entry.keys() - {"rope_type", "type", "rope_theta", *keys, *OPTIONAL.get(kind, ())}:
        if not (key == "partial_rotary_factor" and (partial or entry[key] in (1, None))):
            raise UserError(f"{where}: {key} is not supported with rope type {kind!r}")
    if kind == "default":
        return None
    if kind == "llama3":
        entry = {"original_max_position_embeddings": max_positions} | entry
    for key in keys:
        if key not in entry:
            raise UserError(f"{where}: {key} is missing; rope type {kind!r} needs it")
    if kind == "longrope":
        return _longrope(entry, document, pairs, max_positions, where)
    factor = typed(entry["factor"], float, "factor", where)
    if kind == "linear":
        return RopeScaling(kind, factor)
    low, high = (typed(entry[key], float, key, where) for key in ("low_freq_factor", "high_freq_factor"))
    if low >= high:
        raise UserError(f"{where}: low_freq_factor {low} must be below high_freq_factor {high}")
    trained = typed(entry["original_max_position_embeddings"], int, "original_max_position_embeddings", where)
    return RopeScaling(kind, factor, low, high, trained)


def _longrope(
    entry: dict[str, Any], document: dict[str, Any], pairs: int, max_positions: int, where: str
) -> RopeScaling:
    key = "original_max_position_embeddings"
    trained = typed(document.get(key, 4096), int, key, where)
    if entry.get(key, trained) != trained:
        raise UserError(f"{where}: {key} is {entry[key]!r} here and {trained} beside it")
    factors = {}
    for key in KEYS["longrope"]:
        if not isinstance(entry[key], list) or len(entry[key]) != pairs:
            raise UserError(f"{where}: {key} must be a list of {pairs} numbers, one a rotated pair of dimensions")
        factors[key] = tuple(typed(x, float, key, where) for x in entry[key])
    given = typed(entry.get("attention_factor"), float, "attention_factor", where, optional=True)
    return RopeScaling(
        "longrope",
        original_max_positions=trained,
        short_factors=factors["short_factor"],
        long_factors=factors["long_factor"],
        attention_factor=given or implied_attention_factor(max_positions, trained),
    )


def implied_attention_factor(max_positions: int, trained: int) -> float:
    """What a longrope model that was stretched so far multiplies its rotated queries and keys by (arXiv 2402.13753)."""
    ratio = max_positions / trained
    return math.sqrt(1 + math.log(ratio) / math.log(trained)) if ratio > 1 else 1.0


def write(cfg: ModelConfig) -> dict[str, Any]:
    """Both spellings: transformers 4 reads the older keys and passes over the rest, 5 reads them all."""
    reads = FAMILIES[cfg.family].reads
    scaling: dict[str, Any] | None = None
    document: dict[str, Any] = {"rope_theta": cfg.rope_theta}
    told = cfg.rope_scaling
    if told is not None and told.kind == "longrope":
        scaling = {"type": "longrope", "short_factor": list(told.short_factors), "long_factor": list(told.long_factors)}
        if told.attention_factor != implied_attention_factor(cfg.max_positions, told.original_max_positions):
            scaling["attention_factor"] = told.attention_factor
        document["original_max_position_embeddings"] = told.original_max_positions
    elif told is not None:
        values = (told.factor, told.low_freq_factor, told.high_freq_factor, told.original_max_positions)
        keys = KEYS.get(told.kind, ())
        scaling = {"rope_type": told.kind} | dict(zip(keys, values[: len(keys)], strict=True))
    share = {"partial_rotary_factor": cfg.rotary_fraction} if "partial_rotary_factor" in reads else {}
    kind = {"rope_type": told.kind if told else "default"}
    parameters = {**(scaling or {}), **kind, "rope_theta": cfg.rope_theta, **share}
    parameters.pop("type", None)
    if "rope_local_base_freq" in reads:
        document["rope_local_base_freq"] = cfg.rope_local_theta
        parameters = {GLOBAL: parameters, LOCAL: {"rope_type": "default", "rope_theta": cfg.rope_local_theta}}
    older = {"rotary_emb_base": cfg.rope_theta, "rotary_pct": cfg.rotary_fraction}
    document |= share | {key: value for key, value in older.items() if key in reads}
    return document | {"rope_scaling": scaling, "rope_parameters": parameters}
