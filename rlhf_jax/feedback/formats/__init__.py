"""Data files in, records out: `load` (comparisons), `load_ratings`, `load_prompts`, `load_demonstrations`; and what
became of each row.

Each of them reads a JSON array, JSON lines or CSV, gzipped or not (`feedback.tables`), or a data set on the Hugging
Face hub ("hub:nvidia/HelpSteer2:train", `feedback.formats.hub`). The form of the rows is recognised by their keys, or
named; `formats.known.FORMS` lists the forms. What gives what:

    comparisons         forms of judged sets of responses; of ratings, those of two or more responses to one prompt
    ratings             forms in which responses were rated one by one
    demonstrations      trl_prompt_completion, trl_messages; of judgements, the best response of each item
    prompts             trl_prompt, trl_messages; of judgements, each prompt once

A row that cannot be used is dropped and counted by reason. UserError is raised only when nothing can be used (no such
file, an empty or unreadable one, an unknown form, no usable row), or when a rating's axis is not mapped.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import axes, ratings
from rlhf_jax.feedback.formats import hub as tables_hub
from rlhf_jax.feedback.formats import tables
from rlhf_jax.feedback.formats.known import COMPARISON_KEYS, DEMONSTRATION_KEYS, FORMS, PROMPT_KEYS, RATING_KEYS
from rlhf_jax.feedback.formats.known import recognise as recognise
from rlhf_jax.feedback.formats.read import Location, Reader, Report, collect, recognised
from rlhf_jax.feedback.records import SOURCE_KINDS, Comparison, Demonstration, Prompt, Rating, best_responses


def load(
    path: Location,
    format: str = "auto",
    *,
    source_kind: str | None = None,
    synthetic: str = "keep",
    licence: str | None = None,
    unmapped: str = "refuse",
    max_line: int = tables.MAX_LINE,
) -> tuple[list[Comparison], Report]:
    """The comparisons of a file and the report of its rows.

    `source_kind` says who judged ("human", "ai", "synthetic") where neither the format nor a `source_kind` column
    does (trl_*, comparison, rating, ranking); left out, "human" is assumed and noted. `synthetic` ("keep" or "drop") is
    about messages that a model wrote (oasst). `licence` stands in for the one that the published set is known by.
    `unmapped` is as in `load_ratings`. Lines above `max_line` bytes are dropped. Raises UserError as the module says.
    """
    name, rows = recognised(path, format, COMPARISON_KEYS, max_line)
    return _comparisons(path, name, rows, source_kind, synthetic, licence, unmapped)


def load_ratings(
    path: Location,
    format: str = "auto",
    *,
    source_kind: str | None = None,
    synthetic: str = "keep",
    licence: str | None = None,
    unmapped: str = "refuse",
    max_line: int = tables.MAX_LINE,
) -> tuple[list[Rating], Report]:
    """The ratings of a file, on our axes (`feedback.axes`), and the report of its rows.

    An axis that the table does not map raises UserError; unmapped="keep" keeps it under its own name instead.
    Other keywords and errors as for `load`.
    """
    name, rows = recognised(path, format, RATING_KEYS, max_line)
    return _ratings(path, name, rows, source_kind, synthetic, licence, unmapped)


def load_demonstrations(
    path: Location,
    format: str = "auto",
    *,
    source_kind: str | None = None,
    synthetic: str = "keep",
    licence: str | None = None,
    max_line: int = tables.MAX_LINE,
) -> tuple[list[Demonstration], Report]:
    """Prompts with the response to imitate; of judgements, the best response of each item that has a single best.

    Of a file with several axes, overall says what is best; where it has none, helpful; else every axis by itself.
    Keywords and errors as for `load`; report.kept then counts the rows of judgements that could be read.
    """
    name, rows = recognised(path, format, DEMONSTRATION_KEYS, max_line)
    form = FORMS[name]
    if form.demonstrations is None:
        found, report = _comparisons(path, name, rows, source_kind, synthetic, licence, "keep")
        told = {comparison.axis for comparison in found}
        decides = next((axis for axis in ("overall", "helpful") if axis in told), None)
        best = best_responses(c for c in found if decides in (None, c.axis))
        if not best:
            raise UserError(f"{path}: no item has a single best response to imitate. {report.text()}")
        return best, replace(report, records=len(best))
    reader = _reader(path, name, form.demonstrations, source_kind, synthetic)
    return collect(path, name, rows, reader, licence=licence)


def load_prompts(
    path: Location, format: str = "auto", *, synthetic: str = "keep", max_line: int = tables.MAX_LINE
) -> tuple[list[Prompt], Report]:
    """Prompts to sample from, with the file's other columns in `meta`.

    A file of judgements gives each of its prompts once; rows of the other forms are kept as often as they occur.
    Errors as for `load`.
    """
    name, rows = recognised(path, format, PROMPT_KEYS, max_line)
    form = FORMS[name]
    if form.prompts is not None:
        return collect(path, name, rows, partial(form.prompts, source=_source(path, name)))
    judged: Any = _ratings if form.comparisons is None else _comparisons
    found, report = judged(path, name, rows, "human", synthetic, None, "keep")  # nobody judged a prompt: no note
    first = {record.prompt_id: record for record in reversed(found)}
    unique = [
        Prompt(record.prompt, source=record.source, prompt_id=record.prompt_id, meta=_columns(record.meta))
        for record in (first[key] for key in dict.fromkeys(record.prompt_id for record in found))
    ]
    return unique, replace(report, records=len(unique))


def dump(path: Location, records: Iterable[Comparison | Rating]) -> None:
    """Write comparisons or ratings as JSON lines, which `load` or `load_ratings` reads back to equal ones.

    `formats.write` adds a manifest, and leaves out what says who the annotators are.
    """
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)


def _comparisons(
    path: Location,
    name: str,
    rows: Iterator[tables.Row],
    source_kind: str | None,
    synthetic: str,
    licence: str | None,
    unmapped: str,
) -> tuple[list[Comparison], Report]:
    form = FORMS[name]
    if form.comparisons is not None:
        return collect(path, name, rows, _reader(path, name, form.comparisons, source_kind, synthetic), licence=licence)
    rated, report = _ratings(path, name, rows, source_kind, synthetic, licence, unmapped)
    found = ratings.comparisons(rated)
    if not found:
        raise UserError(
            f"{path}: no prompt has two responses that one annotator rated on one axis (not counting the axis other). "
            f"{report.text()}"
        )
    return found, replace(report, records=len(found))


def _ratings(
    path: Location,
    name: str,
    rows: Iterator[tables.Row],
    source_kind: str | None,
    synthetic: str,
    licence: str | None,
    unmapped: str,
) -> tuple[list[Rating], Report]:
    if unmapped not in ("refuse", "keep"):
        raise UserError(f'unmapped must be "refuse" or "keep", got {unmapped!r}')
    importer = FORMS[name].ratings
    if importer is None:
        raise UserError(f"{path}: a {name} file has no ratings; read it with load")
    read = _reader(path, name, importer, source_kind, synthetic)

    def mapped(row: dict[str, Any]) -> tuple[list[Any], list[str]]:
        found, notes = read(row)
        return [axes.ours(name, rating, keep=unmapped == "keep") for rating in found], notes

    return collect(path, name, rows, mapped, licence=licence)


def _reader(path: Location, name: str, importer: Any, source_kind: str | None, synthetic: str) -> Reader:
    """The importer with what its form asks for. Who judged is the kind given, else "human", noted for each such row."""
    if source_kind not in (None, *SOURCE_KINDS):
        raise UserError(f"source_kind is one of {', '.join(SOURCE_KINDS)}, got {source_kind!r}")
    if synthetic not in ("keep", "drop"):
        raise UserError(f'synthetic must be "keep" or "drop", got {synthetic!r}')
    form = FORMS[name]
    read = partial(importer, source=_source(path, name))
    if form.asks_synthetic:
        return partial(read, synthetic=synthetic)
    if not form.asks_kind:
        return read

    def with_kind(row: dict[str, Any]) -> tuple[list[Any], list[str]]:
        found, notes = read(row, source_kind=source_kind or "human")
        assumed = source_kind is None and "source_kind" not in row
        return found, notes + ["source_kind_assumed_human"] * assumed

    return with_kind


def _source(path: Location, name: str) -> str:
    return f"{name}:{os.fspath(path).removeprefix('hub:') if tables_hub.names(path) else Path(path).name}"


def _columns(meta: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in meta.items() if key != "provenance"}
