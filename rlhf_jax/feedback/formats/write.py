"""Records to a file, and beside it a manifest: what is in it, what was left out, where it came from.

What says who the annotators are (groups, age, e-mail address ...) stays out unless `include_groups` is set: people who
judge have not thereby agreed that their demographics are passed on. A name that is an e-mail address becomes a hash.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.feedback.formats import exports
from rlhf_jax.feedback.formats.exports import Record, Row
from rlhf_jax.feedback.formats.rows import pseudonym

GROUP_FIELDS = frozenset(
    "group groups demographics gender sex race ethnicity age age_group birth_year education country nationality region "
    "language_native native_language religion occupation income politics political_affiliation sexual_orientation "
    "disability marital_status email e_mail first_name last_name full_name username phone address ip ip_address "
    "is_upworker".split()
)
"""Names of fields that describe a person, in lower case; with one of OF_WHOM before them too (and then `name`)."""
OF_WHOM = ("annotator_", "worker_", "rater_", "labeler_", "labeller_", "user_")
CHOICES = ("source_kind", "axis", "annotator", "split", "source")


def write(
    path: str | os.PathLike[str],
    given: Iterable[Record],
    form: str = "raw",
    *,
    where: Mapping[str, Sequence[str]] | None = None,
    include_groups: bool = False,
) -> dict[str, Any]:
    """Write records as JSON lines in a form of `exports.FORMS`, and the manifest to `path`.manifest.json; returns that.

    `where` keeps only records whose field is one of the values given: {"source_kind": ["human"], "axis": ["helpful"]}.
    The manifest has the form, the file's sha256 and bytes, the filter, the counts of rows, of records and of what was
    left out by reason, the fields that the form does not carry or that describe people, the mix of source kinds, the sources
    with licence and sha256, axes, number of annotators, and the versions of the guidelines that were judged by. Raises
    UserError for an unknown form or filter, for records that the form cannot hold, and when no row is left.
    """
    if form not in exports.FORMS:
        raise UserError(f"no form {form!r}; the forms are {', '.join(exports.FORMS)}")
    where = dict(where or {})
    if unknown := sorted(set(where) - set(CHOICES)):
        raise UserError(f"no filter {', '.join(unknown)}; filters are {', '.join(CHOICES)}")
    everything = list(given)
    kept = [r for r in everything if all(getattr(r, name, None) in values for name, values in where.items())]
    rows, left = exports.FORMS[form](kept)
    fields = Counter(name for record in kept for name in exports.lost(record, form))
    if not include_groups:
        rows = [_without_groups(row, fields) for row in rows]
    if not rows:
        why = ", ".join(f"{name} {count}" for name, count in left.items()) or f"filter {where or 'none'}"
        raise UserError(f"{path}: none of {len(everything)} records gives a row of {form} ({why}); nothing is written")
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    judged = [record for record in kept if not isinstance(record, records.Prompt)]
    sourced = [record for record in judged if not isinstance(record, records.Pair)]
    versions = {str(r.meta["guideline_version"]) for r in sourced if "guideline_version" in r.meta}
    manifest: dict[str, Any] = {
        "file": Path(path).name,
        "form": form,
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "rows": len(rows),
        "records": len(kept),
        "filter": {name: list(values) for name, values in where.items()},
        "left_out": dict(Counter(filter=len(everything) - len(kept)) + left),
        "source_kinds": records.mix(judged),
        "sources": records.provenance(sourced),
        "axes": dict(Counter(record.axis for record in kept if hasattr(record, "axis"))),
        "annotators": len({getattr(record, "annotator", "") for record in kept} - {""}),
        "guideline_versions": sorted(versions),
        "include_groups": include_groups,
        "fields_left_out": dict(fields),
    }
    Path(path).write_bytes(content)
    told = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    Path(f"{os.fspath(path)}.manifest.json").write_text(told, encoding="utf-8")
    return manifest


def is_group(name: str) -> bool:
    """Whether a field of this name describes a person."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    bare = next((plain.removeprefix(whom) for whom in OF_WHOM if plain.startswith(whom)), plain)
    return bare in GROUP_FIELDS or (bare == "name" and bare != plain)


def _without_groups(row: Row, left: Counter[str]) -> Row:
    """A copy without fields that describe people, at any depth of `meta`; the row's own form has none such."""
    found: Row = {}
    for name, value in row.items():
        if is_group(str(name)):
            left[str(name)] += 1
        elif name == "annotator" and isinstance(value, str):
            found[name] = pseudonym(value)
        else:
            found[name] = _deep(value, left)
    return found


def _deep(value: Any, left: Counter[str]) -> Any:
    if isinstance(value, dict):
        return _without_groups(value, left)
    if isinstance(value, list | tuple):
        return [_deep(part, left) for part in value]
    return value
