"""The rows of a data set on the Hugging Face hub, streamed through the `datasets` library (the extra "hub").

A data set is named where a file could be: "hub:owner/name:split", with a configuration and a revision where it has
them: "hub:owner/name/config@revision:split". The split is "train" when left out. No code of the data set is run.
"""

import json
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from rlhf_jax.errors import UserError
from rlhf_jax.feedback.formats.tables import Row

FORM = re.compile(
    r"hub:(?P<name>[^/:@\s]+/[^/:@\s]+)(/(?P<config>[^:@\s]+))?(@(?P<revision>[^:\s]+))?(:(?P<split>\S+))?"
)


class Place(NamedTuple):
    """Which rows of which data set."""

    name: str
    config: str | None
    revision: str | None
    split: str


def names(path: str | os.PathLike[str]) -> bool:
    """Whether this names a data set on the hub and no file."""
    return isinstance(path, str) and path.startswith("hub:")


def place(path: str) -> Place:
    """The parts of a name; UserError when it is not of the form that the module tells."""
    found = FORM.fullmatch(path)
    if found is None:
        raise UserError(
            f"{path!r} names no data set; write hub:owner/name:split or hub:owner/name/config@revision:split"
        )
    return Place(found["name"], found["config"], found["revision"], found["split"] or "train")


def rows(path: str) -> Iterator[Row]:
    """The rows, streamed, numbered from 1; UserError when `datasets` is not installed or the data set is not there."""
    where = place(path)
    try:
        import datasets
    except ImportError:
        raise UserError(f'{path}: data sets on the hub need the extra "hub": pip install "rlhf-jax[hub]"') from None
    try:
        found = datasets.load_dataset(
            where.name, where.config, split=where.split, revision=where.revision, streaming=True
        )
        for number, value in enumerate(found, 1):
            yield Row(number, _plain(value))
    except UserError:
        raise
    except Exception as error:  # the library raises errors of many packages: names, network, access, parsing
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path}: the data set cannot be read ({told[:200]})") from None


def _plain(value: Any) -> dict[str, Any]:
    """As JSON would have it: times and other objects become text."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(value), default=str))
    return plain
