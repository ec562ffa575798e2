"""Mistakes in preference optimisation: most still train, on something else than was asked for."""

from tests.mutations.mutation import Mutation

LOSSES, OFFLINE = "tests/objectives/test_preference.py", "tests/algorithms/test_offline.py"
SCRIPT, BEST = "tests/experiments/test_dpo.py", "tests/experiments/test_best_of_n.py"
LOOP, PUSH = "test_a_loss_equals_a_loop", "test_the_gradient_pushes_where_the_method_promises"
PAIRS, FREE = "rlhf_jax/objectives/preference.py", "rlhf_jax/objectives/preference_free.py"
ALONE, RUN = "rlhf_jax/objectives/preference_unpaired.py", "rlhf_jax/algorithms/offline.py"


def row(id: str, file: str, find: str, replace: str, tests: str, reason: str) -> Mutation:
    """`tests` is "FILE name …"."""
    path, *names = tests.split()
    return Mutation(f"preference-{id}", 0, file, find, replace, tuple(f"{path}::{name}" for name in names), reason)


# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("smoothing-turned-round", PAIRS, "-(1.0 - share) * jax.nn.log_sigmoid(h) - share * jax.nn.log_sigmoid(-h)",
        "-share * jax.nn.log_sigmoid(h) - (1.0 - share) * jax.nn.log_sigmoid(-h)",
        f"{LOSSES} {LOOP}[sigmoid-defaults]", "every label is taken to be flipped"),
    row("robust-unscaled", PAIRS, " / (1.0 - 2.0 * label_smoothing)", "", f"{LOSSES} {LOOP}[robust-defaults]",
        "the estimate is of a share of the loss"),
    row("ipo-margin", PAIRS, "1.0 / (2.0 * beta))", "1.0 / beta)", f"{LOSSES} {LOOP}[ipo-defaults]",
        "twice the margin is wanted"),
    row("ipo-sums", PAIRS, "ipo.per_token = True", "ipo.per_token = False",
        f"{LOSSES} test_what_a_loss_says_of_itself", "the margin that is wanted shrinks with the length"),
    row("exo-other-kl", PAIRS, "ahead_term = jax.nn.sigmoid(h)", "ahead_term = (1.0 - label_smoothing)",
        f"{LOSSES} {LOOP}[exo-others]", "half of the KL is weighed by the labels instead of the policy"),
    row("nca-rejected-up", PAIRS, "0.5 * jax.nn.log_sigmoid(-v)", "0.5 * jax.nn.log_sigmoid(v)",
        f"{LOSSES} {PUSH}[nca]", "rejected responses are pushed up"),
    row("sppo-one-side", PAIRS, "jnp.square(v + 0.5 / beta)", "jnp.square(v - 0.5 / beta)",
        f"{LOSSES} {LOOP}[sppo_hard-defaults]", "the loser is pulled to where the winner should be"),
    row("aot-unsorted", PAIRS, "margin, reference = chosen - rejected, jnp.sort(ref_chosen - ref_rejected)",
        "margin, reference = chosen - rejected, ref_chosen - ref_rejected", f"{LOSSES} {LOOP}[aot-defaults]",
        "ranks of one distribution are looked up in rows of the other"),
    row("aot-spans-unsaid", PAIRS, "for _loss in (aot, aot_unpaired, bco_pair)", "for _loss in (aot_unpaired, bco_pair)",
        f"{LOSSES} test_rows_depend_on_each_other_only_where_it_is_said[aot]", "micro-batches have quantiles of their own"),
    row("apo-down-chosen-up", PAIRS, "return jax.nn.sigmoid(u) + jax.nn.sigmoid(v - u)",
        "return jax.nn.sigmoid(-u) + jax.nn.sigmoid(v - u)", f"{LOSSES} {LOOP}[apo_down-defaults]",
        "chosen responses go up that should go down"),
    row("discopop-unbounded", PAIRS, "jnp.exp(-jnp.clip(h, -LIMIT, LIMIT))", "jnp.exp(-h)",
        f"{LOSSES} test_extreme_log_ratios_give_finite_losses_and_gradients", "an exponential that overflows to NaN"),
    row("bco-pair-shift-learnt", PAIRS, "jax.lax.stop_gradient(jnp.mean(u + v) / 2.0)", "jnp.mean(u + v) / 2.0",
        f"{LOSSES} test_the_shift_of_bco_is_detached", "rows push each other through the shift"),
    row("simpo-gamma-in-beta", FREE, "h = beta * (chosen - rejected) - gamma", "h = beta * (chosen - rejected - gamma)",
        f"{LOSSES} {LOOP}[simpo-others]", "the margin is scaled twice"),
    row("orpo-odds", FREE, "return x - jnp.where(near, close, far)", "return x + jnp.where(near, close, far)",
        f"{LOSSES} {LOOP}[orpo-defaults]", "p (1 − p) is taken for the odds"),
    row("orpo-certain", FREE, "x = jnp.minimum(x, -jnp.exp(jnp.asarray(-LIMIT, x.dtype)))", "x = jnp.minimum(x, 0.0)",
        f"{LOSSES} test_extreme_log_ratios_give_finite_losses_and_gradients", "a certain response has infinite odds"),
    row("alphapo-sign", FREE, "jnp.clip(-alpha * x, -LIMIT, LIMIT) for x", "jnp.clip(alpha * x, -LIMIT, LIMIT) for x",
        f"{LOSSES} {LOOP}[alphapo-defaults]", "the reward has the shape of −α, turned round"),
    row("kto-drift-learnt", ALONE, "z0 = jax.lax.stop_gradient(jnp.maximum(jnp.mean(mismatched - ref_mismatched), 0.0))",
        "z0 = jnp.maximum(jnp.mean(mismatched - ref_mismatched), 0.0)",
        f"{LOSSES} test_good_responses_are_pushed_up_and_bad_ones_down[kto]", "the baseline is trained"),
    row("kto-drift-below-zero", ALONE, "jnp.maximum(jnp.mean(mismatched - ref_mismatched), 0.0)",
        "jnp.mean(mismatched - ref_mismatched)", f"{LOSSES} {LOOP}[kto-defaults]", "a KL below 0"),
    row("bco-rare-kind", ALONE, "(of_good + of_bad) / 2.0", "jnp.mean(fixed)", f"{LOSSES} {LOOP}[bco-defaults]",
        "where one kind is rare the shift is the other's mean"),
    row("padding-counts", RUN, "jnp.where(mask, jnp.where(shared, 1.0, ld_alpha) * logprobs, 0.0)",
        "jnp.where(shared, 1.0, ld_alpha) * logprobs", f"{OFFLINE} test_sums_equal_a_loop_whatever_stands_behind_a_response",
        "what stands behind a response is part of it"),
    row("shared-length-of-the-longer", RUN, "jnp.min(length, axis=1)", "jnp.max(length, axis=1)",
        f"{OFFLINE} test_sums_equal_a_loop_whatever_stands_behind_a_response", "nothing is ever discounted"),
    row("label-one-way", RUN, "_pairs(objective, policy, reference, 1)", "_pairs(objective, policy, reference, 0)",
        f"{OFFLINE} test_a_mixture_over_labels_equals_a_loop", "a pair that most find the other way round teaches the same"),
    row("reference-not-turned", RUN, '"ref_rejected": reference[:, 1 - first]', '"ref_rejected": reference[:, 1]',
        f"{OFFLINE} test_a_mixture_over_labels_equals_a_loop", "a pair turned round keeps half of its reference"),
    row("mixture-unweighted", RUN, "        part = weighted_sum(terms, weights)\n        total = total + counts * part",
        "        part = weighted_sum(terms, weights)\n        total = total + part",
        f"{OFFLINE} test_a_mixture_over_labels_equals_a_loop", "every loss of a mixture counts the same"),
    row("drift-of-its-own", RUN, "tokens=batch.tokens[:, 1:], response_length=batch.response_length[:, 1:]",
        "tokens=batch.tokens[:, :1], response_length=batch.response_length[:, :1]",
        f"{OFFLINE} test_verdicts_equal_a_loop_and_drift_is_measured_without_gradient",
        "the drift is measured on the response that is judged"),
    row("partial-hides-spanning", RUN, "objective = objective.func", "return False",
        f"{OFFLINE} test_micro_batches_add_up_and_losses_that_span_rows_refuse_them",
        "a loss with its settings bound no longer says that it spans rows"),
    row("reference-with-gradient", RUN, "return jax.lax.stop_gradient(sequence_logprobs(", "return +(sequence_logprobs(",
        f"{OFFLINE} test_no_gradient_passes_the_reference", "the reference is trained too"),
    row("unheeded-options", "experiments/dpo_parts.py", "sorted(given.keys() - heeded)", "sorted(set())",
        f"{SCRIPT} test_what_cannot_be_is_refused_in_one_line", "a misspelt setting is silently left out"),
    row("reference-stays", "experiments/dpo.py", "if moves and (step + 1) % cfg.reference_every == 0",
        "if moves and (step + 1) % cfg.reference_every == cfg.reference_every",
        f"{SCRIPT} test_a_reference_that_moves_survives_a_resume_bit_for_bit[1.0]", "TR-DPO is plain DPO"),
    row("reference-forgotten", "experiments/dpo.py", '"reference": reference if moves', '"reference": trained if moves',
        f"{SCRIPT} test_a_reference_that_moves_survives_a_resume_bit_for_bit[1.0]", "a resumed run has its first reference"),
    row("best-is-worst", "experiments/best_of_n.py", "top, low = max(ended", "top, low = min(ended",
        f"{BEST} test_the_best_are_demonstrations_and_best_and_worst_are_pairs", "the worst response is taught"),
    row("cut-responses-kept", "experiments/best_of_n.py", 'stop != "length" or not cfg.finished', "True",
        f"{BEST} test_responses_that_were_cut_are_never_written", "responses that break off are taught"),
    row("best-with-replacement", "rlhf_jax/evaluation/best_of_n.py", "math.comb(i - 1, k - 1) / math.comb(n, k)",
        "(i**k - (i - 1) ** k) / n**k", "tests/evaluation/test_best_of_n.py test_expected_best_is_the_mean_over_every_subset",
        "a plug-in estimate, too low for every k above 1"),
)
# fmt: on
