"""A file's rows through an importer: which form they have, what each gave, and what became of those that gave nothing."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.formats import hub as tables_hub
from rlhf_jax.feedback.formats import known as formats_known
from rlhf_jax.feedback.formats import rows, tables
from rlhf_jax.feedback.records import Prompt

LOOKED_AT = 100
EXAMPLES = 3

Reader = Callable[[dict[str, Any]], tuple[list[Any], list[str]]]
Location = str | os.PathLike[str]


@dataclass(frozen=True)
class Report:
    """What became of a file's rows: read = kept + the sum of dropped."""

    path: str
    format: str
    sha256: str
    """Of the file as it is on disk."""
    read: int
    """Rows in the file (lines of JSON or CSV, items of an array); blank lines are none."""
    kept: int
    """Rows that gave at least one record."""
    records: int
    dropped: dict[str, int]
    """Rows that gave none, by reason."""
    notes: dict[str, int]
    """Oddities in rows that were kept, and how often each was met."""
    examples: dict[str, list[str]]
    """Where the first rows of each reason and note are, as "line 7" or "item 7"."""
    licence: str = ""
    """What the publisher states for the set known in this form, or what the caller said; empty when unknown."""

    def text(self) -> str:
        """One paragraph to print."""
        usual = formats_known.FORMS[self.format].licence if self.format in formats_known.FORMS else ""
        licence = f"; the set published in this form is under {usual}" if usual else ""
        if self.licence != usual:
            licence = f"; licence {self.licence}" if self.licence else ""
        parts = [
            f"{self.path} ({self.format}{licence}): {self.read} rows read, {self.kept} kept as {self.records} records."
        ]
        for title, counts in (("Dropped", self.dropped), ("Noted", self.notes)):
            listed = "; ".join(f"{name} {count} ({', '.join(self.examples[name])})" for name, count in counts.items())
            parts.append(f"{title}: {listed or 'nothing'}.")
        return " ".join(parts)


def recognised(
    path: Location, format: str, known: Mapping[str, str], max_line: int
) -> tuple[str, Iterator[tables.Row]]:
    """The form of a file's rows (what most of the first hundred look like) and all its rows.

    Raises UserError for an unknown form, an empty or unreadable file, and rows that could be of several forms.
    """
    plain = next(name for name in ("trl_prompt", "trl_prompt_completion", "trl_explicit", "rating") if name in known)
    listed = f"{', '.join(known)}; the plainest is {plain} ({known[plain]})"
    if format != "auto" and format not in known:
        raise UserError(f"no format {format!r}; the formats are auto, {listed}")
    lines = opened(path, max_line)
    head = list(islice(lines, LOOKED_AT))
    if not head:
        raise UserError(f"{path} has no rows; expected one of {listed}")
    if format != "auto":
        return format, chain(head, lines)
    values = [row.value for row in head if row.value is not None]
    while not values and (row := next(lines, None)) is not None:  # a damaged beginning is no damaged file
        head.append(row)
        values = [row.value for row in [row] if row.value is not None]
    lines = chain(head, lines)
    if not values:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(row.reason for row in head).items())
        raise UserError(f"{path}: none of its {len(head)} rows can be read ({reasons}); expected JSON objects or CSV")
    counts = Counter(name for value in values for name in sorted(formats_known.recognise(value, known)))
    if counts["comparison"]:  # a file of our own may hold both; who asks for ratings asks for those alone
        del counts["rating"]
    best = (+counts).most_common(2)
    seen = ", ".join(sorted({" ".join(key.split())[:40] for value in values for key in value})[:20]) or "none"
    elsewhere = Counter(name for value in values for name in sorted(formats_known.recognise(value)))
    if not best and elsewhere:
        name = elsewhere.most_common(1)[0][0]
        raise UserError(f"{path} is a {name} file, which does not give what is asked; the formats that do are {listed}")
    if not best:
        raise UserError(f"{path}: unknown format, its keys are {seen}; the formats are {listed}")
    if len(best) == 2 and best[0][1] == best[1][1]:
        names = " or ".join(name for name, count in counts.items() if count == best[0][1])
        raise UserError(f"{path}: rows (keys {seen}) could be {names}; name the format, one of {listed}")
    return best[0][0], lines


def opened(path: Location, max_line: int = tables.MAX_LINE) -> Iterator[tables.Row]:
    """The rows of a file, or of a data set on the Hugging Face hub ("hub:owner/name:split")."""
    return tables_hub.rows(str(path)) if tables_hub.names(path) else tables.rows(Path(path), max_line=max_line)


def collect(
    path: Location, name: str, lines: Iterable[tables.Row], reader: Reader, *, licence: str | None = None
) -> tuple[list[Any], Report]:
    """Every row through the importer; the records, with the file's licence and sha256 in `meta["provenance"]`, and
    the report. Provenance that a row brings stays (prompts have none: nobody judged them). Raises UserError when no
    row gives a record.
    """
    hub = tables_hub.names(path)
    unit = "row" if hub else "item" if tables.kind_of(Path(path)) == "array" else "line"
    licence = formats_known.FORMS[name].licence if licence is None else licence
    provenance = {"licence": licence, "sha256": "" if hub else tables.sha256(Path(path))}
    seen = hashlib.sha256()
    records: list[Any] = []
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    read = 0
    for row in lines:
        read += 1
        found: list[Any] = []
        notes: list[str] = []
        reason, detail = row.reason, row.detail
        if hub:
            seen.update(json.dumps(row.value, sort_keys=True).encode() + b"\n")
        if row.value is not None:
            try:
                found, notes = reader(row.value)
            except rows.BadRow as bad:
                reason, detail = bad.reason, bad.detail
            except UserError as error:
                raise UserError(f"{path}, {unit} {row.number}: {error}") from None
        if found and detail:
            notes = [*notes, "row_of_many_lines"]
        for record in found:
            if not isinstance(record, Prompt):
                record.meta.setdefault("provenance", provenance)
        records += found
        dropped.update([reason] if reason else [])
        noted.update(notes)
        for label in dict.fromkeys([reason] if reason else notes):
            places = examples.setdefault(label, [])
            if len(places) < EXAMPLES:
                places.append(f"{unit} {row.number}" + (f": {detail}" if detail else ""))
    if hub:
        provenance["sha256"] = seen.hexdigest()
    report = Report(
        path=str(path),
        format=name,
        sha256=provenance["sha256"],
        read=read,
        kept=read - dropped.total(),
        records=len(records),
        dropped=dict(dropped.most_common()),
        notes=dict(noted.most_common()),
        examples=examples,
        licence=licence,
    )
    if not records:
        raise UserError(f"{path}: no usable row. {report.text()}")
    return records, report
