"""Files of judgements with who judged: as the file says, as the configuration says, or assumed, and then said aloud."""

from collections.abc import Callable, Sequence
from typing import Any

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import formats, records

ASSUMED = "source_kind_assumed_human"
"""The note of a row that names nobody, under which `feedback.formats` counts it."""
KINDS = ("", *records.SOURCE_KINDS)
"""What `source_kind` may be; empty leaves it to the file."""

Load = Callable[..., tuple[list[Any], formats.Report]]


def read(load: Load, path: str, format: str, source_kind: str = "") -> tuple[list[Any], formats.Report]:
    """The records of a file by one of the `formats.load` functions, its report printed, and a warning where nobody says who
    judged. `source_kind` is for files that do not say; UserError where the file says otherwise."""
    found, told = load(path, format, **({"source_kind": source_kind} if source_kind else {}))
    print(told.text())
    judged = records.mix(found) if source_kind else {}
    others = {kind: count for kind, count in judged.items() if kind != source_kind}
    if others:
        listed = ", ".join(f"{kind} {count}" for kind, count in others.items())
        raise UserError(f"source_kind is {source_kind}, but {path} itself says who judged: {listed}; leave it out")
    if told.notes.get(ASSUMED):
        print(
            f"warning: {path} does not say who judged {told.notes[ASSUMED]} of its rows: TAKEN AS HUMAN; if a model did, or a "
            "simulation, say source_kind: ai or synthetic",
            flush=True,
        )
    return found, told


def mix(found: Sequence[Any], told: formats.Report) -> str:
    """ "human 12, ai 3": who judged these records, with how far that is an assumption."""
    listed = ", ".join(f"{kind} {count}" for kind, count in records.mix(found).items())
    assumed = told.notes.get(ASSUMED, 0)
    return listed + (f" (human assumed in {assumed} rows, which do not say)" if assumed else "")
