"""What a judgement says besides its texts, as further columns of a form: who judged, on what axis, how much it counts.

TRL passes over columns that it does not know, so its forms carry these, and what is written is read back.
"""

import math
from collections.abc import Sequence
from typing import Any

from rlhf_jax.feedback.formats.rows import JsonObject, number

TEXTS = ("axis", "annotator", "item", "split")
NUMBERS = ("weight", "strength", "margin")
PLAIN: JsonObject = {"axis": "overall", "annotator": "", "item": "", "split": "", "weight": 1.0, "strength": None}
"""What a record says that says nothing: no column is written for it."""

COMPARISON = (*TEXTS, *NUMBERS)
RATING = (*TEXTS, "weight")
STEPS = ("axis", "annotator", "split", "weight")
"""Which of them each kind of record has; a step's item is its solution."""


def columns(record: Any, names: Sequence[str]) -> JsonObject:
    """Those of these fields in which the record says something."""
    said = {name: getattr(record, name) for name in names if hasattr(record, name)}
    return {name: value for name, value in said.items() if value != PLAIN.get(name, 0.0)}


def fields(row: JsonObject, names: Sequence[str]) -> JsonObject:
    """Those of these fields that a row has, of the right kind; a column of another kind is the data set's own."""
    found = {name: row[name] for name in names if name in TEXTS and isinstance(row.get(name), str) and row[name]}
    for name in names:
        if name in NUMBERS and (value := _number(row.get(name))) is not None and (name != "weight" or value >= 0):
            found[name] = value
    return found


def _number(value: object) -> int | float | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value if abs(value) < 2**63 and math.isfinite(value) else None
    return number(value)
