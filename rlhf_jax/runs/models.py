"""Models as scripts open and save them: whole ones, and adapters on a base that several roles may share."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rlhf_jax.errors import UserError
from rlhf_jax.model import hf, lora, peft, transformer
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf import files as hf_files
from rlhf_jax.model.lora import Lora
from rlhf_jax.types import Params

HEADS = ("score", "value", "value_bias")
"""What is trained whole, with an adapter as without: it has no base."""

Bases = dict[tuple[str, str], tuple[ModelConfig, Params]]
"""Base models that are open already, by where they lie and how they are held."""


class Opened(NamedTuple):
    """A model folder: its base, the adapter on it (empty in a whole model), and the adapter's settings."""

    cfg: ModelConfig
    base: Params
    adapter: Params
    lora: Lora
    name: str
    """The base's folder or hub name."""

    @property
    def params(self) -> Params:
        """The model itself; no array is copied."""
        return {**self.base, **self.adapter}


def placed(tree: Any, mesh: Mesh | None) -> Any:
    """Every leaf on the mesh (a leaf that lies on one device on all of them), its place without trailing Nones.

    A jitted update gives its state back so, and a state that is placed or spelled otherwise compiles it a second time.
    """

    if mesh is None:
        return tree

    def place(leaf: Any) -> Any:
        spec = list(leaf.sharding.spec) if isinstance(leaf.sharding, NamedSharding) else []
        while spec and spec[-1] is None:
            spec.pop()
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(place, tree)


def open_model(folder: str, mesh: Mesh | None = None, bases: Bases | None = None, held: str = "float") -> Opened:
    """The model of a folder or hub name; where that holds an adapter, the base that it names and the adapter. `held` tells
    how the base's matrices are (`settings.Compute.base`).

    Bases are taken from `bases` and put there, so that roles with one base stand on the same arrays.
    """
    bases = {} if bases is None else bases
    place = hf_files.locate(folder)
    adapted = peft.is_adapter(place)
    name, revision = peft.base_of(place) if adapted else (str(folder), None)
    if Path(name).is_dir():
        name = str(Path(name).resolve())
        if peft.is_adapter(name) and adapted:
            raise UserError(f"{place}: the base of this adapter, {name}, is an adapter itself; merge that one first")
    key = name if revision is None else f"{name}@{revision}"
    if (key, held) not in bases:
        cfg, base = hf.load(name, mesh=mesh, revision=revision, held=held)
        bases[key, held] = cfg, placed(base, mesh)
    cfg, base = bases[key, held]
    if not adapted:
        return Opened(cfg, base, {}, Lora(), key)
    cfg, settings, adapter = peft.load(place, cfg, base)
    own = transformer.param_specs(cfg)
    return Opened(
        cfg,
        {path: x for path, x in base.items() if path in own},
        placed(lora.place(adapter, cfg, settings, mesh), mesh),
        settings,
        key,
    )


def settings_of(opened: Opened, wanted: Lora) -> Lora:
    """The settings of the adapter to train: those wanted, which must be the opened one's if there is one to go on with."""
    if not wanted.rank or not opened.lora.rank:
        return wanted
    old, new = ((x.rank, x.scale, lora.targets_of(opened.cfg, x)) for x in (opened.lora, wanted))
    if old != new:
        rank, scale, targets = old
        raise UserError(
            f"lora: the adapter to go on with has rank {rank}, alpha / rank {scale:g} and targets {','.join(targets)}; ask "
            "for the same, or start from a merged model"
        )
    return wanted


def trainable(opened: Opened, wanted: Lora, key: jax.Array, mesh: Mesh | None = None) -> tuple[Params, Params]:
    """(what is trained, what is frozen). Without an adapter wanted: the whole model, an opened one merged into it, and
    nothing. With one: the opened adapter or a new one, with the heads; and the base. `types.overlay` joins them again."""
    if not wanted.rank:
        return lora.merge(opened.params), {}
    heads = {path: x for path, x in opened.base.items() if path in HEADS}
    adapter = heads | opened.adapter
    if not opened.lora.rank:
        new = lora.init(key, opened.cfg, wanted)
        adapter |= placed(lora.place(new, opened.cfg, wanted, mesh), mesh)
    return lora.split(opened.base, adapter)


def save(out: str, opened: Opened, params: Params, tokenizer: Any, wanted: Lora) -> str:
    """Save what `opened` has become to `out`/model, as a whole model or as an adapter, and if asked the merged model to
    `out`/merged. Returns the first folder's name."""
    folder = f"{out}/model"
    if not wanted.rank:
        hf.save(folder, opened.cfg, params, tokenizer)
        return folder
    peft.save(folder, opened.cfg, params, wanted, opened.name)
    tokenizer.save_pretrained(folder)
    if wanted.merge:
        hf.save(f"{out}/merged", opened.cfg, lora.merge(params), tokenizer)
    return folder
