"""Rewards: a plain function of text and dataset columns, a reward model, or a weighted mix of such parts.

    score(prompts, responses, meta) -> (scores f32 [B], {part: f32 [B]})

`prompts` are strings or message lists as the dataset has them, `responses` strings, `meta` the dataset's other
columns, one dict a row. A plain function may return the scores alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError

Score = Callable[[Sequence[Any], Sequence[str], Sequence[Mapping[str, Any]]], Any]


def checked(name: str, function: Score) -> Score:
    """The same function, whose exceptions, wrong lengths and non-finite scores become a UserError naming part and
    rows."""

    def score(prompts: Sequence[Any], responses: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> Any:
        rows = len(responses)
        try:
            result = function(list(prompts), list(responses), list(meta))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reward '{name}' raised {type(error).__name__}: {error}") from error
        named = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
        values, parts = result if named else (result, {})
        return to_scores(name, values, rows), {
            part: to_scores(f"{name}.{part}", each, rows) for part, each in parts.items()
        }

    return score


def to_scores(name: str, values: Any, rows: int) -> np.ndarray:
    """f32 [rows], or a UserError that says which rows are wrong."""
    try:
        scores = np.asarray(values)
        if scores.dtype.kind in "USO":
            raise TypeError
        scores = scores.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"reward '{name}' must return one number a response; got {type(values).__name__}") from error
    if scores.shape != (rows,):
        raise UserError(f"reward '{name}' returned shape {scores.shape} for {rows} responses; it must return ({rows},)")
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise UserError(
            f"reward '{name}' is not finite in rows {[int(row) for row in bad[:10]]} ({bad.size} of {rows})"
        )
    return scores


def mix(parts: Mapping[str, tuple[Score, float]]) -> Score:
    """Σ weight · part. Every part is reported unweighted under its name, and under name.part where it has parts
    itself."""
    if not parts:
        raise UserError("no reward was given; name at least one reward model or function")
    functions = {name: (checked(name, function), weight) for name, (function, weight) in parts.items()}

    def score(prompts: Sequence[Any], responses: Sequence[str], meta: Sequence[Mapping[str, Any]]) -> Any:
        total = np.zeros(len(responses), np.float32)
        seen: dict[str, np.ndarray] = {}
        for name, (function, weight) in functions.items():
            values, inner = function(prompts, responses, meta)
            total += np.float32(weight) * values
            seen |= {name: values} | {f"{name}.{part}": each for part, each in inner.items()}
        return total, seen

    return score
