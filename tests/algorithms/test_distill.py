"""Distillation over texts: what a student is compared with and where, in chunks that leave no array of all logits."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.algorithms import distill
from rlhf_jax.algorithms.update import make_update
from rlhf_jax.model import transformer
from rlhf_jax.objectives import distillation, weights
from rlhf_jax.types import TrainState
from tests.jaxprs import shapes
from tests.model import decoder_oracle as oracle
from tests.steps import ints, key
from tests.test_memory import CFG, largest, largest_compiled

STUDENT = oracle.LLAMA
TEACHER = replace(STUDENT, d_model=24, layers=1)
P, R = 4, 5
SETTINGS = {"window": R, "cfg": STUDENT, "teacher_cfg": TEACHER, "divergence": distillation.jsd}


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    prompt_length, response_length = np.array([1, 4, 2], np.int32), np.array([5, 3, 1], np.int32)
    return distill.Texts(rng.integers(4, 96, (3, P + R)).astype(np.int32), prompt_length, response_length)


@pytest.fixture(scope="module")
def params():
    return {"student": oracle.parameters(STUDENT), "teacher": oracle.parameters(TEACHER, seed=1)}


def kl(q, p):
    """KL(p ‖ q) of log-probabilities."""
    return (np.exp(p) * (p - q)).sum()


def half(q, p):
    """Their Jensen-Shannon divergence."""
    mixed = np.logaddexp(p, q) - np.log(2)
    return (kl(mixed, p) + kl(mixed, q)) / 2


def oracle_tokens(params, texts, divergence, temperature=1.0):
    """[(row, place, divergence)] of each response token, by the NumPy decoder."""
    found = []
    for row, (tokens, start, size) in enumerate(zip(*texts, strict=True)):
        ids = tokens[: start + size]
        both = [oracle.logits(params[n], ids, c) for n, c in (("student", STUDENT), ("teacher", TEACHER))]
        for place in range(size):
            student, teacher = (oracle.log_softmax(x[start + place - 1] / temperature) for x in both)
            found.append((row, place, float(divergence(student, teacher))))
    return found


@pytest.mark.parametrize(("chunk", "temperature"), [(2, 1.0), (8, 0.5)])
def test_each_response_token_is_compared_where_it_is_predicted(params, texts, chunk, temperature):
    """The last chunk is a partial one; prompts and what stands after a response are in no sum."""
    forward = distill.build_forward(**SETTINGS, temperature=temperature, chunk=chunk)
    parts = jax.jit(forward)(params, jax.tree.map(jnp.asarray, texts))
    for part, divergence in zip(parts, (half, kl, lambda q, p: kl(p, q)), strict=True):
        for row, place, wanted in oracle_tokens(params, texts, divergence, temperature):
            np.testing.assert_allclose(part[row, place], wanted, atol=2e-4, rtol=2e-3)


def test_the_loss_is_the_mean_of_its_weights_and_moves_the_student_alone(params, texts):
    batch = jax.tree.map(jnp.asarray, texts)
    weighted = distill.weigh(batch, window=R, by=weights.sequence_mean)
    loss = distill.build_loss(**SETTINGS, chunk=3)
    (total, metrics), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch, weighted)
    rows = [[x for row, _, x in oracle_tokens(params, texts, half) if row == number] for number in range(3)]
    assert total == pytest.approx(np.mean([np.mean(row) for row in rows]), rel=1e-3)
    assert metrics["distill/loss"] == total and 0 < metrics["distill/forward_kl"] != metrics["distill/reverse_kl"]
    assert all(float(jnp.abs(x).max()) > 0 for x in slopes["student"].values())
    assert all(float(jnp.abs(x).max()) == 0 for x in slopes["teacher"].values())


def test_metrics_have_no_gradient(params, texts):
    """Else the forward KL that is only told of would be learnt."""
    forward = distill.build_forward(**SETTINGS, chunk=3)
    told = lambda params: sum(x.sum() for x in forward(params, jax.tree.map(jnp.asarray, texts))[1:])  # noqa: E731
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(jax.jit(jax.grad(told))(params)))


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(params, texts):
    same = {"student": params["student"], "teacher": params["student"]}
    parts = distill.build_forward(**SETTINGS | {"teacher_cfg": STUDENT}, chunk=3)(
        same, jax.tree.map(jnp.asarray, texts)
    )
    for part in parts:
        np.testing.assert_allclose(part, 0, atol=1e-5)


def test_rows_of_a_matrix_past_the_smaller_vocabulary_are_no_tokens(params, texts):
    """Models of one family pad their matrices differently."""
    wide = replace(TEACHER, vocab_size=TEACHER.vocab_size + 7)
    teacher = dict(params["teacher"])
    teacher["embed"] = jnp.pad(teacher["embed"], ((0, 7), (0, 0)))
    teacher["unembed"] = jnp.pad(teacher["unembed"], ((0, 0), (0, 7)), constant_values=3.0)
    batch = jax.tree.map(jnp.asarray, texts)
    plain = jax.jit(distill.build_forward(**SETTINGS, chunk=3))(params, batch)
    forward = jax.jit(distill.build_forward(**SETTINGS | {"teacher_cfg": wide}, chunk=3))
    padded = forward(params | {"teacher": teacher}, batch)
    for one, other in zip(plain, padded, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_turns_have_the_share_asked_for_and_lose_no_batch():
    for share in (0.0, 0.3, 1.0):
        own, number = distill.turns(4000, share, seed=1)
        assert own.mean() == pytest.approx(share, abs=0.03)
        for kind in (own, ~own):
            np.testing.assert_array_equal(number[kind], np.arange(kind.sum()))
    longer = distill.turns(8000, 0.3, seed=1)
    np.testing.assert_array_equal(longer[0][:4000], distill.turns(4000, 0.3, seed=1)[0])
    assert (longer[0] != distill.turns(8000, 0.3, seed=2)[0]).any()


def program(window, chunk):
    """value_and_grad of the loss with a large vocabulary, and its arguments."""
    own, above = CFG, replace(CFG, d_ff=24)
    loss = distill.build_loss(window=window, cfg=own, teacher_cfg=above, divergence=distillation.jsd, chunk=chunk)
    models = [jax.eval_shape(lambda key, cfg=cfg: transformer.init(key, cfg), key()) for cfg in (own, above)]
    weigh = functools.partial(distill.weigh, window=window, by=weights.token_mean)

    def total(student, teacher, texts):
        return loss({"student": student, "teacher": teacher}, texts, weigh(texts))[0]

    return jax.jit(jax.value_and_grad(total)), (*models, distill.Texts(ints(2, window + 1), ints(2), ints(2)))


def test_no_array_of_all_logits_is_traced():
    function, args = program(96, 8)
    assert largest(jax.make_jaxpr(function)(*args)) <= 2 * 8 * CFG.vocab_size
    function, args = program(96, 96)
    assert (2, 96, CFG.vocab_size) in set(shapes(jax.make_jaxpr(function)(*args))), "the search does not see it"


def test_memory_does_not_grow_with_logits():
    """From 64 to 128 positions one array of logits would grow by 16 MiB; allowed is a tenth of that."""
    temporary = {}
    for window in (64, 128):
        function, args = program(window, 8)
        compiled = function.lower(*args).compile()
        temporary[window] = compiled.memory_analysis().temp_size_in_bytes
        assert largest_compiled(compiled.as_text()) <= 2 * 8 * CFG.vocab_size
    assert temporary[128] - temporary[64] < 0.1 * 2 * 64 * CFG.vocab_size * 4


@pytest.mark.long
def test_microbatches_do_not_change_the_step(params, texts):
    """Nor does the teacher move, who is frozen beside the student's own frozen part."""
    batch = jax.tree.map(lambda x: jnp.asarray(np.concatenate([x, x[:1]])), texts)
    weigh = functools.partial(distill.weigh, window=R, by=weights.token_mean)
    after = []
    for pieces in (1, 2):
        update = make_update(distill.build_loss(**SETTINGS, chunk=3), optax.sgd(0.1), weigh=weigh, microbatches=pieces)
        state = TrainState.create({"student": params["student"]}, optax.sgd(0.1))
        state, _ = update(state, batch, key=jax.random.key(0), frozen={"student": {}, "teacher": params["teacher"]})
        assert state.params.keys() == {"student"}
        after.append(state.params["student"])
    for name in after[0]:
        np.testing.assert_allclose(after[0][name], after[1][name], atol=1e-6)
        assert not np.array_equal(after[0][name], params["student"][name])
