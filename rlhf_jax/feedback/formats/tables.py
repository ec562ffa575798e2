"""The rows of a data file: JSON array, JSON lines or CSV, plain or gzipped, with or without a byte-order mark.

Reading never guesses and never stops at a bad row: a row that cannot be read comes back with the reason in place of
its value. Only a file that cannot be read at all (missing, truncated gzip, broken JSON array) is an error. Nothing
but the standard library.
"""

import codecs
import csv
import gzip
import hashlib
import io
import json
import re
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_jax.errors import UserError

MAX_LINE = 16 * 2**20
MAX_ARRAY = 2**30
LONG = 100
"""Lines of a CSV record beyond which it is told, and read again line by line where its columns are not the header's."""
REREAD = 2**28
"""Bytes of a CSV file that are read again after broken records; further ones take the lines that they swallowed along."""
UNDECODED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Row:
    """One row: its place (line number, or 1-based item number in a JSON array), and its value or why it has none."""

    number: int
    value: dict[str, Any] | None
    reason: str = ""
    detail: str = ""
    """A word on where, beside the number: how many lines a CSV record took."""


Line = tuple[int, bytes | None]


def kind_of(path: str | Path) -> str:
    """Whether a file is an "array", "lines" or "csv": by its name; .json and unknown names by the first character."""
    path = Path(path)
    name = path.name.lower().removesuffix(".gz")
    with _opened(path) as stream:
        head = stream.read(4096).removeprefix(codecs.BOM_UTF8)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16; save it as UTF-8")
    if name.endswith((".jsonl", ".ndjson")):
        return "lines"
    if name.endswith(".csv"):
        return "csv"
    start = head.lstrip()[:1]
    if start == b"[":
        return "array"
    if start == b"{" or name.endswith(".json") or not start:
        return "lines"
    raise UserError(
        f"{path}: cannot tell what kind of file this is; rows are read from JSON lines (.jsonl), a JSON array (.json) or CSV "
        'with a header (.csv), each also with .gz; a prompt is the line {"prompt": "Why?"}'
    )


def rows(path: str | Path, *, max_line: int = MAX_LINE, max_array: int = MAX_ARRAY) -> Iterator[Row]:
    """The rows of a file, in order, read as a stream (a JSON array is read whole).

    Reasons of unreadable rows: line_too_long (above `max_line` bytes), not_utf8, broken_json, not_an_object,
    lone_surrogate, broken_csv, inside_broken_csv, wrong_number_of_columns. Blank lines are no rows. A CSV record that is
    broken, by a quote that is never closed for example, costs its first line: reading goes on with its second, and the
    row's `detail` says so. A `.json` file that starts with an object is read as lines, or as one row when the whole of it
    is one object. Raises UserError for a file that cannot be read, or for a JSON array that is broken or above `max_array`
    bytes.
    """
    path = Path(path)
    kind = kind_of(path)
    with _opened(path) as stream:
        if kind == "array":
            yield from _array(path, stream, max_array)
        elif kind == "csv":
            yield from _csv(path, stream, max_line)
        elif (whole := _single_object(path, max_line)) is not None:
            yield _row(1, whole)
        else:
            for number, line in _lines(stream, max_line):
                if line is None:
                    yield Row(number, None, "line_too_long")
                elif line.strip():
                    yield _json_row(number, line)


def sha256(path: str | Path) -> str:
    """sha256 (hex) of the file's bytes as they are on disk."""
    digest = hashlib.sha256()
    with _opened(Path(path), unzip=False) as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _opened(path: Path, unzip: bool = True) -> Iterator[io.BufferedIOBase]:
    try:
        stream = open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"cannot open {path}: {error}") from None
    with stream:
        zipped = unzip and stream.read(2) == b"\x1f\x8b"  # by content: downloads lose or gain the .gz ending
        stream.seek(0)
        try:
            yield gzip.GzipFile(fileobj=stream) if zipped else stream
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} is a truncated or damaged gzip file ({error}); copy it again") from None


def _lines(stream: io.BufferedIOBase, limit: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines without the byte-order mark; None stands for one longer than `limit`, never held in memory."""
    number = 0
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            while not line.endswith(b"\n") and (line := stream.readline(limit)):
                pass
            yield number, None
        else:
            yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _json_row(number: int, line: bytes) -> Row:
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Row(number, None, "not_utf8")
    try:
        return _row(number, json.loads(text))
    except (ValueError, RecursionError):
        return Row(number, None, "broken_json")


def _row(number: int, value: object) -> Row:
    if not isinstance(value, dict):
        return Row(number, None, "not_an_object")
    try:  # JSON can spell half a surrogate pair, which no tokenizer or file takes
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Row(number, None, "lone_surrogate")
    except RecursionError:
        return Row(number, None, "broken_json")
    return Row(number, value)


def _array(path: Path, stream: io.BufferedIOBase, limit: int) -> Iterator[Row]:
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise UserError(f"{path}: a JSON array above {limit} bytes is not read whole; write it as JSON lines (.jsonl)")
    try:
        values = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON that can be read: {error}") from None
    for number, value in enumerate(values, 1):
        yield _row(number, value)


def _single_object(path: Path, limit: int) -> dict[str, Any] | None:
    """The object that a pretty-printed .json file holds, if that is what it is."""
    if not path.name.lower().removesuffix(".gz").endswith(".json"):
        return None
    with _opened(path) as stream:
        content = stream.read(limit + 1)
    try:
        value = json.loads(content.decode("utf-8-sig")) if len(content) <= limit else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _csv(path: Path, stream: io.BufferedIOBase, limit: int) -> Iterator[Row]:
    source = _lines(stream, limit)
    again: deque[Line] = deque()  # lines of a broken record, to be read once more
    taken: list[Line] = []  # those of the record being read
    size, spare = 0, REREAD

    def text() -> Iterator[str]:
        nonlocal size
        while (line := again.popleft() if again else next(source, None)) is not None:
            taken.append(line)
            size += len(line[1] or b"")
            if size > limit and len(taken) > 1:
                raise csv.Error("a record above the limit")
            if line[1] is not None:
                yield line[1].decode(errors="surrogateescape")  # so that one bad byte costs its own row only

    reader = csv.reader(text(), strict=True)
    header: list[str] | None = None
    while True:
        taken.clear()
        size = 0
        try:
            cells, reason = _next(reader, limit), ""
        except csv.Error:
            cells, reason = [], "broken_csv"
            reader = csv.reader(text(), strict=True)
        if header is not None and cells and len(cells) != len(header):
            reason = "wrong_number_of_columns"
        elif cells and any(UNDECODED.search(cell) for cell in cells):
            reason = "not_utf8"
        lines = [number for number, line in taken if line is not None]
        detail, inside = "", []
        if len(lines) > 1 and (reason or len(lines) > LONG):
            detail = f"{len(lines)} lines, to line {lines[-1]}"
            if reason == "broken_csv" or (reason and len(lines) > LONG):  # an open quote swallows rows that are good
                first = [number for number, _ in taken].index(lines[0]) + 1
                inside = taken[first:]
                del taken[first:]
                if (swallowed := sum(len(line or b"") for _, line in inside)) <= spare:
                    spare -= swallowed
                    again.extendleft(reversed(inside))
                    detail += f"; read on from line {inside[0][0]}"
                    inside = []
                    reader = csv.reader(text(), strict=True)
        yield from (Row(number, None, "line_too_long") for number, line in taken if line is None)
        if cells is None:
            return
        if not cells and not reason:
            continue
        if header is None:
            header = cells
            if reason or len(set(header)) < len(header):
                raise UserError(f"{path}: the first line must name each column once, got {str(header)[:200]}")
            continue
        yield Row(lines[0], None if reason else dict(zip(header, cells, strict=True)), reason, detail)
        for number, line in inside:
            yield Row(number, None, "line_too_long" if line is None else "inside_broken_csv")


def _next(reader: Iterator[list[str]], limit: int) -> list[str] | None:
    """The next CSV record, None at the end. The csv module's field limit is global and small: raised for this call."""
    before = csv.field_size_limit(limit)
    try:
        return next(reader, None)
    finally:
        csv.field_size_limit(before)
