"""From the store to records (`feedback.records`), and to a file of them with its manifest.

A pair or a ranking becomes one Comparison, a rating one Rating for each axis that was answered. People appear under
their pseudonyms, and what they told about themselves stays in the store unless it is asked for. Simulated annotators'
words are "synthetic" in every export: the kind comes from the store, and cannot be chosen here.
"""

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.formats import write as formats_export
from rlhf_jax.feedback.records import Comparison, Rating, as_messages
from rlhf_jax.feedback.store import writing
from rlhf_jax.feedback.store.add import plain
from rlhf_jax.feedback.store.read import judgements
from rlhf_jax.feedback.store.verdict import ranks_of

COMPARISONS_ONLY = ("trl_explicit", "trl_implicit", "trl_conversational", "ranking")
"""Forms that cannot hold ratings, which are left out of them and counted."""


@dataclass(frozen=True)
class Which:
    """Which judgements to take; None takes all of them."""

    rounds: Sequence[int] | None = None
    source_kinds: Sequence[str] | None = None
    guideline_versions: Sequence[str] | None = None
    selections: Sequence[str] | None = None
    """How the item was chosen: ("random",) for what a reward model may be evaluated on."""
    without_flags: Sequence[str] = ("personal data",)
    """Judgements that carry one of these flags are left out."""
    gold: bool = False
    """Whether hidden test items are taken: everybody judged them, and their answers are known."""
    repeats: bool = False
    """Whether an item that a person judged a second time counts a second time."""


def records(
    con: sqlite3.Connection, which: Which | None = None, *, include_groups: bool = False
) -> tuple[list[Comparison | Rating], Counter[str]]:
    """The records of the judgements that stand, in the order in which they were made, and what was left out and why.

    `meta` has the order shown, what was said in it, the time, flags, rationale, selection, policies, and the versions
    of guidelines and page; with `include_groups` also what people chose to tell about themselves.
    """
    which = which or Which()
    found: list[Comparison | Rating] = []
    left: Counter[str] = Counter()
    for row in judgements(con):
        reason = _left_out(row, which)
        if reason:
            left[reason] += 1
        else:
            found += _records(row, include_groups)
    return found, left


def export(
    con: sqlite3.Connection,
    path: str | os.PathLike[str],
    form: str = "raw",
    *,
    which: Which | None = None,
    include_groups: bool = False,
    now: int | float | None = None,
) -> dict[str, Any]:
    """Write the records in a form of `feedback.exports`, with a manifest beside them; returns the manifest.

    It is that of `formats.write`, with `which` and what it left out; its sha256, filter and number of rows are
    also kept in the store. Raises UserError as that does: an unknown form, or nothing to write.
    """
    which = which or Which()
    chosen, left = records(con, which, include_groups=include_groups)
    if form in COMPARISONS_ONLY:
        left += Counter(rating=sum(isinstance(record, Rating) for record in chosen))
        chosen = [record for record in chosen if isinstance(record, Comparison)]
    if not chosen:
        why = "nobody has judged anything yet: open a link of the page, judge, and export again"
        if +left:
            why = f"none of the {left.total()} judgements counts ({', '.join(f'{name} {n}' for name, n in (+left).items())})"
        raise UserError(f"{path}: {why}; nothing is written")
    manifest = formats_export.write(path, chosen, form, include_groups=include_groups)
    manifest["which"] = asdict(which)
    manifest["left_out"] = {**+left, **manifest["left_out"]}
    told = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    Path(f"{os.fspath(path)}.manifest.json").write_text(told, encoding="utf-8")
    stamp = time.time() if now is None else now
    filter_text = plain({"form": form, "include_groups": include_groups, **asdict(which)}, "which")
    with writing(con):
        con.execute(
            "INSERT INTO export(path, filter, sha256, n_rows, created_at) VALUES (?, ?, ?, ?, ?)",
            (str(Path(path)), filter_text, manifest["sha256"], manifest["rows"], stamp),
        )
    return manifest


def _left_out(row: dict[str, Any], which: Which) -> str:
    """Why a judgement is not taken; "" where it is."""
    chosen = (
        ("round", which.rounds, row["round"]),
        ("source_kind", which.source_kinds, row["source_kind"]),
        ("guideline_version", which.guideline_versions, row["guideline_version"]),
        ("selection", which.selections, row["selection"]),
    )
    for name, wanted, value in chosen:
        if wanted is not None and value not in wanted:
            return name
    if row["skipped"]:
        return "skipped"
    if row["gold"] is not None and not which.gold:
        return "gold"
    if row["repeat_of"] is not None and not which.repeats:
        return "repeat"
    return next((f"flagged {flag}" for flag in which.without_flags if flag in row["flags"]), "")


def _records(row: dict[str, Any], include_groups: bool) -> list[Comparison | Rating]:
    meta = {
        name: row[name]
        for name in ("shown", "said", "ms", "flags", "rationale", "selection", "score", "round", "policies")
    }
    meta |= {name: row[name] for name in ("guideline_version", "ui_version", "created_at")}
    meta |= {"both_bad": True} if row["both_bad"] else {}
    meta |= {"groups": row["groups"]} if include_groups and row["groups"] is not None else {}
    prompt, item, who, kind = as_messages(row["prompt"]), str(row["item"]), row["annotator"], row["source_kind"]
    if row["kind"] == "rate":
        ratings, scales = row["verdict"]["ratings"], row["verdict"]["scales"]
        return [
            Rating(
                prompt,
                row["responses"][0],
                axis,
                value,
                (scales[axis][0], scales[axis][1]),
                source_kind=kind,
                annotator=who,
                source=row["source"],
                item=item,
                meta=dict(meta),
            )
            for axis, value in ratings.items()
        ]
    ranks = ranks_of(row["kind"], row["verdict"])
    assert ranks is not None  # skips are left out before
    strength = row["strength"]
    return [
        Comparison(
            prompt,
            tuple(row["responses"]),
            ranks,
            source_kind=kind,
            axis=row["axes"][0],
            annotator=who,
            strength=None if strength is None else abs(strength),
            source=row["source"],
            item=item,
            meta=meta,
        )
    ]
