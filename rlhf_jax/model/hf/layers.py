"""Which layers have a sliding window and which rotate, as config.json says it <-> three fields of ModelConfig."""

import json
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf.families import FAMILIES
from rlhf_jax.model.hf.refuse import typed

KINDS = ("full_attention", "sliding_attention")
FIELDS = frozenset(("layers", "window", "window_layers", "rope_layers"))
"""Fields of ModelConfig on which these keys depend."""


def read(document: dict[str, Any], family: str, layers: int, where: str) -> dict[str, Any]:
    """`window`, `window_layers` and `rope_layers`. Raises UserError for a list of another length than the model, an
    unknown kind of layer, or a window that the family's own code would not apply."""
    told = FAMILIES[family]
    rotates = _rotates(document, layers, where) if "no_rope_layers" in told.reads else (True,) * layers
    used = bool(told.windows)
    if "use_sliding_window" in told.reads:
        used = typed(document.get("use_sliding_window", False), bool, "use_sliding_window", where)
    window = None
    if used:
        window = typed(document.get("sliding_window", told.window), int, "sliding_window", where, optional=True)
    slides = _pattern(document, told.windows, layers, rotates, where) if window else (False,) * layers
    given = document.get("layer_types")
    if given is not None:
        slides = _given(given, family, layers, slides, where)
    if any(slides) and window is None:
        raise UserError(
            f"{where}: layer_types has sliding_attention, but no sliding_window is set (or it is not in use)"
        )
    return {
        "window": window if any(slides) else None,
        "window_layers": () if all(slides) or not any(slides) else slides,
        "rope_layers": () if all(rotates) else rotates,
    }


def _given(given: Any, family: str, layers: int, slides: tuple[bool, ...], where: str) -> tuple[bool, ...]:
    if not isinstance(given, list) or len(given) != layers or any(kind not in KINDS for kind in given):
        told, known = json.dumps(given)[:80], " and ".join(KINDS)
        raise UserError(f"{where}: layer_types is {told}; it must be a list of {layers}, of {known}")
    found = tuple(kind == "sliding_attention" for kind in given)
    if FAMILIES[family].windows in ("", "all") and found != slides:
        only = "sliding_attention" if any(slides) else "full_attention"
        raise UserError(f"{where}: layer_types is {json.dumps(given)[:80]}; only {only} is supported for this {family}")
    return found


def _pattern(
    document: dict[str, Any], windows: str, layers: int, rotates: tuple[bool, ...], where: str
) -> tuple[bool, ...]:
    """Which layers have the window where there is no layer_types."""
    if windows == "late":
        first = document.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise UserError(f"{where}: max_window_layers is {first!r}; it must be a whole number, 0 or more")
        return tuple(index >= first for index in range(layers))
    if windows == "nope":
        return tuple(not each for each in rotates)
    if windows in ("alternate", "pattern"):
        period = 2
        if windows == "pattern":
            period = typed(document.get("sliding_window_pattern", 6), int, "sliding_window_pattern", where)
        return tuple((index + 1) % period != 0 for index in range(layers))
    return (True,) * layers


def _rotates(document: dict[str, Any], layers: int, where: str) -> tuple[bool, ...]:
    """Which layers rotate: 1 in no_rope_layers, else all but every no_rope_layer_interval-th."""
    given = document.get("no_rope_layers")
    if given is None:
        every = typed(document.get("no_rope_layer_interval", 4), int, "no_rope_layer_interval", where)
        return tuple((index + 1) % every != 0 for index in range(layers))
    if not isinstance(given, list) or len(given) < layers or any(x not in (0, 1) for x in given):
        raise UserError(
            f"{where}: no_rope_layers is {json.dumps(given)[:80]}; it must be a list of {layers}, of 0 and 1"
        )
    return tuple(bool(x) for x in given[:layers])


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that say it, as the family spells them. What a family has no key for is left out, and so read as
    something else."""
    told = FAMILIES[cfg.family]
    slides = (cfg.window_layers or (True,) * cfg.layers) if cfg.window else (False,) * cfg.layers
    document: dict[str, Any] = {}
    if told.windows:
        document["sliding_window"] = cfg.window
    if "use_sliding_window" in told.reads:
        document["use_sliding_window"] = cfg.window is not None
        document["max_window_layers"] = slides.index(True) if any(slides) else cfg.layers
    if "layer_types" in told.reads and told.windows != "all":
        document["layer_types"] = [KINDS[each] for each in slides]
    if "no_rope_layers" in told.reads:
        document["no_rope_layers"] = [int(each) for each in cfg.rope_layers or (True,) * cfg.layers]
    return document
