"""The files of a Hugging Face model: a folder of JSON and safetensors. Nothing that can carry code is ever opened."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from rlhf_jax.errors import UserError

CONFIG, GENERATION = "config.json", "generation_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""The element types that are read, as safetensors and as NumPy (with ml_dtypes) call them."""

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "sentencepiece.bpe.model", "merges.txt", "vocab.txt"]
UNWANTED = ["*/*", "consolidated*.safetensors"]
"""What is fetched from the hub, and what is not: weights in other formats and for other programs lie in folders, or beside the
model under a name of their own, as Mistral's do, which are all of its weights a second time."""


def locate(path: str | os.PathLike, revision: str | None = None) -> Path:
    """The local folder of a model: `path` itself, or a snapshot of the hub repository of that name at `revision` (a
    branch, tag or commit). Only JSON, safetensors and tokenizer files are fetched."""
    folder = Path(path)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"revision {revision!r} goes with a hub name, and {path} is a local folder")
        return folder
    if folder.exists():
        raise UserError(f"{path} is a file; a folder with {CONFIG} and {WEIGHTS} is needed")
    if not HUB_NAME.fullmatch(str(path)):
        raise UserError(f"{path}: no such folder, and no hub name (owner/name) either")
    import huggingface_hub  # here, because a local folder needs no network client

    try:
        found = huggingface_hub.snapshot_download(
            str(path), revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED
        )
    except Exception as error:  # the client raises its own, httpx's and the system's errors
        raise UserError(f"{path}: no such folder, and the hub did not deliver it: {first_line(error)}") from error
    return Path(found)


def inside(folder: Path, name: str) -> Path:
    """The file `name` of the folder. Raises UserError unless it is a bare name that resolves inside the folder (or, in
    the hub's cache, where a snapshot is made of links, inside that model's part of the cache)."""
    if name != os.path.basename(name) or "\\" in name or name in ("", ".", ".."):
        raise UserError(f"{folder}: {name!r} is not a bare file name; the files of a model lie in its own folder")
    root = folder.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    if not (folder / name).resolve().is_relative_to(root):
        raise UserError(f"{folder}: {name} is a link out of the folder; the files of a model lie in its own folder")
    return folder / name


def read_text(folder: Path, name: str) -> str | None:
    """The text of a file of the folder, or None where there is none."""
    file = inside(folder, name)
    try:
        return file.read_bytes().decode() if file.is_file() else None  # bytes: line ends come back as they are
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text: {first_line(error)}") from error


def parse(text: str, where: str | Path) -> dict[str, Any]:
    """A JSON object. Raises UserError for anything else."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {first_line(error)}") from error
    if not isinstance(document, dict):
        raise UserError(f"{where}: holds {type(document).__name__}; a JSON object is needed")
    return document


def dumps(document: Mapping[str, Any]) -> str:
    """JSON as transformers writes it, so that an unchanged document comes back byte for byte."""
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Header:
    """Where a tensor lies and what it is, without its numbers."""

    file: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Weights:
    """What the safetensors files of a folder say of their tensors, and of themselves."""

    folder: Path
    headers: dict[str, Header]
    files: dict[str, dict[str, str] | None]
    """The metadata of each file."""
    index: dict[str, Any] | None
    """The index's own metadata, where the weights are sharded."""


def open_weights(folder: Path) -> Weights:
    """The headers of model.safetensors, or of the shards that model.safetensors.index.json names.

    Raises UserError for a missing, truncated or inconsistent file, and for a shard outside the folder.
    """
    placed: dict[str, str] | None = None
    index = None
    names = {WEIGHTS}
    if not inside(folder, WEIGHTS).is_file():
        placed, index = _read_index(folder)
        names = {inside(folder, name).name for name in placed.values()}
    files: dict[str, dict[str, str] | None] = {}
    headers: dict[str, Header] = {}
    absent = sorted(name for name in names if not inside(folder, name).is_file())
    if absent:
        raise UserError(f"{folder / absent[0]}: missing, though {INDEX} names it")
    for name in sorted(names):
        file = folder / name
        try:
            with safe_open(file, framework="np") as opened:
                files[name] = opened.metadata()
                for tensor in opened.keys():
                    if placed is not None and placed.get(tensor) != name:
                        raise UserError(f"{file}: holds {tensor}, which {INDEX} does not place there")
                    piece = opened.get_slice(tensor)
                    headers[tensor] = Header(name, tuple(piece.get_shape()), str(piece.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: truncated, or not a safetensors file: {first_line(error)}") from error
    for tensor, name in (placed or {}).items():
        if tensor not in headers:
            raise UserError(f"{folder / name}: has no tensor {tensor}, though {INDEX} places it there")
    return Weights(folder, headers, files, index)


def _read_index(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    text = read_text(folder, INDEX)
    if text is None:
        raise UserError(
            f"{folder}: no {WEIGHTS} and no {INDEX}; pickled weights (*.bin, *.pt) are never read: "
            "save the model again as safetensors"
        )
    document = parse(text, folder / INDEX)
    placed, metadata = document.get("weight_map"), document.get("metadata", {})
    if (
        not isinstance(placed, dict)
        or not isinstance(metadata, dict)
        or not placed
        or not all(isinstance(name, str) for name in placed.values())
    ):
        raise UserError(f"{folder / INDEX}: weight_map is missing or broken; it must name the file of each tensor")
    return placed, metadata


def read_slice(weights: Weights, name: str, box: tuple[slice, ...]) -> np.ndarray:
    """The numbers of one box of a tensor, in the file's own type.

    The file is mapped for this one reading: pages of a map that stays open count as this process's memory.
    """
    with safe_open(weights.folder / weights.headers[name].file, framework="np") as opened:
        return opened.get_slice(name)[box]


def layout(weights: Weights, kept: set[str]) -> dict[str, Any]:
    """Which file holds which of the `kept` tensors in which type, and what else the files say, as plain JSON."""
    files: dict[str, Any] = {name: {"metadata": told, "types": {}} for name, told in weights.files.items()}
    for name in sorted(kept):
        header = weights.headers[name]
        files[header.file]["types"][name] = FLOATS[header.dtype]
    return {"files": {name: told for name, told in files.items() if told["types"]}, "index": weights.index}


def cut(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """Files of at most `limit` bytes of numbers, filled in the order of `sizes`; a larger one has a file to itself."""
    if limit < 1:
        raise UserError(f"max_shard_bytes is {limit}; it must be a positive number of bytes")
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, 1)}


def make_folder(folder: Path) -> None:
    """Make a folder to write to, and those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {first_line(error)}") from error


@contextlib.contextmanager
def staged(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder in `folder` to write files of these names to; they replace those of `folder`, in this order, once all are
    there. After an error none does, and nothing is left of them."""
    stage = folder / ".partial"
    make_folder(folder)
    make_folder(stage)
    try:
        yield stage
        for name in names:
            try:
                (stage / name).replace(folder / name)
            except OSError as error:
                raise UserError(f"{folder / name}: cannot be written: {first_line(error)}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_text(file: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        partial.write_bytes(text.encode())
        partial.replace(file)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {first_line(error)}") from error


def write_tensors(file: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None) -> None:
    """Write one safetensors file whole or not at all."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        save_file(arrays, partial, metadata=metadata)
        partial.replace(file)
    except (SafetensorError, OSError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written: {first_line(error)}") from error


def clear_other_weights(folder: Path, keep: set[str]) -> None:
    """Remove the weights, index and generation settings of an earlier save that this one did not write anew."""
    for file in folder.iterdir():
        if (SHARD.fullmatch(file.name) or file.name in (INDEX, GENERATION)) and file.name not in keep:
            file.unlink()
