"""Adapters in PEFT's format (https://github.com/huggingface/peft), in and out: adapter_config.json and
adapter_model.safetensors.

Which of a model's tensors an adapter stands beside is told by the same tables as the model's own (`hf.tensors`): beside
`model.layers.0.self_attn.q_proj.weight` [out, in] lie `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`
[r, in] and `….lora_B.weight` [out, r]. A tensor that holds q, k and v has one A for all three, and so have our matrices.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open

from rlhf_jax.errors import UserError
from rlhf_jax.model import lora, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf import files as hf_files
from rlhf_jax.model.hf import tensors as hf_tensors
from rlhf_jax.model.hf.tensors import Row
from rlhf_jax.model.lora import Lora
from rlhf_jax.model.peft_config import CONFIG, base_of, is_adapter, matches, read_config
from rlhf_jax.types import Params

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
SCORE = "score.weight"

__all__ = ["adapted", "base_of", "is_adapter", "load", "save", "targets_of"]


class Module(NamedTuple):
    """One adapted tensor of the checkpoint: the target of ours that it is, its layer, and how A and B lie in it."""

    target: str
    layer: int | None
    a: Row
    b: Row


def modules(cfg: ModelConfig) -> dict[str, Module]:
    """Every tensor of this model's checkpoint that an adapter can stand beside, by its name without ".weight"."""
    of_paths = {paths: target for target, paths in lora.adaptable(cfg).items()}
    found = {}
    for name, tensor in hf_tensors.tensors(cfg, transformer.param_specs(cfg)).items():
        row = tensor.row
        if row.paths not in of_paths:
            continue
        target = of_paths[row.paths]
        cut = 2 if target in lora.TWO_INPUTS else 1
        rows, columns = row.ours[:cut], "+".join(part[cut:] for part in row.ours.split("+"))
        groups = {frozenset(group.replace("c", "")): group for group in row.theirs.split()}
        prefix = "layers/" if tensor.layer is not None else ""
        a = Row(name, (f"{prefix}{target}_lora_a",), f"r {groups[frozenset(rows)]}", f"{rows}r")
        b = Row(
            name,
            tuple(f"{path}_lora_b" for path in row.paths),
            f"{groups[frozenset(columns)]} r",
            "+".join(f"r{part}" for part in columns.split("+")),
        )
        found[name.removesuffix(".weight")] = Module(target, tensor.layer, a, b)
    return found


def names(module: str, target: str) -> tuple[str, str]:
    """The names of A and B in the file."""
    if target == "embed":
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def adapted(cfg: ModelConfig, wanted: Any, where: Path) -> dict[str, Module]:
    """Those of `modules` that `wanted`, the target_modules of the adapter in the folder `where`, names. UserError where it
    names none, or something beside which no adapter can stand."""
    known = modules(cfg)
    everything = [name.removesuffix(".weight") for name in hf_tensors.tensors(cfg, transformer.param_specs(cfg))]
    matched = [name for name in everything if matches(wanted, name)]
    others = [name for name in matched if name not in known]
    if others or not matched:
        told = f"matches {', '.join(others[:3])}, beside which no adapter can stand" if others else "matches no module"
        raise UserError(f"{where / CONFIG}: target_modules {wanted!r} {told}; this model has {', '.join(_last(known))}")
    return {name: known[name] for name in matched}


def targets_of(found: Mapping[str, Module]) -> tuple[str, ...]:
    """Our names of the matrices that these modules adapt."""
    return tuple(dict.fromkeys(module.target for module in found.values()))


def load(
    folder: str | os.PathLike, cfg: ModelConfig, base: Mapping[str, Any], dtype: Any = "float32"
) -> tuple[ModelConfig, Lora, Params]:
    """The adapter in a folder, for the model `cfg` with parameters `base`: what it makes of `cfg` (a reward model, where it
    brings a score), its settings, and its arrays, of `dtype` (None: as stored) but for the scales.

    Raises UserError, naming it, for a tensor that is missing, unknown, misshapen or not finite, a target that is not
    supported, and an adapter that matches nothing.
    """
    where = Path(folder)
    document = read_config(folder)
    tensors = read_tensors(where)
    wanted = document.get("target_modules") or []
    if document.get("task_type") == "SEQ_CLS":
        cfg = _reward_config(cfg, tensors, document, where)
    found = adapted(cfg, wanted, where)
    targets = targets_of(found)
    for target in targets:
        layers = [module.layer for module in found.values() if module.target == target]
        if layers != [None] and len(layers) != cfg.layers:
            raise UserError(
                f"{where / CONFIG}: target_modules takes only layers {layers} for {target}; take all or none"
            )
    if cfg.tied and "embed" in targets:
        raise UserError(
            f"{where / CONFIG}: target_modules adapts the embedding of a model that ties it to its output matrix"
        )

    settings = Lora(document["r"], float(document["lora_alpha"]), ",".join(targets), document.get("use_rslora", False))
    expected = expected_shapes(cfg, found, settings.rank)
    if cfg.axes and PREFIX + SCORE in tensors:
        expected[PREFIX + SCORE] = (cfg.axes, cfg.d_model)
    stored = {f"{PREFIX}{name}.base_layer.weight": module for name, module in found.items() if module.layer is None}
    for name, module in stored.items():  # PEFT saves a whole embedding that it was told to adapt; it must be the base's
        if name in tensors:
            mine = np.asarray(base[module.target])
            theirs = tensors.pop(name)
            if not np.array_equal(theirs, mine if module.target == "embed" else mine.T):
                raise UserError(f"{where / WEIGHTS}: {name} is another matrix than the base model's")
    _check(expected, tensors, where)

    arrays: Params = {}
    for paths, blocks in to_ours(cfg, found, tensors, settings.rank).items():
        arrays[paths] = jnp.asarray(blocks if dtype is None else blocks.astype(jnp.dtype(dtype)))
    if PREFIX + SCORE in tensors:
        arrays["score"] = jnp.asarray(tensors[PREFIX + SCORE].T.astype(np.float32))
    for target in targets:
        stack, prefix = ((cfg.layers,), "layers/") if lora.adaptable(cfg)[target][0].startswith("layers/") else ((), "")
        arrays[f"{prefix}{target}_lora_scale"] = jnp.full(stack, settings.scale, jnp.float32)
    return cfg, settings, arrays


def save(folder: str | os.PathLike, cfg: ModelConfig, adapter: Params, settings: Lora, base: str) -> None:
    """Write the adapter of a model `cfg` whose base is the folder or hub name `base`, so that PEFT and `load` read it.
    Other entries of `adapter`, but a reward model's score, are passed over. All processes call this; the first one writes.

    Raises UserError for targets that a checkpoint of this family does not hold as tensors of their own.
    """
    targets = lora.targets_of(cfg, settings)
    known = modules(cfg)
    homeless = [target for target in targets if target not in {module.target for module in known.values()}]
    if homeless or (cfg.tied and "embed" in targets):
        stored = ", ".join(dict.fromkeys(module.target for module in known.values()))
        raise UserError(
            f"PEFT's format has no place for an adapter of {', '.join(homeless) or 'a tied embedding'} in a {cfg.family} "
            f"model, whose checkpoint holds {stored}: choose among these, or save the merged model alone"
        )
    found = {name: module for name, module in known.items() if module.target in targets}
    tensors = to_theirs(cfg, found, adapter, settings.rank)
    document: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if cfg.axes else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "revision": None,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha,
        "lora_dropout": 0.0,
        "use_rslora": settings.rank_stabilised,
        "bias": "none",
        "fan_in_fan_out": cfg.family == "gpt2",
        "init_lora_weights": True,
        "target_modules": sorted(_last(known, found)),
        "modules_to_save": ["classifier", "score"] if cfg.axes else None,
    }
    if cfg.axes:
        tensors[PREFIX + SCORE] = np.ascontiguousarray(_host(adapter["score"]).T)
        kept = ("axis_names", "reward_mean", "reward_std")
        ours = {name: list(getattr(cfg, name)) for name in kept if getattr(cfg, name)}
        document |= {"rlhf_jax": ours} if ours else {}
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise UserError(f"{name} holds NaN or infinity; it is not saved")
    if jax.process_index() > 0:
        return
    hf_files.make_folder(Path(folder))
    hf_files.write_tensors(Path(folder) / WEIGHTS, dict(sorted(tensors.items())), {"format": "pt"})
    hf_files.write_text(Path(folder) / CONFIG, hf_files.dumps(document))


def expected_shapes(cfg: ModelConfig, found: Mapping[str, Module], rank: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in the file."""
    shapes = {}
    for name, module in found.items():
        letters = _letters(cfg, module, rank)
        for key, row in zip(names(name, module.target), (module.a, module.b), strict=True):
            shapes[key] = hf_tensors.shape_of(row, letters)
    return shapes


def to_ours(
    cfg: ModelConfig, found: Mapping[str, Module], tensors: Mapping[str, np.ndarray], rank: int
) -> dict[str, np.ndarray]:
    """Our arrays from the file's tensors, those of the layers stacked."""
    pieces: dict[str, list[np.ndarray]] = {}
    for name, module in found.items():
        letters = _letters(cfg, module, rank)
        spans = {letter: (0, size) for letter, size in letters.items()}
        for key, row in zip(names(name, module.target), (module.a, module.b), strict=True):
            for part, path in enumerate(row.paths):
                box = hf_tensors.their_slices(row, part, spans, letters)
                pieces.setdefault(path, []).append(hf_tensors.to_ours(tensors[key][box], row, spans, letters, part))
    return {path: np.stack(blocks) if path.startswith("layers/") else blocks[0] for path, blocks in pieces.items()}


def to_theirs(cfg: ModelConfig, found: Mapping[str, Module], adapter: Params, rank: int) -> dict[str, np.ndarray]:
    """The file's tensors from our arrays."""
    shapes = expected_shapes(cfg, found, rank)
    host = {path: _host(x) for path, x in adapter.items() if lora.is_adapter(path)}
    tensors = {}
    for name, module in found.items():
        for key, row in zip(names(name, module.target), (module.a, module.b), strict=True):
            arrays = [host[path] if module.layer is None else host[path][module.layer] for path in row.paths]
            tensors[key] = hf_tensors.to_theirs(arrays, row, shapes[key])
    return tensors


def read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of adapter_model.safetensors."""
    file = hf_files.inside(folder, WEIGHTS)
    if not file.is_file():
        raise UserError(
            f"{folder}: no {WEIGHTS}; pickled adapters (*.bin) are never read: save it again as safetensors"
        )
    try:
        with safe_open(file, framework="np") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file}: truncated, or not a safetensors file: {hf_files.first_line(error)}") from error


def _host(array: Any) -> np.ndarray:
    """The whole array in this process's memory, wherever its pieces live."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def _letters(cfg: ModelConfig, module: Module, rank: int) -> dict[str, int]:
    return hf_tensors.sizes(cfg, len(module.b.paths)) | {"r": rank}


def _last(known: Mapping[str, Module], found: Mapping[str, Module] | None = None) -> list[str]:
    """The shortest ends of the modules' names by which PEFT finds these and no others."""
    short = set()
    for name, module in (known if found is None else found).items():
        parts = name.split(".")
        others = [other for other, each in known.items() if each.target != module.target]
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short.add(next(end for end in ends if not any(matches([end], other) for other in others)))
    return sorted(short)


def _reward_config(cfg: ModelConfig, tensors: Mapping[str, np.ndarray], document: Any, where: Path) -> ModelConfig:
    """The reward model that the adapter makes of its base."""
    if PREFIX + SCORE not in tensors and not cfg.axes:
        raise UserError(f"{where / WEIGHTS}: no {PREFIX + SCORE}, and the base model is no reward model")
    axes = tensors[PREFIX + SCORE].shape[0] if PREFIX + SCORE in tensors else cfg.axes
    ours = document.get("rlhf_jax") or {}
    mean, std = (tuple(float(x) for x in ours.get(name, ())) for name in ("reward_mean", "reward_std"))
    names = tuple(str(x) for x in ours.get("axis_names", cfg.axis_names if axes == cfg.axes else ()))
    if {len(mean), len(std), len(names)} - {0, axes} or not all(x > 0 for x in std):
        raise UserError(
            f"{where / CONFIG}: rlhf_jax is {ours!r}; it needs a mean and a positive deviation for each axis"
        )
    return dataclasses.replace(cfg, axes=axes, axis_names=names, reward_mean=mean, reward_std=std)


def _check(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, np.ndarray], where: Path) -> None:
    file = where / WEIGHTS
    for told, wrong in (
        ("is missing", expected.keys() - tensors),
        ("belongs to no target", tensors.keys() - expected.keys()),
    ):
        if wrong:
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise UserError(
                f"{file}: {min(wrong)} {told}{more}; {CONFIG} and this model ask for {len(expected)} tensors"
            )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise UserError(f"{file}: {name} has shape {tensors[name].shape}; {CONFIG} and this model ask for {shape}")
        if tensors[name].dtype.name not in hf_files.FLOATS.values() or not np.isfinite(tensors[name]).all():
            raise UserError(f"{file}: {name} holds NaN, infinity or no floating-point numbers")
