"""Hugging Face tensors <-> our parameters, by the family's table in `hf.tables`, used in both directions."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.model.config import ModelConfig
from rlhf_jax.model.hf.tables import BASE, FUSED, FUSED_NAME, IGNORED, TABLE, Row


class Tensor(NamedTuple):
    """One tensor of a checkpoint: its shape, the row that says what it holds, of which layer (None: no layer's) and, if of
    one alone, of which expert."""

    shape: tuple[int, ...]
    row: Row
    layer: int | None
    expert: int | None = None

    @property
    def at(self) -> tuple[int, ...]:
        """Where in its stacked parameters it lies."""
        return tuple(place for place in (self.layer, self.expert) if place is not None)


def sizes(cfg: ModelConfig, parts: int = 1) -> dict[str, int]:
    """The size behind each letter of the table."""
    letters = dict(V=cfg.vocab_size, D=cfg.d_model, N=cfg.heads, K=cfg.kv_heads, H=cfg.head_dim, F=cfg.d_ff)
    return letters | dict(M=cfg.max_positions, A=cfg.axes, E=cfg.experts, c=parts)


def shape_of(row: Row, letters: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of their tensor."""
    return tuple(sum(_size(part, letters) for part in group.split("+")) for group in row.theirs.split())


def tensors(cfg: ModelConfig, paths: Iterable[str], names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Every tensor of the checkpoint that holds these parameters, by name, in the table's order, layer by layer.

    `names`, those of the checkpoint at hand, tell whether they carry the family's prefix, whether a tied output matrix is
    stored a second time, and whether the experts of a layer lie in one tensor. Raises UserError where they cannot hold all.
    """
    paths, names = set(paths), set(names)
    base = BASE[cfg.family]
    if names and not any(name.startswith(base) for name in names):
        base = ""
    found: dict[str, Tensor] = {}
    fused = cfg.family in FUSED and any(name.endswith(FUSED_NAME) for name in names)
    if names and not fused and cfg.layers * cfg.experts > len(names):  # before so many names are made
        raise UserError(f"{cfg.layers} layers of {cfg.experts} experts are asked for; there are {len(names)} tensors")
    rows = [row for row in (FUSED if fused else TABLE)[cfg.family] if row.paths[0] in paths]
    missing = paths - {path for row in rows for path in row.paths}
    if missing:
        raise UserError(f"a {cfg.family} checkpoint has no place for {', '.join(sorted(missing))}")

    def add(row: Row, layer: int | None) -> None:
        letters = sizes(cfg, len(row.paths))
        for expert in range(cfg.experts) if "{expert}" in row.name else (None,):
            name = row.name.format(base=base, layer=layer, expert=expert)
            found[name] = Tensor(shape_of(row, letters), row, layer, expert)

    layered = [row for row in rows if "{layer}" in row.name]
    for row in rows:
        if row not in layered:
            add(row, None)
        elif row is layered[0]:
            for layer in range(cfg.layers):
                for each in layered:
                    add(each, layer)
    head = next(row.name for row in TABLE[cfg.family] if row.paths == ("unembed",))
    if cfg.tied and not cfg.axes and head in names:
        embedding = next(row for row in rows if row.paths == ("embed",))
        add(embedding._replace(name=head), None)
    return found


def check_names(expected: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], family: str, where: str) -> None:
    """Raise UserError naming the tensors that are missing, unknown or of another shape than the config asks for."""

    def some(names: set[str]) -> str:
        return ", ".join(sorted(names)[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    present = {name for name in shapes if not IGNORED[family].fullmatch(name)}
    if expected.keys() - present:
        raise UserError(f"{where}: missing tensors for this config.json: {some(expected.keys() - present)}")
    if present - expected.keys():
        raise UserError(f"{where}: tensors that this config.json has no place for: {some(present - expected.keys())}")
    for name, tensor in expected.items():
        if shapes[name] != tensor.shape:
            raise UserError(f"{where}: {name} has shape {shapes[name]}; config.json asks for {tensor.shape}")


Span = tuple[int, int]


def _size(letters_of_group: str, letters: Mapping[str, int]) -> int:
    return math.prod(letters[x] for x in letters_of_group)


def _mine(group: str, part: int) -> str:
    """The letters of a dimension of their tensor, for one of the parameters that it holds."""
    return group.split("+")[part] if "+" in group else group


def ours(row: Row, part: int) -> str:
    """The letters of one of the parameters of a row."""
    return _mine(row.ours, part)


def outermost(row: Row, part: int) -> int:
    """The dimension of our parameter along which their tensor is cut by rows."""
    return ours(row, part).index(_mine(row.theirs.split()[0], part)[0])


def their_slices(row: Row, part: int, spans: Mapping[str, Span], letters: Mapping[str, int]) -> tuple[slice, ...]:
    """The smallest box of their tensor that holds the asked spans of our letters, for parameter `part` of the row."""
    box = []
    for group in row.theirs.split():
        before = group.split("+")[:part] if "+" in group else ()
        offset = sum(_size(other, letters) for other in before)
        low, high, inner = 0, 1, _size(_mine(group, part), letters)
        for x in _mine(group, part):
            inner //= letters[x]
            start, stop = (0, letters[x]) if high - low > 1 else _span(x, part, spans)
            low, high = low * letters[x] + start, (high - 1) * letters[x] + stop
        box.append(slice(offset + low * inner, offset + high * inner))
    return tuple(box)


def _span(x: str, part: int, spans: Mapping[str, Span]) -> Span:
    return (part, part + 1) if x == "c" else spans[x]


def pieces(
    row: Row, part: int, spans: Mapping[str, Span], letters: Mapping[str, int]
) -> Iterator[tuple[tuple[slice, ...], dict[str, Span]]]:
    """The spans, cut so that the box of each piece holds nothing else, and where in our array each lies: one piece for every
    head where a tensor counts its parameters within a head, as GPT-NeoX's does."""
    apart = []
    for group in row.theirs.split():
        order = _mine(group, part)
        partial = (place for place, x in enumerate(order) if _span(x, part, spans) != (0, letters[x]))
        apart += [x for x in order[: max(partial, default=0)] if x != "c"]
    for places in itertools.product(*(range(*spans[x]) for x in apart)):
        piece = dict(spans) | {x: (place, place + 1) for x, place in zip(apart, places, strict=True)}
        yield tuple(slice(piece[x][0] - spans[x][0], piece[x][1] - spans[x][0]) for x in ours(row, part)), piece


def to_ours(
    block: np.ndarray, row: Row, spans: Mapping[str, Span], letters: Mapping[str, int], part: int = 0
) -> np.ndarray:
    """Their box (`their_slices`) as our array, cut to the asked spans."""
    shape: list[int] = []
    cut, order = [], ""
    for group in row.theirs.split():
        whole = False  # from the first letter on of which more than one is asked for, the box holds all of the next
        for x in _mine(group, part):
            start, stop = _span(x, part, spans)
            shape.append(letters[x] if whole else stop - start)
            cut.append(slice(start, stop) if whole else slice(None))
            whole = whole or stop - start > 1
            order += x
    turned = block.reshape(shape)[tuple(cut)]
    if "c" in order:
        turned, order = turned.squeeze(order.index("c")), order.replace("c", "")
    return turned.transpose([order.index(x) for x in ours(row, part)])


def to_theirs(arrays: list[np.ndarray], row: Row, shape: tuple[int, ...]) -> np.ndarray:
    """Our parameters of one row, one array each, as their one contiguous tensor."""
    groups = row.theirs.split()
    turned = []
    for part, array in enumerate(arrays):
        letters = "".join(_mine(group, part) for group in groups).replace("c", "")
        turned.append(array.transpose([ours(row, part).index(x) for x in letters]))
    if "c" in row.theirs:
        whole = np.stack(turned, axis="".join(groups).index("c"))
    elif "+" in row.theirs:
        axis = next(place for place, group in enumerate(groups) if "+" in group)
        flat = [shape[:axis] + (-1,) + shape[axis + 1 :] for _ in arrays]
        whole = np.concatenate([x.reshape(to) for x, to in zip(turned, flat, strict=True)], axis=axis)
    else:
        (whole,) = turned
    return np.ascontiguousarray(whole.reshape(shape))
