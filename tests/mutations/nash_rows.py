"""Mistakes in Nash-MD: in what a response learns from, in the mixture that it plays against, and in its loop."""

from tests.mutations.mutation import Mutation, rows

ORACLE, BATCH = "tests/objectives/test_nash.py", "tests/algorithms/test_nash.py"
MIXED, LOOP = "tests/generate/test_mixture.py", "tests/experiments/test_nash_md.py"
LOSS, JUDGE = "rlhf_jax/objectives/nash.py", "rlhf_jax/algorithms/nash.py"
ENGINE, RULES = "rlhf_jax/generate/engine.py", "rlhf_jax/generate/sampling.py"
PARTS, SCRIPT, PLAN = "experiments/online_parts.py", "experiments/nash_md.py", "rlhf_jax/runs/dry_run/nash_md.py"
row = rows("nash")

REPORTED = f"{MIXED} what_is_reported_of_a_token_is_its_probability_in_the_mixture"

# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("kl-of-the-past", LOSS, "jnp.cumsum(log_ratio[:, ::-1], axis=1)[:, ::-1]", "jnp.cumsum(log_ratio, axis=1)",
        f"{ORACLE} the_expected_gradient_is_that_of_winning_less_the_kl", "a token answers for those before it"),
    row("kl-of-one-token", LOSS, "beta * jnp.cumsum(log_ratio[:, ::-1], axis=1)[:, ::-1]", "beta * log_ratio",
        f"{ORACLE} the_expected_gradient_is_that_of_winning_less_the_kl", "both functions are TRL's"),
    row("kl-sign", LOSS, "- 0.5 - penalty", "- 0.5 + penalty",
        f"{ORACLE} a_win_makes_a_response_likelier_and_the_kl_draws_it_back", "the policy is driven from the reference"),
    row("no-baseline", LOSS, "probability[:, None] - 0.5 - penalty", "probability[:, None] - penalty",
        f"{ORACLE} a_win_makes_a_response_likelier_and_the_kl_draws_it_back", "losing is learnt too"),
    row("gain-learnt", LOSS, "jax.lax.stop_gradient(gain)", "gain", f"{ORACLE} the_gain_is_detached",
        "the log-ratio has a gradient of its own"),
    row("loss-sign", LOSS, "return -jnp.sum(", "return jnp.sum(",
        f"{ORACLE} a_win_makes_a_response_likelier_and_the_kl_draws_it_back", "the policy learns to lose"),
    row("padding-learnt", LOSS, "blank(logprobs, mask) * jax", "logprobs * jax", f"{ORACLE} a_loss_equals_a_loop",
        "what stands past a response makes it NaN"),
    row("judged-turned-round", JUDGE, "scores[:, 0] - scores[:, 1]", "scores[:, 1] - scores[:, 0]",
        f"{BATCH} the_first_response_is_judged_against_the_second", "the opponent's wins are the policy's"),
    row("temperature-multiplies", JUDGE, "ahead / temperature", "ahead * temperature",
        f"{BATCH} the_first_response_is_judged_against_the_second", "a higher temperature makes the judge surer"),
    row("ties-won", JUDGE, "(1.0 + jnp.sign(ahead)) / 2.0", "jnp.where(ahead >= 0, 1.0, 0.0)",
        f"{BATCH} the_first_response_is_judged_against_the_second", "a tie is a win"),
    row("opponent-learnt", JUDGE, "tokens=rollout.tokens[::2]", "tokens=rollout.tokens[1::2]",
        f"{BATCH} the_first_response_is_judged_against_the_second", "the opponent's response is made likelier"),
    row("sum-over-responses", JUDGE, "1.0 / batch.probability.size", "1.0",
        f"{BATCH} the_loss_is_the_mean_over_responses_of_their_sums", "the step grows with the batch"),
    row("kl-past-the-end", JUDGE, "jnp.sum(blank(kl.k1(logprobs, batch.ref_logprobs), mask), axis=1)",
        "jnp.sum(kl.k1(logprobs, batch.ref_logprobs), axis=1)",
        f"{BATCH} the_loss_is_the_mean_over_responses_of_their_sums", "the KL that is told counts padding"),
    row("own-told", JUDGE, "jnp.mean(rollout.scores[1::2])", "jnp.mean(rollout.scores[::2])",
        f"{BATCH} the_first_response_is_judged_against_the_second", "the policy's score is told as the opponent's"),
    row("shares-exchanged", RULES, "(1.0 - share) * own.astype(jnp.float32) + share * other.astype(jnp.float32)",
        "share * own.astype(jnp.float32) + (1.0 - share) * other.astype(jnp.float32)", REPORTED, "β is the policy's share"),
    row("mixture-of-probabilities", RULES, "(1.0 - share) * own.astype(jnp.float32) + share * other.astype(jnp.float32)",
        "jnp.log((1.0 - share) * jax.nn.softmax(own) + share * jax.nn.softmax(other))", REPORTED, "an arithmetic mixture"),
    row("ends-exchanged", ENGINE, "one = reference if share else params", "one = params if share else reference",
        f"{MIXED} at_its_ends_it_is_one_of_the_models_bit_for_bit", "self-play plays the reference"),
    row("one-cache", ENGINE, "zip(models, layers, loop.caches, strict=True)",
        "zip(models, layers, loop.caches[:1] * len(models), strict=True)", REPORTED,
        "the reference remembers what the policy read"),
    row("one-models-layers", ENGINE, "[transformer.unstack(params, cfg) for params in models]",
        "[transformer.unstack(models[0], cfg) for params in models]", REPORTED, "the reference decodes with the policy's layers"),
    row("one-prefill", ENGINE, "transformer.prefill(params, prompts, lengths, n=n",
        "transformer.prefill(models[0], prompts, lengths, n=n", f"{MIXED} tokens_have_the_frequencies_of_the_mixture",
        "the reference has the policy's first token"),
    row("share-of-two", ENGINE, "not 0 <= share <= 1", "not 0 <= share <= 2", f"{MIXED} a_share_is_between_0_and_1",
        "a share above 1 plays against the opposite of the policy"),
    row("noise-of-one", PARTS, "length, uids[:, 1:], key", "length, uids[:, :1], key",
        f"{LOOP} the_policy_plays_the_mixture_of_itself_and_the_reference", "both responses are drawn with the same noise"),
    row("players-exchanged", PARTS, "engine.generate_mixture(params, reference,", "engine.generate_mixture(reference, params,",
        f"{LOOP} the_policy_plays_the_mixture_of_itself_and_the_reference", "the share is the policy's"),
    row("cut-distribution", SCRIPT, "not self.sampling.truncates,", "self.sampling.temperature > 0,",
        f"{LOOP} what_cannot_work_is_refused_before_anything_is_read", "the gradient is of a distribution never sampled"),
    row("reference-moves", SCRIPT, "collect(overlay(frozen, state.params), begun,",
        "collect(overlay(frozen, state.params), overlay(frozen, state.params),",
        f"{LOOP} the_run_folder_is_that_of_any_run", "nothing holds the policy"),
    row("opponent-told", SCRIPT, "jax.tree.map(lambda x: x[::2], experience)", "experience",
        f"{LOOP} the_run_folder_is_that_of_any_run", "what the mixture wrote is told as the policy's"),
    row("key-of-the-run", SCRIPT, "key = jax.random.fold_in(run_key, iteration)",
        "key = jax.random.fold_in(run_key, iteration - start)", f"{LOOP} killed_and_resumed_it_ends_with_the_same_bytes",
        "noise depends on when a run was resumed"),
    row("plan-of-one-model", PLAN, "models = 1 if cfg.mixture in (0, 1) else 2", "models = 1",
        f"{LOOP} a_plan_counts_both_models_of_the_mixture", "the second cache is not in the plan"),
)
# fmt: on
