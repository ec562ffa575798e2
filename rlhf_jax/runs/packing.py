"""Several demonstrations in one row, so that less of it is padding. Attention and positions keep them apart
(`transformer.hidden`), so nothing is learnt otherwise than from rows of their own."""

import bisect
from collections.abc import Sequence

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.types import Demonstrations


def best_fit(lengths: Sequence[int] | np.ndarray, window: int) -> list[list[int]]:
    """Which texts share a row of `window` tokens: best-fit decreasing, at most 11/9 of the fewest rows and a few more
    (https://doi.org/10.1137/0203025; for language models arXiv 2404.10830). The longest text goes first, each into the row
    that it leaves the least room in, or into a new one; of equal ones the earlier first. UserError for one that does not fit.
    """
    lengths = np.asarray(lengths)
    if lengths.size and not 0 < lengths.min() <= lengths.max() <= window:
        raise UserError(
            f"texts of {lengths.min()} to {lengths.max()} tokens do not fit rows of {window}; widen the window"
        )
    rows: list[list[int]] = []
    rooms: list[int] = []  # how much is left, each number once, rising
    of_room: dict[int, list[int]] = {}  # the rows that have it left
    for text in np.argsort(-lengths, kind="stable"):
        size = int(lengths[text])
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            number, room = len(rows), window
            rows.append([])
        else:
            room = rooms[place]
            number = of_room[room].pop()
            if not of_room[room]:
                del of_room[room], rooms[place]
        rows[number].append(int(text))
        left = room - size
        if left not in of_room:
            bisect.insort(rooms, left)
        of_room.setdefault(left, []).append(number)
    return rows


def pack(rows: Demonstrations) -> tuple[Demonstrations, str]:
    """The same demonstrations in fewer rows of the same window, `segment` saying which is which, and what came of it in words.

    No text is cut. The first token of each is never learnt: what stands before it is another text.
    """
    window, texts = rows.tokens.shape[1], rows.length.size
    placed = best_fit(rows.length, window)
    tokens, segment = np.zeros((2, len(placed), window), np.int32)
    loss_mask = np.zeros((len(placed), window), bool)
    length = np.zeros(len(placed), np.int32)
    for row, together in enumerate(placed):
        for number, text in enumerate(together):
            start, size = int(length[row]), int(rows.length[text])
            own = slice(start, start + size)
            tokens[row, own] = rows.tokens[text, :size]
            loss_mask[row, own] = rows.loss_mask[text, :size]
            loss_mask[row, start] = False
            segment[row, start:] = number  # padding goes with the last
            length[row] += size
    full, before = (int(rows.length.sum()) / (count * window) for count in (len(placed), texts))
    told = (
        f"packed: {texts} demonstrations in {len(placed)} rows of {window} tokens, {full:.0%} full instead of {before:.0%}; "
        f"a row holds {texts / len(placed):.1f} of them, {max(map(len, placed))} at most"
    )
    return Demonstrations(tokens, length, loss_mask, segment), told
