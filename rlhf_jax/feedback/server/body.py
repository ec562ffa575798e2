"""What a request may say: JSON of known fields, each within its limits. Pure functions of bytes."""

import json
import math
from collections.abc import Sequence
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.store.add import plain
from rlhf_jax.feedback.store.judge import Words

MAX_DRAFT = 8 * 1024
MAX_RATIONALE = 4000
MAX_MS = 24 * 60 * 60 * 1000
MAX_ID = 2**53
"""The largest whole number that JavaScript holds exactly."""


def fields(body: bytes, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON object in `body`, with all required fields and no unknown ones. Raises UserError for anything else."""
    try:
        given = json.loads(body.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise UserError(f"the body is not JSON: {str(error)[:100]}") from None
    if not isinstance(given, dict):
        raise UserError("the body must be a JSON object")
    missing = [name for name in required if name not in given]
    unknown = sorted(given.keys() - {*required, *optional})
    if missing or unknown:
        wrong = [
            f"{what} {', '.join(names)}"[:200]
            for what, names in (("missing:", missing), ("unknown:", unknown))
            if names
        ]
        raise UserError("; ".join(wrong))
    return given


def number_of(given: dict[str, Any], name: str) -> int:
    """The field `name`: the number of an assignment or of a judgement."""
    number = given[name]
    if type(number) is not int or not 0 < number <= MAX_ID:
        raise UserError(f'"{name}" must be the number of one, a whole number from 1 on')
    return number


def words_of(given: dict[str, Any], flags: Sequence[str]) -> Words:
    """The judgement in a body; its verdict is checked against the item later (`store.verdict.canonical`)."""
    rationale = given.get("rationale", "")
    if not isinstance(rationale, str) or len(rationale) > MAX_RATIONALE:
        raise UserError(f'"rationale" must be text of at most {MAX_RATIONALE} characters')
    raised = given.get("flags", [])
    if not isinstance(raised, list) or not all(isinstance(flag, str) and flag in flags for flag in raised):
        raise UserError(f'"flags" must be a list of some of: {", ".join(flags)}')
    ms = given.get("ms", 0)
    if not isinstance(ms, int | float) or isinstance(ms, bool) or not math.isfinite(ms) or not 0 <= ms <= MAX_MS:
        raise UserError(f'"ms" must be a number of milliseconds from 0 to {MAX_MS}')
    return Words(given["verdict"], tuple(dict.fromkeys(raised)), plain_text(rationale), round(ms))


def draft_of(given: dict[str, Any]) -> Any:
    """The field "draft": any JSON of at most `MAX_DRAFT` bytes."""
    try:
        size = len(plain(given["draft"], "draft").encode())
    except RecursionError:
        raise UserError('"draft" is nested too deeply') from None
    if size > MAX_DRAFT:
        raise UserError(f'"draft" has at most {MAX_DRAFT} bytes, got {size}')
    return given["draft"]


def plain_text(text: str) -> str:
    """The text, which must be valid Unicode: half a surrogate pair cannot be stored."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError("text must be valid Unicode; it holds half a surrogate pair") from None
    return text


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")
