"""Reading one row of a data file: what is under a key, or BadRow with the reason why the row cannot be used.

Pure, and shared by every importer. A reason or note is a short name, under which `feedback.formats` counts it.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_jax.feedback.records import ROLES, Comparison, Message, Messages

JsonObject = dict[str, Any]
Found = tuple[list[Comparison], list[str]]

FIRST, SECOND, TIE = (0, 1), (1, 0), (0, 0)
"""The ranks of two responses of which the first is better, the second is, neither is."""


class BadRow(Exception):
    """A row that cannot be used: the reason under which it is counted, and a word on this row where that helps."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def user(said: str) -> Messages:
    """A prompt of one user message; raises BadRow when it is blank."""
    if not said.strip():
        raise BadRow("empty_prompt")
    return ({"role": "user", "content": said},)


def rest(row: JsonObject, read: Iterable[str]) -> JsonObject:
    """The columns that an importer did not read: the record's `meta`."""
    return {key: value for key, value in row.items() if key not in set(read)}


def two(
    row: JsonObject,
    prompt: Messages,
    keys: tuple[str, str],
    ranks: tuple[int, int],
    *,
    read: Iterable[str],
    **fields: Any,
) -> Found:
    """The comparison of the two texts under `keys`, with all columns but these and `read` in meta; and notes on them."""
    responses = (text(row, keys[0]), text(row, keys[1]))
    meta = fields.pop("meta", {}) | rest(row, {*keys, *read})
    return [Comparison(prompt, responses, ranks, meta=meta, **fields)], response_notes(responses)


def signed(value: object, low: int, high: int) -> int:
    """A signed strength, a whole number from low to high; raises BadRow for anything else."""
    found = whole_number(value)
    if found is None or not low <= found <= high:
        raise BadRow("bad_strength", f"a whole number from {low} to {high}, got {str(value)[:40]}")
    return found


def by_sign(strength: int | float) -> tuple[int, int]:
    """Ranks by the sign convention of HelpSteer: below 0 the first response is better, above 0 the second, 0 a tie."""
    return FIRST if strength < 0 else SECOND if strength > 0 else TIE


def number(value: object) -> float | None:
    """A finite number, also when written as text (CSV); None for anything else, booleans among them."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def boolean(value: object) -> bool | None:
    """True or False, also when written as text or as 1 and 0 (CSV); None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if type(value) is bool or (type(value) is int and value in (0, 1)) else None


def name_of(value: object) -> str:
    """A name or an id as text; empty where there is none."""
    return "" if value is None or isinstance(value, bool | dict | list | float) else str(value).strip()


def pseudonym(name: str) -> str:
    """The name, or a hash of it where it is an e-mail address."""
    return "annotator " + hashlib.sha256(name.encode()).hexdigest()[:12] if "@" in name else name


def text(row: JsonObject, key: str) -> str:
    """The text under a key; raises BadRow when it is missing or something else."""
    if key not in row:
        raise BadRow(f"no_{key}")
    if not isinstance(row[key], str):
        raise BadRow(f"{key}_not_text")
    return str(row[key])


def whole_number(value: object) -> int | None:
    """An int, also when written as "2" or 2.0 (CSV, pandas); None for anything else, booleans among them."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,15}(\.0*)?\s*", value):
        return int(float(value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int else None


def response_notes(responses: Sequence[str]) -> list[str]:
    """What to note of a set of responses: an empty one, or two that are the same."""
    empty = any(not response.strip() for response in responses)
    return ["empty_response"] * empty + ["identical_responses"] * (len(set(responses)) < len(responses))


def messages(row: JsonObject, key: str) -> tuple[Messages, list[str]]:
    """The messages under a key, reduced to role and text content; other fields (a name, an id) are noted."""
    given = row.get(key)
    if key not in row:
        raise BadRow(f"no_{key}")
    if not isinstance(given, list):
        raise BadRow(f"{key}_not_messages")
    if not given:
        raise BadRow(f"{key}_empty")
    found: list[Message] = []
    ignored = False
    for message in given:
        if not isinstance(message, dict):
            raise BadRow(f"{key}_not_messages")
        if message.get("role") not in ROLES or (message["role"] == "text" and len(given) > 1):
            raise BadRow("unknown_role")
        if not isinstance(message.get("content"), str):
            raise BadRow("content_not_text")
        ignored = ignored or any(
            value is not None for name, value in message.items() if name not in ("role", "content")
        )
        found.append({"role": message["role"], "content": message["content"]})
    return tuple(found), ["message_fields_ignored"] * ignored
