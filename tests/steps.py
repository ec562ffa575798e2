"""The jitted steps of the stages, at tiny shapes, as the scripts put them together; arguments as shapes alone."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.algorithms import ppo, reward_model, sft
from rlhf_jax.algorithms.update import make_update
from rlhf_jax.generate import engine
from rlhf_jax.model import heads, transformer
from rlhf_jax.objectives import weights
from rlhf_jax.types import Demonstrations, Pairs, Rollout, Sampling, TrainState

SAMPLING = Sampling(temperature=0.7)


def ints(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def key():
    return jax.eval_shape(lambda: jax.random.key(0))


def shapes_of(make, *args):
    return jax.eval_shape(make, *args)


def models(cfg):
    """Shapes of a policy, of a value model and of a reward model on the same trunk."""
    policy = shapes_of(lambda key: transformer.init(key, cfg), key())
    judge_cfg = replace(cfg, axes=1)
    judge = shapes_of(lambda key: transformer.init(key, judge_cfg), key())
    return policy, shapes_of(lambda params: heads.add_value_head(params, cfg), policy), judge, judge_cfg


def rollout(B, P, R):
    return Rollout(
        tokens=ints(B, P + R),
        **{name: ints(B) for name in ("prompt_length", "response_length", "stop", "prompt_id", "uid", "version")},
        **{name: floats(B, R) for name in ("behaviour_logprobs", "logprobs", "entropy", "ref_logprobs", "values")},
        bootstrap=floats(B),
        scores=floats(B),
        score_parts={"model": floats(B)},
        sampling=SAMPLING,
    )


def forwards(cfg, R, chunk):
    """The policy's and the critic's forward pass over a PPO batch."""

    def both(params, batch):
        row = batch.tokens, batch.prompt_length, batch.response_length
        policy = heads.policy(params["policy"], *row, window=R, cfg=cfg, temperature=0.7, chunk=chunk)
        return *policy, heads.value(params["value"], *row, window=R, cfg=cfg)

    return both


NAMES = (
    "generate",
    "generate, truncated",
    "generate, mixture",
    "policy",
    "value",
    "reward",
    "ppo targets",
    "ppo update",
    "sft update",
    "reward-model update",
)


@functools.cache
def steps(cfg, *, G=2, n=2, P=4, R=4, chunk=2):
    """{name: (jitted function, arguments)} for each of NAMES: every step that a run compiles."""
    policy, critic, judge, judge_cfg = models(cfg)
    B, adam = G * n, optax.adam(1e-5)
    row = ints(B, P + R), ints(B), ints(B)
    facts = rollout(B, P, R)
    targets = jax.jit(functools.partial(ppo.targets, kl_coef=0.05))

    def state(params):
        return shapes_of(lambda params: TrainState.create(params, adam), params)

    def next_tokens(params, tokens, length):
        states = transformer.hidden(params, tokens, length, cfg=cfg)[:, :-1]
        return heads.token_logprobs(params, states, tokens[:, 1:], cfg=cfg, chunk=chunk)

    def judged(params, tokens, length):
        return heads.reward(params, tokens, length, cfg=judge_cfg)[:, 0]

    ppo_update = make_update(
        functools.partial(ppo.loss, forward=forwards(cfg, R, chunk)),
        adam,
        weigh=lambda batch: weights.token_mean(batch.mask),
        epochs=2,
        minibatches=2,
        microbatches=2,
        stop=ppo.target_kl(0.1),
    )
    sft_loss = functools.partial(sft.loss, forward=next_tokens)
    sft_update = make_update(sft_loss, adam, weigh=lambda batch: weights.token_mean(sft.learnt(batch)))
    reward_loss = functools.partial(reward_model.loss, forward=judged)
    reward_update = make_update(reward_loss, adam, weigh=reward_model.weigh, microbatches=2)
    policy_forward = functools.partial(heads.policy, window=R, cfg=cfg, temperature=0.7, chunk=chunk)
    demonstrations = Demonstrations(ints(B, P + R), ints(B), jax.ShapeDtypeStruct((B, P + R), bool))
    pairs = Pairs(ints(B, P + R), ints(B), ints(B, P + R), ints(B), floats(B), floats(B), floats(B))
    rule = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, stop=((1, 2),))
    generate = {
        "generate": functools.partial(engine.generate, window=R, cfg=cfg, sampling=SAMPLING),
        "generate, truncated": functools.partial(engine.generate, window=R, cfg=cfg, sampling=rule),
    }
    prompts = policy, ints(G, P), ints(G), ints(G, n), key()
    mixture = functools.partial(engine.generate_mixture, share=0.25, window=R, cfg=cfg, sampling=SAMPLING)
    return {name: (jax.jit(function), prompts) for name, function in generate.items()} | {
        "generate, mixture": (jax.jit(mixture), (policy, *prompts)),
        "policy": (jax.jit(policy_forward), (policy, *row)),
        "value": (jax.jit(functools.partial(heads.value, window=R + 1, cfg=cfg)), (critic, *row)),
        "reward": (jax.jit(functools.partial(heads.reward, cfg=judge_cfg)), (judge, *row[:2])),
        "ppo targets": (targets, (facts,)),
        "ppo update": (ppo_update, (state({"policy": policy, "value": critic}), shapes_of(targets, facts), key())),
        "sft update": (sft_update, (state(policy), demonstrations, key())),
        "reward-model update": (reward_update, (state(judge), pairs, key())),
    }
