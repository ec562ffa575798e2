import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from rlhf_jax import sharding
from rlhf_jax.errors import UserError
from rlhf_jax.generate import engine
from rlhf_jax.model import heads, transformer
from rlhf_jax.types import STOP_EOS, STOP_LENGTH, STOP_SEQUENCE, Sampling
from tests.jaxprs import named, shapes
from tests.model import decoder_oracle as oracle

KEY, RULE = jax.random.key(11), Sampling(temperature=0.9)
CFG = replace(oracle.LLAMA, layers=1, eos_ids=(3, 60))
policy = jax.jit(heads.policy, static_argnames=("window", "cfg", "temperature", "chunk"))


def prompts_of(cfg, lengths, window, seed=0):
    tokens = np.random.default_rng(seed).integers(0, cfg.vocab_size, (len(lengths), window), dtype=np.int32)
    return tokens, np.array(lengths, np.int32)


def generate(prompts, lengths, uids, *, cfg=CFG, params=None, key=KEY, window=10, sampling=RULE):
    params = oracle.parameters(cfg) if params is None else params
    uids = np.asarray(uids, np.int32)
    return jax.device_get(
        engine.generate(params, prompts, lengths, uids, key, window=window, cfg=cfg, sampling=sampling)
    )


def joined(prompts, lengths, found):
    """Each sample's prompt and response in one row, with its prompt's length."""
    n = len(found.responses) // len(prompts)
    prompts, lengths = np.repeat(prompts, n, axis=0), np.repeat(lengths, n)
    tokens = np.zeros((len(prompts), prompts.shape[1] + found.responses.shape[1]), np.int32)
    for b, size in enumerate(lengths):
        tokens[b, :size] = prompts[b, :size]
        tokens[b, size : size + found.length[b]] = found.responses[b, : found.length[b]]
    return tokens, lengths


# Scripted models: the next token follows from the last one alone


def scripted(choices, size=32, **settings):
    """A model whose next token is drawn evenly from choices[last token] (or 0): attention and MLP add nothing, embeddings are
    one-hot, and the output matrix is the table of choices."""
    small = {"vocab_size": size, "d_model": size, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 2, "d_ff": 2}
    cfg = replace(oracle.LLAMA, **small, **settings)
    params = {path: jnp.zeros(spec.shape) for path, spec in transformer.param_specs(cfg).items()}
    table = np.zeros((size, size), np.float32)
    for token in range(size):
        table[token, list(choices.get(token, (0,)))] = 60 / np.sqrt(size)
    params |= {"embed": jnp.eye(size), "unembed": jnp.array(table)}
    return cfg, params | {path: jnp.ones(params[path].shape) for path in params if path.endswith("norm")}


def run_script(choices, prompts, *, window=6, stop=(), eos_ids=(5, 9), key=KEY):
    """One sample to each prompt: rows of (tokens drawn, how it stopped)."""
    cfg, params = scripted({token: (after,) for token, after in choices.items()}, eos_ids=eos_ids)
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((len(prompts), 4), np.int32)
    for row, prompt in zip(tokens, prompts):
        row[: len(prompt)] = prompt
    uids = np.arange(len(prompts))[:, None]
    rule = Sampling(stop=stop)
    found = generate(tokens, lengths, uids, cfg=cfg, params=params, key=key, window=window, sampling=rule)
    for length, response, logprobs in zip(found.length, found.responses, found.behaviour_logprobs):
        assert not response[length:].any() and not logprobs[length:].any(), "something stands after the end"
    return [(row[:size].tolist(), int(stop)) for row, size, stop in zip(found.responses, found.length, found.stop)]


CHAIN = {token: token + 1 for token in range(1, 17)} | {10: 10, 17: 5}


def test_invariant_18_the_sampler_says_how_a_row_stopped():
    """Two EOS ids, the window, an EOS as the very last token, an EOS inside the prompt, an EOS as the prompt's last token."""
    assert run_script(CHAIN, [[1], [7], [10], [12], [5, 9, 2], [2, 5], [11]]) == [
        ([2, 3, 4, 5], STOP_EOS),
        ([8, 9], STOP_EOS),
        ([10] * 6, STOP_LENGTH),
        ([13, 14, 15, 16, 17, 5], STOP_EOS),
        ([3, 4, 5], STOP_EOS),
        ([6, 7, 8, 9], STOP_EOS),
        ([12, 13, 14, 15, 16, 17], STOP_LENGTH),
    ]


def test_invariant_18_no_eos_ids_and_eos_zero():
    assert run_script(CHAIN, [[7]], eos_ids=()) == [([8, 9, 10, 10, 10, 10], STOP_LENGTH)]
    assert run_script({1: 2, 2: 0, 0: 7}, [[1], [0]], eos_ids=(0,)) == [([2, 0], STOP_EOS), ([7, 0], STOP_EOS)]


def test_invariant_18_a_row_that_stopped_is_not_looked_at_again():
    """Its padding holds the EOS id 0, and the others run on."""
    after = {1: 2, 2: 3, 3: 4, 4: 5, 5: 0, 11: 11}
    assert run_script(after, [[1], [2], [11]], eos_ids=(0,), stop=((4,),)) == [
        ([2, 3, 4], STOP_SEQUENCE),
        ([3, 4], STOP_SEQUENCE),
        ([11] * 6, STOP_LENGTH),
    ]


@pytest.mark.parametrize(
    ("prompt", "stop", "told"),
    [
        ([1], ((3, 4),), ([2, 3, 4], STOP_SEQUENCE)),
        ([1], ((4,), (8,)), ([2, 3, 4], STOP_SEQUENCE)),
        ([6], ((4,), (8,)), ([7, 8], STOP_SEQUENCE)),
        ([1], ((4, 3), (3, 4, 6)), ([2, 3, 4, 5], STOP_EOS)),
        ([1], ((4, 5),), ([2, 3, 4, 5], STOP_EOS)),  # both at once: the model ended by itself
        ([2], ((2, 3),), ([3, 4, 5], STOP_EOS)),  # the prompt's last token is no part of the response
        ([11], ((15, 16, 17),), ([12, 13, 14, 15, 16, 17], STOP_SEQUENCE)),  # complete with the window's last token
        ([10], ((10, 10, 10),), ([10, 10, 10], STOP_SEQUENCE)),
        ([10], ((10,) * 7,), ([10] * 6, STOP_LENGTH)),  # longer than the window
        ([10], ((0, 10), (0,)), ([10] * 6, STOP_LENGTH)),  # zeros before the response are not tokens
    ],
)
def test_invariant_18_stop_sequences(prompt, stop, told):
    assert run_script(CHAIN, [prompt], stop=stop) == [told]


def test_a_window_of_one_token():
    assert run_script(CHAIN, [[1], [4], [7]], window=1, stop=((8,),)) == [
        ([2], STOP_LENGTH),
        ([5], STOP_EOS),
        ([8], STOP_SEQUENCE),
    ]


def test_decoding_ends_with_the_last_running_row(monkeypatch):
    """As many steps as the longest response needs, not as the window has."""
    steps, decode = [], transformer.decode

    def counted(*args, **kwargs):
        jax.debug.callback(lambda: steps.append(1))
        return decode(*args, **kwargs)

    monkeypatch.setattr(transformer, "decode", counted)
    fresh = jax.jit(engine.generate.__wrapped__, static_argnames=("window", "cfg", "sampling"))
    cfg, params = scripted({token: (after,) for token, after in CHAIN.items()}, eos_ids=(5,))
    for first, drawn in ((3, 2), (4, 1), (10, 50)):
        steps.clear()
        prompts = np.array([[4], [first]], np.int32)
        found = fresh(
            params, prompts, np.array([1, 1]), np.array([[0], [1]]), KEY, window=50, cfg=cfg, sampling=Sampling()
        )
        assert np.max(found.length) == drawn
        jax.effects_barrier()
        assert len(steps) == drawn - 1, "the first token comes from the prompt itself"


# Frequencies and log-probabilities


def test_tokens_have_the_frequencies_that_the_trainer_computes():
    """One prompt, 3,000 samples of one token, at a temperature: chi-squared against the policy head's own distribution."""
    prompts, lengths = prompts_of(CFG, [5], 7)
    found = generate(prompts, lengths, np.arange(3000)[None], window=1, sampling=Sampling(temperature=0.9))
    logits = oracle.logits(oracle.parameters(CFG), prompts[0, :5], CFG)[-1]
    exact = np.exp(oracle.log_softmax(logits / 0.9))
    common = exact * 3000 >= 5
    counts = np.bincount(found.responses[:, 0], minlength=CFG.vocab_size)
    seen, wanted = np.r_[counts[common], counts[~common].sum()], np.r_[exact[common], exact[~common].sum()] * 3000
    assert common.sum() > 40
    assert chi2.sf(np.sum((seen - wanted) ** 2 / wanted), common.sum()) > 1e-3
    np.testing.assert_allclose(found.behaviour_logprobs[:, 0], np.log(exact)[found.responses[:, 0]], atol=3e-5)


@functools.cache
def sampled(rule):
    """4 prompts × 3 samples of up to 10 tokens, and what the policy head says of them at the rule's temperature."""
    prompts, lengths = prompts_of(CFG, [6, 1, 4, 3], 6)
    found = generate(prompts, lengths, np.arange(12).reshape(4, 3), sampling=rule)
    tokens, sizes = joined(prompts, lengths, found)
    logprobs, _ = policy(
        oracle.parameters(CFG), tokens, sizes, found.length, window=10, cfg=CFG, temperature=rule.temperature, chunk=4
    )
    return prompts, lengths, found, tokens, sizes, np.asarray(logprobs), np.arange(10)[None] < found.length[:, None]


def test_invariant_04_the_sampler_and_the_trainer_agree():
    _, _, found, _, _, logprobs, mask = sampled(RULE)
    assert mask.sum() > 60 and {STOP_EOS, STOP_LENGTH} == set(found.stop.tolist())
    np.testing.assert_allclose(found.behaviour_logprobs[mask], logprobs[mask], atol=1e-4)
    assert found.behaviour_logprobs.max() <= 0
    assert not mask.all() and not found.behaviour_logprobs[~mask].any() and not found.responses[~mask].any()
    ended = found.stop == STOP_EOS
    rows = np.flatnonzero(ended)
    assert set(found.responses[rows, found.length[rows] - 1].tolist()) <= set(CFG.eos_ids)
    assert np.all(found.behaviour_logprobs[rows, found.length[rows] - 1] < 0), "the EOS has a log-probability"


def test_invariant_06_truncated_sampling_reports_its_own_distribution():
    """behaviour − policy = −log(kept mass), at every token, the mass by NumPy from the whole distribution."""
    _, _, found, tokens, sizes, logprobs, mask = sampled(Sampling(temperature=1.3, top_p=0.8))
    gaps, kept_masses = [], []
    for b in range(len(tokens)):
        row = tokens[b, : sizes[b] + found.length[b]]
        exact = np.exp(oracle.log_softmax(oracle.logits(oracle.parameters(CFG), row, CFG) / 1.3))
        for t in range(found.length[b]):
            ordered = np.sort(exact[sizes[b] + t - 1])[::-1]
            before = np.cumsum(ordered) - ordered
            kept_masses.append(ordered[before < 0.8].sum())
            gaps.append(found.behaviour_logprobs[b, t] - logprobs[b, t])
    np.testing.assert_allclose(np.exp(-np.float64(gaps)), kept_masses, atol=1e-4)
    assert 0.8 <= np.exp(-np.float64(gaps)).mean() < 0.85
    assert np.all(found.behaviour_logprobs[mask] > logprobs[mask])


def test_invariant_35_the_samplers_logits_are_f32_at_full_precision():
    """Also of a bf16 model, and for the first token as for the later ones."""
    cfg = replace(CFG, dtype="bfloat16", vocab_size=90)
    params = oracle.parameters(cfg)
    with jax.default_matmul_precision("default"):
        run = functools.partial(engine.generate, window=5, cfg=cfg, sampling=Sampling())
        uids = jnp.arange(6).reshape(2, 3)
        program = jax.make_jaxpr(run)(params, jnp.ones((2, 4), jnp.int32), jnp.array([4, 2]), uids, KEY)
    logits = [product for product in named(program, "dot_general") if product.outvars[0].aval.shape[-1] == 90]
    assert len(logits) == 2
    for product in logits:
        assert product.params["preferred_element_type"] == product.outvars[0].aval.dtype == jnp.float32
        assert product.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
    found = generate(*prompts_of(cfg, [4, 2], 4), np.arange(6).reshape(2, 3), cfg=cfg, window=5)
    assert found.behaviour_logprobs.dtype == np.float32 and found.behaviour_logprobs.max() <= 0


@pytest.mark.parametrize("family", list(oracle.FAMILIES))
def test_greedy_decoding_is_the_argmax_of_the_whole_row_64_times(family):
    """By causality one forward pass over the finished row shows what every shorter one would have chosen."""
    cfg = replace(oracle.FAMILIES[family], tied=False)  # a tied random model repeats itself
    prompts, lengths = prompts_of(cfg, [9, 2], 9)
    found = generate(prompts, lengths, [[0], [1]], cfg=cfg, window=64, sampling=Sampling(temperature=0))
    tokens, _ = joined(prompts, lengths, found)
    for b, size in enumerate(lengths):
        logits = oracle.logits(oracle.parameters(cfg), tokens[b, : size + 64], cfg)[size - 1 : -1]
        top = np.sort(logits, axis=1)
        assert np.all(top[:, -1] - top[:, -2] > 1e-4), "this seed has a near tie, which proves nothing"
        np.testing.assert_array_equal(found.responses[b], logits.argmax(axis=1))
    assert len(set(found.responses.ravel().tolist())) > 5
    np.testing.assert_array_equal(found.behaviour_logprobs, 0)


# Noise


def same(one, two, atol=1e-5):
    """Tokens, lengths and stops equal, log-probabilities to rounding."""
    for name in ("responses", "length", "stop"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    np.testing.assert_allclose(one.behaviour_logprobs, two.behaviour_logprobs, atol=atol)


def picked(found, rows):
    return jax.tree.map(lambda x: x[np.asarray(rows)], found)


@functools.cache
def base():
    prompts, lengths = prompts_of(CFG, [6, 1, 4, 3], 6)
    uids = np.arange(16, dtype=np.int32).reshape(4, 4)
    return prompts, lengths, uids, generate(prompts, lengths, uids)


def test_invariant_39_the_order_of_a_batch_does_not_matter():
    prompts, lengths, uids, found = base()
    order = np.array([2, 0, 3, 1])
    slots = np.array([3, 1, 0, 2])
    again = generate(prompts[order], lengths[order], uids[order][:, slots])
    same(picked(found, uids[order][:, slots].ravel()), again)


def test_invariant_39_batch_mates_do_not_matter():
    prompts, lengths, uids, found = base()
    others, sizes = prompts_of(CFG, [2, 6, 5, 4], 6, seed=9)
    others[1], sizes[1] = prompts[2], lengths[2]
    mates = np.arange(100, 116).reshape(4, 4)
    mates[1] = uids[2]
    same(picked(found, uids[2]), picked(generate(others, sizes, mates), range(4, 8)))


def test_invariant_39_grouping_does_not_matter():
    """n samples of a prompt in one group, in two, or one alone in the batch."""
    prompts, lengths, uids, found = base()
    again = generate(np.repeat(prompts, 2, axis=0), np.repeat(lengths, 2), uids.reshape(-1, 2))
    same(found, again)
    same(picked(found, [9]), generate(prompts[2:3], lengths[2:3], [[9]]))


def test_invariant_39_windows_do_not_matter():
    """Neither the prompts' window, nor what stands in its padding, nor (as far as it goes) the responses' window."""
    prompts, lengths, uids, found = base()
    wide = np.full((4, 23), 2**31 - 1, np.int32)
    inside = np.arange(6)[None] < lengths[:, None]
    wide[:, :6] = np.where(inside, prompts, CFG.vocab_size + 5)
    same(found, generate(wide, lengths, uids))
    short = generate(prompts, lengths, uids, window=4)
    np.testing.assert_array_equal(short.responses, found.responses[:, :4])
    np.testing.assert_array_equal(short.length, np.minimum(found.length, 4))


def test_invariant_39_uids_and_keys_make_the_noise():
    prompts, lengths, uids, found = base()
    again = generate(prompts, lengths, uids)
    same(found, again, atol=0)
    for other in (generate(prompts, lengths, uids + 16), generate(prompts, lengths, uids, key=jax.random.key(12))):
        assert np.mean(np.any(other.responses != found.responses, axis=1)) > 0.9
    large = generate(prompts, lengths, uids + (2**31 - 16))
    assert len({tuple(row) for row in large.responses.tolist()}) == 16, "uids up to the largest int32"


def test_invariant_39_all_uids_and_all_tokens_have_noise_of_their_own():
    """Every token is as likely as any other, so equal rows or repeated tokens would be equal noise."""
    cfg, params = scripted({token: range(32) for token in range(32)})
    prompts, lengths, uids = np.ones((40, 1), np.int32), np.ones(40, np.int32), np.arange(160).reshape(40, 4)
    found = generate(prompts, lengths, uids, cfg=cfg, params=params)
    assert len({tuple(row) for row in found.responses.tolist()}) == 160
    repeats = np.mean(found.responses[:, 1:] == found.responses[:, :-1])
    assert 0.01 < repeats < 0.06, "1 in 32 tokens equals the one before it"
    assert np.bincount(found.responses.ravel(), minlength=32).min() > 25


def test_invariant_40_groups_are_contiguous_and_their_members_differ():
    """The prompt's last token leads to one of two marks of its own, then to anything."""
    choices = {token: range(20, 32) for token in range(4, 32)} | {1: (4, 5), 2: (6, 7), 3: (8, 9)}
    cfg, params = scripted(choices)
    prompts, lengths, uids = np.array([[1], [2], [3]], np.int32), np.ones(3, np.int32), np.arange(24).reshape(3, 8)
    found = generate(prompts, lengths, uids, cfg=cfg, params=params)
    for group, token in zip(found.responses[:, 0].reshape(3, 8), (1, 2, 3)):
        assert set(group.tolist()) == set(choices[token])
    assert len({tuple(row) for row in found.responses.tolist()}) == 24


# The compiled program


def test_one_program_serves_all_batches_of_a_shape():
    prompts, lengths, uids, _ = base()
    compiled = engine.generate._cache_size()
    others, sizes = prompts_of(CFG, [1, 2, 3, 6], 6, seed=4)
    generate(others, sizes, uids + 1000, key=jax.random.key(99))
    changed = jax.tree.map(lambda x: x * 1.01, oracle.parameters(CFG))
    again = {"params": changed, "key": jax.random.fold_in(KEY, 1), "cfg": replace(CFG), "sampling": replace(RULE)}
    generate(others, sizes, uids, **again)
    assert engine.generate._cache_size() == compiled
    generate(others, sizes, uids, window=11)
    assert engine.generate._cache_size() == compiled + 1


def test_no_array_of_the_loop_repeats_the_prompt_for_each_sample():
    G, n, P, R = 2, 5, 13, 3
    run = functools.partial(engine.generate, window=R, cfg=CFG, sampling=Sampling())
    uids = jnp.arange(G * n).reshape(G, n)
    program = jax.make_jaxpr(run)(oracle.parameters(CFG), jnp.ones((G, P), jnp.int32), jnp.array([13, 2]), uids, KEY)
    loop = named(program, "while")
    assert len(loop) == 1
    carried = [v.aval.shape for v in loop[0].outvars]
    assert carried.count((G, n, R, CFG.kv_heads, CFG.head_dim)) == 2 * CFG.layers
    prompts = {shape[:-3] for shape in shapes(program) if shape[-3:] == (P, CFG.kv_heads, CFG.head_dim)}
    assert prompts == {(G,), (CFG.layers, G)}


def test_generation_gives_the_same_tokens_on_a_mesh():
    prompts, lengths, uids, found = base()
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    axes = {path: spec.axes for path, spec in transformer.param_specs(CFG).items()}
    with jax.set_mesh(mesh):
        params = sharding.place(oracle.parameters(CFG), axes, mesh)
        assert params["layers/up"].sharding.shard_shape((1, 32, 48)) == (1, 16, 24)
        placed = sharding.place_rows((prompts, lengths, uids), mesh)
        again = engine.generate(params, *placed, KEY, window=10, cfg=CFG, sampling=RULE)
        assert len(again.responses.sharding.device_set) == 8
    same(found, jax.device_get(again))


# What is refused on the host


def checked(prompts, lengths, window=4, cfg=CFG):
    return engine.check(np.asarray(prompts, np.int32), np.asarray(lengths, np.int32), window=window, cfg=cfg)


def test_invariant_41_ids_outside_the_vocabulary_are_refused_by_row():
    prompts, lengths = prompts_of(CFG, [6, 1, 4, 3], 6)
    checked(prompts, lengths)
    for wrong in (CFG.vocab_size, -1, 2**31 - 1):
        bad = prompts.copy()
        bad[0, 5] = bad[3, 0] = wrong
        with pytest.raises(UserError, match=r"prompts \[0, 3\] hold token ids outside the model's vocabulary of 96"):
            checked(bad, lengths)
    padded = np.where(np.arange(6)[None] < lengths[:, None], prompts, CFG.vocab_size)
    checked(padded, lengths)  # padding is nobody's token


@pytest.mark.parametrize(
    ("lengths", "window", "told"),
    [
        ([6, 0, 4, -1], 4, r"prompts \[1, 3\] are empty; each needs at least one token"),
        ([6, 1, 7, 3], 4, r"prompts \[2\] are longer than the prompt window of 6 tokens"),
        ([6, 1, 4, 3], 0, "the response window is 0; it must be at least 1"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(lengths, window, told):
    with pytest.raises(UserError, match=told):
        checked(prompts_of(CFG, [6, 1, 4, 3], 6)[0], lengths, window)


def test_rows_past_learned_positions_are_refused():
    cfg = replace(oracle.GPT2, max_positions=10)
    checked(np.ones((1, 6)), [6], 4, cfg)
    with pytest.raises(UserError, match=r"window 6 \+ response window 5 exceeds the model's 10 learned positions"):
        checked(np.ones((1, 6)), [6], 5, cfg)
    checked(np.ones((1, 6)), [6], 5, replace(CFG, max_positions=10))  # rope has no table to run out of


def test_many_wrong_rows_are_counted():
    with pytest.raises(UserError, match=r"prompts \[0, 1, 2, 3, 4\] and 3 more are empty"):
        checked(np.ones((8, 2)), np.zeros(8))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"temperature": float("nan")}, "temperature must be 0"),
        ({"temperature": float("inf")}, "temperature must be 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.1}, "top_p must be above 0"),
        ({"min_p": 1.0}, "min_p must be at least 0"),
        ({"stop": ((1,), ())}, "an empty sequence"),
    ],
)
def test_sampling_rules_that_make_no_sense_are_refused(settings, told):
    with pytest.raises(UserError, match=told):
        Sampling(**settings)


def test_which_rules_truncate():
    assert not Sampling().truncates and not Sampling(temperature=0.3, stop=((1,),)).truncates
    some = Sampling(temperature=0), Sampling(top_k=3), Sampling(top_p=0.9), Sampling(min_p=0.1)
    assert all(rule.truncates for rule in some)
