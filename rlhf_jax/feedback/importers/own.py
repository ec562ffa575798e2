"""This project's own forms, as `formats.dump` and `formats.write` write them; and rankings.

As in `feedback.importers`: a row -> (records, notes), BadRow for a row that cannot be used. `prompt` may be a plain
string everywhere. The prompt's key is computed anew: a stale one would let a prompt into both parts of a split.
"""

from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.formats import carried
from rlhf_jax.feedback.formats.rows import BadRow, Found, JsonObject, messages, response_notes, rest
from rlhf_jax.feedback.records import SOURCE_KINDS, Comparison, Messages, Rating, as_messages

TEXTS: dict[str, tuple[Any, str]] = dict.fromkeys(
    ("axis", "annotator", "source", "source_kind", "split", "item"), (str, "a text")
)
NUMBER: tuple[Any, str] = (int | float, "a number")
OWN_FIELDS: dict[str, tuple[Any, str]] = {
    **TEXTS,
    "weight": NUMBER,
    "margin": NUMBER,
    "strength": (int | float | None, "a number or null"),
    "meta": (dict, "an object"),
}
RATING_FIELDS: dict[str, tuple[Any, str]] = {
    **TEXTS,
    "response": (str, "a text"),
    "value": NUMBER,
    "weight": NUMBER,
    "scale": (list, "a list of two numbers"),
    "meta": (dict, "an object"),
}


def own(row: JsonObject, *, source: str, source_kind: str) -> Found:
    """A comparison: an object with the fields of `records.Comparison`; `source` and `source_kind` may be missing."""
    fields = _checked(row, Comparison, OWN_FIELDS, "not_a_comparison", source, source_kind)
    for name, kind in (("responses", str), ("ranks", int)):
        if not isinstance(fields.get(name), list) or not all(isinstance(value, kind) for value in fields[name]):
            raise BadRow("not_a_comparison", f"{name} must be a list of {'texts' if kind is str else 'whole numbers'}")
        fields[name] = tuple(fields[name])
    try:
        return [Comparison(**fields)], []
    except UserError as error:
        raise BadRow("not_a_comparison", str(error)) from None


def own_rating(row: JsonObject, *, source: str, source_kind: str) -> tuple[list[Rating], list[str]]:
    """A rating: an object with the fields of `records.Rating`."""
    fields = _checked(row, Rating, RATING_FIELDS, "not_a_rating", source, source_kind)
    missing = [name for name in ("response", "axis", "value", "scale") if name not in fields]
    if missing:
        raise BadRow("not_a_rating", f"no {', '.join(missing)}")
    if len(fields["scale"]) != 2 or not all(isinstance(end, int | float) for end in fields["scale"]):
        raise BadRow("not_a_rating", "scale must be a list of two numbers")
    fields["scale"] = tuple(fields["scale"])
    try:
        return [Rating(**fields)], response_notes([fields["response"]])
    except UserError as error:
        raise BadRow("not_a_rating", str(error)) from None


def ranking(row: JsonObject, *, source: str, source_kind: str) -> Found:
    """{"prompt", "ranking"}: groups of equally good texts, the best group first; a group of one may be a plain text."""
    groups = row.get("ranking")
    if not isinstance(groups, list):
        raise BadRow("ranking_not_a_list")
    listed = [[group] if isinstance(group, str) else group for group in groups]
    if not all(isinstance(group, list) and group and all(isinstance(text, str) for text in group) for group in listed):
        raise BadRow("ranking_not_texts")
    responses = tuple(text for group in listed for text in group)
    ranks = tuple(rank for rank, group in enumerate(listed) for _ in group)
    if len(responses) < 2:
        raise BadRow("fewer_than_2_responses")
    kind = row.get("source_kind", source_kind)
    if kind not in SOURCE_KINDS:
        raise BadRow("unknown_source_kind")
    named = carried.fields(row, carried.COMPARISON)
    meta = rest(row, ("prompt", "ranking", "source_kind", *named))
    found = Comparison(_prompt(row), responses, ranks, source=source, source_kind=str(kind), meta=meta, **named)
    return [found], response_notes(responses)


def _prompt(row: JsonObject) -> Messages:
    return as_messages(row["prompt"]) if isinstance(row.get("prompt"), str) else messages(row, "prompt")[0]


def _checked(
    row: JsonObject, record: Any, kinds: dict[str, tuple[Any, str]], reason: str, source: str, source_kind: str
) -> JsonObject:
    """The row as a record's fields, each of its right kind."""
    fields: JsonObject = {"source": source, "source_kind": source_kind} | row | {"prompt_id": ""}
    unknown = sorted(set(fields) - set(record.__dataclass_fields__))
    if unknown:
        raise BadRow(reason, f"unknown keys {', '.join(unknown)[:80]}; put them into meta")
    for name, (kind, words) in kinds.items():
        if name in fields and not isinstance(fields[name], kind):
            raise BadRow(reason, f"{name} must be {words}")
    fields["prompt"] = _prompt(row)
    return fields
