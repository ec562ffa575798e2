"""The parts that a dry run's plans are made of: models by their config.json, and sizes by what is trained of them."""

from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.model import cost, lora, peft, peft_config
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.cost import Specs
from rlhf_jax.model.hf import config as hf_config
from rlhf_jax.model.hf import files as hf_files
from rlhf_jax.runs import data, models, settings

ADAM = 2
"""Numbers that Adam keeps beside each parameter."""
LOGITS = 3
"""Copies of a chunk of logits at one time: themselves, their log-softmax, their gradient."""


class Found(NamedTuple):
    """A model as `models.open_model` would open it: its base, by name, and the arrays of an adapter on it."""

    cfg: ModelConfig
    base: str
    adapter: Specs


def read_model(name: str, compute: settings.Compute) -> Found:
    """The model that a local folder's, or a hub repository's, config.json describes; an adapter's folder leads to its base.
    From the hub that one file is fetched, or taken from the cache. UserError where there is none."""
    folder = Path(name)
    if peft_config.is_adapter(folder):
        below = read_model(peft_config.base_of(folder)[0], compute)
        told = peft_config.read_config(folder)
        targets = peft.targets_of(peft.adapted(below.cfg, told.get("target_modules") or [], folder))
        return below._replace(adapter=lora.specs(below.cfg, lora.Lora(rank=told["r"], targets=",".join(targets))))
    if not folder.is_dir():
        if not hf_files.HUB_NAME.fullmatch(name):
            raise UserError(
                f"{name}: no such folder, and no hub name (owner/name) either; for a model that an earlier run is yet to "
                "make, name the one that run starts from"
            )
        import huggingface_hub  # here, because a local folder needs no network client

        try:
            folder = Path(huggingface_hub.hf_hub_download(name, hf_files.CONFIG)).parent
        except Exception as error:  # the client raises its own, httpx's and the system's errors
            raise UserError(
                f"{name}: no such folder, and its {hf_files.CONFIG} is neither in the hub's cache nor to be had: fetch it "
                f"once with `hf download {name} {hf_files.CONFIG}`, or name a folder ({hf_files.first_line(error)})"
            ) from error
    document = hf_files.read_text(folder, hf_files.CONFIG)
    if document is None:
        raise UserError(f"{folder}: no {hf_files.CONFIG}; a model folder has one")
    where = folder / hf_files.CONFIG
    cfg = settings.apply_compute(hf_config.read(hf_files.parse(document, where), None, str(where)), compute)
    return Found(cfg, name, {})


def same_size(name: str, policy: Found, cfg: Any, notes: list[str]) -> Found:
    """The model of that name. Where its folder is yet to be made, one of the policy's size: an adapter on the policy's base
    if adapters are trained, else a model of its own. A name that could be the hub's is a folder's if it lies in a folder that
    is here, or in the one that the run itself writes below (`cfg.out`)."""
    top = Path(name).parts[:1]
    ours = bool(top) and (Path(*top).is_dir() or top == Path(cfg.out).parts[:1])
    if Path(name).is_dir() or (hf_files.HUB_NAME.fullmatch(name) and not ours):
        return read_model(name, cfg.compute)
    notes.append(
        f"{name} is not there yet: taken to be {'an adapter on the base' if cfg.lora.rank else 'of the size'} of the policy"
    )
    return policy._replace(adapter=lora.specs(policy.cfg, cfg.lora)) if cfg.lora.rank else policy._replace(base=name)


def trained(cfg: ModelConfig, specs: Specs, wanted: lora.Lora) -> tuple[Specs, Specs]:
    """(what is trained, what is not) of a model with these parameters, as `models.trainable` has it."""
    if not wanted.rank:
        return specs, {}
    own = {path: spec for path, spec in specs.items() if path in models.HEADS}
    new = lora.specs(cfg, wanted)
    scales = {path: spec for path, spec in new.items() if path.endswith("_lora_scale")}
    own |= {path: spec for path, spec in new.items() if path not in scales}
    return own, {path: spec for path, spec in specs.items() if path not in own} | scales


def state(name: str, specs: Specs, mesh: AbstractMesh) -> dict[str, int]:
    """What training changes: master weights and Adam's two moments, f32."""
    size = cost.device_bytes(specs, mesh)
    return {f"{name} in training": size, f"Adam's moments of the {name}": ADAM * size}


def gradients(specs: Specs, mesh: AbstractMesh, microbatches: int) -> dict[str, int]:
    """Gradients, f32; with micro-batches their sum and those of one piece."""
    return {"gradients": cost.device_bytes(specs, mesh) * (1 if microbatches == 1 else 2)}


def backward(
    forward: Any, cfg: ModelConfig, specs: tuple[Specs, Specs], rows: int, window: int, logits: int = 0
) -> dict[str, int]:
    """What the backward pass of `rows` rows needs. `forward(cfg)` is the differentiated function of parameters, tokens and
    lengths, `specs` what is trained and what is not; `logits` positions of a row have theirs at one time."""
    arrays = [cost.shapes(part) for part in specs]
    kept, cast = cost.saved_bytes(forward(cfg), *arrays, rows=rows, window=window)
    parts = {"activations kept": kept}
    if cast > 2**20:
        parts[f"weights as {cfg.dtype}"] = cast
    if cfg.remat != "none":
        parts["one layer recomputed"] = cost.layer_bytes(forward, cfg, *arrays, rows=rows, window=window)
    if logits:
        parts["a chunk of logits"] = LOGITS * 4 * rows * logits * cfg.vocab_size
    return parts


def mesh_of(cfg: Any) -> AbstractMesh:
    """The mesh that the configuration asks for, of devices that need not be here."""
    return cost.abstract_mesh(cfg.mesh.data, cfg.mesh.fsdp, cfg.mesh.tensor)


def device_rows(rows: int, mesh: AbstractMesh, notes: list[str]) -> int:
    """Rows of a micro-batch on each device, with a note where the mesh has devices to spare."""
    mine, devices = cost.device_rows(rows, mesh), mesh.shape["data"] * mesh.shape["fsdp"]
    if rows // mine < devices:
        notes.append(
            f"the {rows} rows of a micro-batch do not divide over {devices} devices, which a run refuses: each has {mine}"
        )
    return mine


def add(into: dict[str, int], parts: dict[str, int]) -> None:
    """Add sizes by name."""
    for name, size in parts.items():
        into[name] = into.get(name, 0) + size


def counted(name: str, cfg: Any, notes: list[str], load: Any) -> int | None:
    """How many of the file's records are kept for training; None, with a note, where the file is not here."""
    try:
        path = data.find(name, cfg.data)
    except UserError as error:
        notes.append(f"steps cannot be told: {error}")
        return None
    kept, _ = records.split_by_prompt(load(path), cfg.held_out, seed=cfg.seed)
    notes.append(f"{len(kept)} training rows in {path}; those longer than the window will be left out")
    return len(kept)
