"""Models in Hugging Face's format, in and out: the families of `hf.families`; language models and reward models.

config.json is `hf.config`, the names and layouts of the tensors are `hf.tensors`, the files are `hf.files`. No torch,
no pickle, no code from a model: JSON and safetensors only.
"""

import contextlib
import dataclasses
import functools
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from rlhf_jax import sharding
from rlhf_jax.errors import UserError
from rlhf_jax.model import quantised, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf import config as hf_config
from rlhf_jax.model.hf import files as hf_files
from rlhf_jax.model.hf import place as hf_place
from rlhf_jax.model.hf import tensors as hf_tensors
from rlhf_jax.model.hf.files import CONFIG, GENERATION
from rlhf_jax.types import Params

MAX_SHARD_BYTES = 5_000_000_000
"""Size of a weights file above which a new checkpoint is cut, as in transformers 4."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load(
    path: str | os.PathLike,
    *,
    mesh: Mesh | None = None,
    dtype: Any = "float32",
    revision: str | None = None,
    held: str = "float",
) -> tuple[ModelConfig, Params]:
    """Read a model from a local folder or, by name and `revision`, from the hub.

    Every parameter is `dtype` (float32, bfloat16, float16). With a mesh each is placed by its logical axes, and each
    process reads only the slices that its own devices hold. A SequenceClassification checkpoint gives `cfg.axes` > 0.
    With `held` "int8", "int4" or "nf4" the layers' matrices are quantised (`quantised`) as they are read, a layer of one at a
    time: no more than that is ever there as floats.
    Raises UserError, naming it, for whatever is missing, unknown, misshapen, not finite or not supported; all but the
    numbers are checked before any array is made.
    """
    wanted = _float_type(dtype)
    quantised.check(held)
    folder = hf_files.locate(path, revision)
    texts = {name: text for name in (CONFIG, GENERATION) if (text := hf_files.read_text(folder, name)) is not None}
    if CONFIG not in texts:
        raise UserError(f"{folder}: no {CONFIG}; a model folder has one")
    documents = {name: hf_files.parse(text, folder / name) for name, text in texts.items()}
    config, generation = documents[CONFIG], documents.get(GENERATION)
    cfg = hf_config.read(config, generation, str(folder / CONFIG))
    for remark in hf_config.remarks(config, generation, cfg):
        warnings.warn(f"{folder / CONFIG}: {remark}", stacklevel=2)

    weights = hf_files.open_weights(folder)
    if cfg.layers > len(weights.headers):
        raise UserError(f"{folder}: {CONFIG} asks for {cfg.layers} layers; there are {len(weights.headers)} tensors")
    specs = transformer.param_specs(cfg)
    table = hf_tensors.tensors(cfg, specs, weights.headers)
    shapes = {name: header.shape for name, header in weights.headers.items()}
    hf_tensors.check_names(table, shapes, cfg.family, str(folder))
    for name in table:
        kind = weights.headers[name].dtype
        if kind not in hf_files.FLOATS:
            raise UserError(f"{folder}: {name} has type {kind}; supported: {', '.join(hf_files.FLOATS)}")

    params = {}
    for param, spec in specs.items():
        read, axis = _reader(weights, table, param, cfg, wanted)
        place = None if mesh is None else functools.partial(_place, spec.axes, mesh)
        if held != "float" and quantised.inputs(param):
            quantise = functools.partial(quantised.quantise, path=param, held=held)
            params[param] = hf_place.build_each(spec.shape, wanted, place, read, axis, quantise)
        else:
            params[param] = hf_place.build(spec.shape, wanted, None if place is None else place(spec.shape), read, axis)
    kept = {name for name in weights.headers if not hf_tensors.IGNORED[cfg.family].fullmatch(name)}
    source = {"texts": texts, "layout": hf_files.layout(weights, kept)}
    return dataclasses.replace(cfg, source=json.dumps(source)), params


def save(
    path: str | os.PathLike,
    cfg: ModelConfig,
    params: Params,
    tokenizer: Any = None,
    dtype: Any = None,
    *,
    max_shard_bytes: int | None = None,
) -> None:
    """Write a folder that `load` and transformers (4 and 5) read: config.json, safetensors, and the tokenizer if given.

    A model that came from `load` goes back as it came: the same names, types (unless `dtype` says another), files and
    config.json, byte for byte where nothing changed. A changed model, or one made here, is cut into files of at most
    `max_shard_bytes` (default 5 GB); without a source its tensors keep their own type. Weights and generation settings
    that an earlier save left in the folder are replaced once all of the new ones are written, beside them: an error leaves
    the old model as it was, and both need room. All processes of a run call this; the first one writes.
    Raises UserError for parameters that do not fit `cfg` or are not finite, and for a `cfg` its family cannot express.
    """
    specs = transformer.param_specs(cfg)
    _check_params(params, {name: spec.shape for name, spec in specs.items()})
    if tokenizer is not None:
        check_tokenizer(tokenizer, cfg)
    source = json.loads(cfg.source) if cfg.source else {}
    texts, layout = source.get("texts", {}), source.get("layout", {"files": {}, "index": None})
    before = {name: json.loads(text) for name, text in texts.items()}
    config, generation = hf_config.write(cfg, before.get(CONFIG), before.get(GENERATION))

    known = {name: kind for file in layout["files"].values() for name, kind in file["types"].items()}
    table = hf_tensors.tensors(cfg, specs, known)
    types = {name: str(params[tensor.row.paths[0]].dtype) for name, tensor in table.items()}
    if dtype is not None:
        types = dict.fromkeys(table, str(_float_type(dtype)))
    elif known:  # a tensor that the source lacks, such as a new score head, gets the type that most have
        types = {name: known.get(name, _most(known.values())) for name in table}
    if any(kind != known.get(name, kind) for name, kind in types.items()) or CONFIG not in before:
        spelled = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype", "torch_dtype"]
        config |= dict.fromkeys(spelled, _most(types.values()))

    sizes = {name: int(np.prod(tensor.shape)) for name, tensor in table.items()}
    bytes_of = {name: size * jnp.dtype(types[name]).itemsize for name, size in sizes.items()}
    if max_shard_bytes is None and known.keys() == table.keys():
        shards = {file: list(told["types"]) for file, told in layout["files"].items()}
        index = layout["index"]
    else:
        shards = hf_files.cut(bytes_of, MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes)
        index = {"total_parameters": sum(sizes.values())} if len(shards) > 1 else None

    folder, first = Path(path), jax.process_index() == 0
    written = {CONFIG: config} | ({GENERATION: generation} if generation is not None else {})
    if index is not None:
        placed = {name: file for file, names in shards.items() for name in names}
        totals = {"metadata": index | {"total_size": sum(bytes_of.values())}, "weight_map": placed}
        written[hf_files.INDEX] = totals
    with hf_files.staged(folder, [*shards, *written]) if first else contextlib.nullcontext(folder) as stage:
        for file, names in shards.items():
            arrays = {name: _gather(params, name, table[name], types[name]) for name in names}
            if first:
                metadata = layout["files"].get(file, {}).get("metadata", {"format": "pt"})
                hf_files.write_tensors(stage / file, arrays, metadata)
        for file, document in written.items() if first else ():
            text = texts[file] if document == before.get(file) else hf_files.dumps(document)
            hf_files.write_text(stage / file, text)
    if first:
        hf_files.clear_other_weights(folder, keep={*shards, *written})
        if tokenizer is not None:
            tokenizer.save_pretrained(str(folder))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("hf.save")  # nobody goes on to read a folder that is half written


def tokenizer(path: str | os.PathLike, revision: str | None = None) -> Any:
    """The tokenizer of a local folder or a hub name, read by transformers, which is told to run no code from a model.

    Raises UserError where there is none that can be read.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that PyTorch is missing is no news here
    from transformers import AutoTokenizer  # here, because importing this package must not load transformers

    if Path(path).is_dir() and not any((Path(path) / name).exists() for name in TOKENIZER_FILES):
        raise UserError(f"{path}: no tokenizer here; one of {', '.join(TOKENIZER_FILES)} is needed")
    try:
        return AutoTokenizer.from_pretrained(str(path), revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and the hub client raise errors of many kinds
        raise UserError(f"{path}: no tokenizer can be read: {hf_files.first_line(error)}") from error


def check_tokenizer(tokenizer: Any, cfg: ModelConfig) -> None:
    """Raise UserError if the tokenizer can produce an id that the model has no row for. (Rows to spare are common.)"""
    ids = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)
    if ids > cfg.vocab_size:
        raise UserError(
            f"the tokenizer has {ids} ids, the model only {cfg.vocab_size} rows; use the model's own tokenizer"
        )


def causal(cfg: ModelConfig) -> ModelConfig:
    """The language model on the trunk of a reward model: `cfg` without score head and normalisation."""
    return dataclasses.replace(cfg, axes=0, axis_names=(), reward_mean=(), reward_std=())


def classifier(cfg: ModelConfig, axes: int, names: Sequence[str] = ()) -> ModelConfig:
    """A reward model with `axes` scores, perhaps with names, on the trunk of `cfg`, not normalised yet."""
    if axes < 1:
        raise UserError(f"a reward model needs at least 1 axis, not {axes}")
    return dataclasses.replace(cfg, axes=axes, axis_names=tuple(names), reward_mean=(), reward_std=())


def _float_type(dtype: Any) -> np.dtype:
    """One of the floating-point types that weights have, from its name or from JAX's object."""
    names = hf_files.FLOATS.values()
    try:
        wanted = jnp.dtype(dtype)
    except TypeError:
        wanted = jnp.dtype(bool)
    if wanted.name not in names:
        raise UserError(f"dtype {dtype!r} is not supported; supported: {', '.join(names)}")
    if wanted.name == "float64" and jax.dtypes.canonicalize_dtype(wanted) != wanted:
        raise UserError("dtype float64 needs jax_enable_x64; without it JAX would quietly make float32 of it")
    return wanted


def _place(axes: tuple[str | None, ...], mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    return sharding.of(axes, shape, mesh)


def _reader(
    weights: hf_files.Weights, table: dict[str, hf_tensors.Tensor], param: str, cfg: ModelConfig, dtype: np.dtype
) -> tuple[hf_place.Read, int]:
    """A function from the spans of a parameter to its numbers, read from the one tensor or the tensor of each layer;
    and the dimension along which they lie one after the other in the files."""
    names = [name for name, tensor in table.items() if param in tensor.row.paths]
    row = table[names[0]].row
    letters, part = hf_tensors.sizes(cfg, len(row.paths)), row.paths.index(param)
    own = hf_tensors.ours(row, part)
    layered = table[names[0]].layer is not None
    by_index = {table[name].at: name for name in reversed(names)}
    twins = [] if layered else names[1:]  # a tied output matrix that is stored a second time

    def fill(out: np.ndarray, name: str, spans: dict[str, hf_tensors.Span]) -> None:
        box = hf_tensors.their_slices(row, part, spans, letters)
        theirs = hf_files.read_slice(weights, name, box)
        for twin in twins:
            if not np.array_equal(theirs, hf_files.read_slice(weights, twin, box), equal_nan=True):
                raise UserError(f"{weights.folder}: {twin} differs from {name}, though config.json ties them")
        with np.errstate(over="ignore", invalid="ignore"):
            out[...] = hf_tensors.to_ours(theirs, row, spans, letters, part)  # cast on the way
        if not np.isfinite(out).all():
            cast = f" once cast to {dtype}" if np.isfinite(theirs).all() else ""
            raise UserError(f"{weights.folder}: {name} holds NaN or infinity{cast}")

    def read(spans: hf_place.Spans) -> np.ndarray:
        out = np.empty([stop - start for start, stop in spans], dtype)
        stacked = len(spans) - len(own)  # layers, and experts where each has a tensor
        rest = dict(zip(own, spans[stacked:], strict=True))
        for place in np.ndindex(*out.shape[:stacked]):
            index = tuple(low + each for (low, _), each in zip(spans, place, strict=False))
            for at, piece in hf_tensors.pieces(row, part, rest, letters):
                fill(out[*place, *at], by_index[index], piece)
        return out

    return read, 0 if layered else hf_tensors.outermost(row, part)


def _check_params(params: Params, shapes: dict[str, tuple[int, ...]]) -> None:
    missing, unknown = sorted(shapes.keys() - params.keys()), sorted(params.keys() - shapes.keys())
    if missing or unknown:
        told = f"missing {', '.join(missing) or 'none'}; unknown {', '.join(unknown) or 'none'}"
        raise UserError(f"the parameters do not fit the config: {told}")
    for name, shape in shapes.items():
        if quantised.is_quantised(params[name]):
            raise UserError(f"parameter {name} is quantised; save what lora.merge makes of the model, or its adapter")
        if tuple(params[name].shape) != shape:
            raise UserError(f"parameter {name} has shape {tuple(params[name].shape)}; the config asks for {shape}")


def _most(types: Any) -> str:
    return Counter(types).most_common(1)[0][0]


def _host(array: Array) -> np.ndarray:
    """The whole array in this process's memory, wherever its pieces live."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _gather(params: Params, name: str, tensor: hf_tensors.Tensor, kind: str) -> np.ndarray:
    """One tensor of a checkpoint from our parameters, in its final type."""
    arrays = [_host(params[path][tensor.at] if tensor.at else params[path]) for path in tensor.row.paths]
    with np.errstate(over="ignore", invalid="ignore"):
        theirs = hf_tensors.to_theirs(arrays, tensor.row, tensor.shape).astype(jnp.dtype(kind))
    if not np.isfinite(theirs).all():
        raise UserError(f"{name} ({', '.join(tensor.row.paths)}) holds NaN or infinity as {kind}; it is not saved")
    return theirs
