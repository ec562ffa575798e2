"""Several demonstrations in a row: where they go, and that each is read and learnt as if it stood alone."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import sft
from rlhf_jax.errors import UserError
from rlhf_jax.masks import restarted
from rlhf_jax.model import heads, transformer
from rlhf_jax.objectives import weights
from rlhf_jax.runs import packing
from rlhf_jax.types import Demonstrations
from tests.jaxprs import named, shapes
from tests.model import decoder_oracle as oracle

WINDOW = 24
LENGTHS = np.array([9, 12, 3, 24, 5, 7, 2, 11, 1], np.int32)
CFGS = {
    "rope": oracle.LLAMA,
    "learned positions": oracle.GPT2,
    "sliding window": replace(oracle.LLAMA, window=4),
    "some layers slide": replace(oracle.LLAMA, window=4, window_layers=(True, False)),
}


@pytest.fixture(scope="module")
def rows():
    """Demonstrations of which all but the first third is learnt; the last has one token, which nothing predicts."""
    rng = np.random.default_rng(0)
    place = np.arange(WINDOW)
    inside = place < LENGTHS[:, None]
    tokens = np.where(inside, rng.integers(4, 96, inside.shape), 0).astype(np.int32)
    return Demonstrations(tokens, LENGTHS, inside & (place >= LENGTHS[:, None] // 3))


def test_every_text_has_one_row_and_none_overflows():
    rng = np.random.default_rng(0)
    for case in range(1000):
        lengths = rng.integers(1, 17, rng.integers(1, 40))
        found = packing.best_fit(lengths, 16)
        assert sorted(text for row in found for text in row) == list(range(lengths.size)), case
        used = [sum(lengths[row]) for row in found]
        assert max(used) <= 16
        assert len(used) < 2 or sorted(used)[0] + sorted(used)[1] > 16, "two rows that fit into one"


@functools.cache
def _fewest(left, rooms, window):
    """Rows that the texts `left`, longest first, need beside those with these rooms: all ways, tried one by one."""
    if not left:
        return 0
    size, rest = left[0], left[1:]
    ways = [
        _fewest(rest, tuple(sorted((*rooms[:i], rooms[i] - size, *rooms[i + 1 :]))), window)
        for i in range(len(rooms))
        if rooms[i] >= size
    ]
    return min([*ways, 1 + _fewest(rest, tuple(sorted((*rooms, window - size))), window)])


def fewest(lengths, window):
    return _fewest(tuple(sorted(map(int, lengths), reverse=True)), (), window)


def test_it_is_near_the_fewest_rows_and_fits_where_least_room_is_left():
    rng = np.random.default_rng(1)
    for _ in range(100):
        lengths = rng.integers(1, 11, 8)
        assert len(packing.best_fit(lengths, 12)) <= 11 / 9 * fewest(lengths, 12) + 6 / 9
    assert packing.best_fit([4, 6, 7, 3], 10) == [[2, 3], [1, 0]]
    assert packing.best_fit([6, 7, 3], 10) == [[1, 2], [0]], "the row of 7 leaves less room than that of 6"
    assert packing.best_fit([], 10) == []
    for lengths in ([11], [0, 3]):
        with pytest.raises(UserError, match="do not fit rows of 10; widen the window"):
            packing.best_fit(lengths, 10)


def test_a_packed_row_holds_its_texts_whole(rows):
    packed, told = packing.pack(rows)
    count = packed.length.size
    assert f"{LENGTHS.size} demonstrations in {count} rows of {WINDOW} tokens" in told and count == 4
    assert f"{LENGTHS.sum() / (count * WINDOW):.0%} full instead of {LENGTHS.mean() / WINDOW:.0%}" in told
    found = []
    for tokens, length, mask, segment in zip(
        packed.tokens, packed.length, packed.loss_mask, packed.segment, strict=True
    ):
        assert not tokens[length:].any() and not mask[length:].any()
        for number in np.unique(segment[:length]):
            own = np.flatnonzero(segment[:length] == number)
            assert (np.diff(own) == 1).all()
            found.append((tokens[own].tolist(), mask[own].tolist()))
    wanted = []
    for tokens, length, mask in zip(rows.tokens, rows.length, rows.loss_mask, strict=True):
        wanted.append((tokens[:length].tolist(), [False, *mask[1:length].tolist()]))
    assert sorted(found) == sorted(wanted)


def test_positions_begin_anew_where_the_number_changes():
    segments = np.array([[0, 0, 1, 1, 1, 2], [5, 5, 5, 5, 5, 5], [2, 1, 0, 0, 1, 1]], np.int32)
    wanted = [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 0, 1]]
    np.testing.assert_array_equal(restarted(jnp.asarray(segments)), wanted)


def objective(cfg):
    """The loss of sft.py and its gradients."""

    def forward(params, tokens, length, segments=None):
        states = transformer.hidden(params, tokens, length, cfg=cfg, segments=segments)[:, :-1]
        return heads.token_logprobs(params, states, tokens[:, 1:], cfg=cfg, chunk=8)

    def total(params, batch):
        return sft.loss(params, batch, weights.token_mean(sft.learnt(batch)), forward=forward)[0]

    return jax.jit(jax.value_and_grad(total))


@pytest.mark.parametrize(
    "name", [name if name == "rope" else pytest.param(name, marks=pytest.mark.long) for name in CFGS]
)
def test_packed_loss_and_gradients_are_those_of_rows_of_their_own(rows, name):
    params, ask = oracle.parameters(CFGS[name]), objective(CFGS[name])
    alone, slopes = ask(params, jax.tree.map(jnp.asarray, rows))
    together, packed_slopes = ask(params, jax.tree.map(jnp.asarray, packing.pack(rows)[0]))
    assert together == pytest.approx(float(alone), abs=1e-5) and alone > 1
    for path, slope in slopes.items():
        scale = max(float(jnp.abs(slope).max()), 1.0)
        np.testing.assert_allclose(packed_slopes[path] / scale, slope / scale, atol=1e-5, err_msg=path)


@pytest.mark.parametrize("name", ["rope", "learned positions", "sliding window"])
def test_nothing_is_seen_across_texts(rows, name):
    """Every token of one text replaced: what stands in the others is the same to the bit, and in its own is not."""
    cfg, packed = CFGS[name], packing.pack(rows)[0]
    hidden = jax.jit(functools.partial(transformer.hidden, oracle.parameters(cfg), cfg=cfg))
    row = [jnp.asarray(x) for x in (packed.tokens, packed.length)]
    inside = np.arange(WINDOW) < packed.length[:, None]
    before = np.asarray(hidden(*row, segments=jnp.asarray(packed.segment)))
    assert packed.segment.max() >= 2
    for number in range(3):
        own = (packed.segment == number) & inside
        changed = jnp.asarray(np.where(own, (packed.tokens + 7) % 90 + 4, packed.tokens))
        after = np.asarray(hidden(changed, row[1], segments=jnp.asarray(packed.segment)))
        np.testing.assert_array_equal(after[inside & ~own], before[inside & ~own])
        assert (np.abs(after - before).max(-1)[own] > 1e-3).all()


def test_rows_of_one_text_are_the_program_that_they_were(rows):
    """No mask a row, no running maximum; and one segment a row gives the same bits."""
    cfg = CFGS["rope"]
    B, row = rows.length.size, [jnp.asarray(x) for x in (rows.tokens, rows.length)]
    plain = functools.partial(transformer.hidden, oracle.parameters(cfg), cfg=cfg)
    one = functools.partial(plain, segments=jnp.zeros_like(row[0]))
    programs = [jax.make_jaxpr(each)(*row) for each in (plain, one)]
    assert [bool(named(each, "cummax")) for each in programs] == [False, True]
    assert [(B, WINDOW, WINDOW) in set(shapes(each)) for each in programs] == [False, True]
    np.testing.assert_array_equal(jax.jit(plain)(*row), jax.jit(one)(*row))
