"""Mistakes in the zoo of policy losses, in advantages without a critic, and in what puts them together."""

from tests.mutations.mutation import Mutation, named

ZOO, ADVANTAGES = "tests/objectives/test_policy_zoo.py", "tests/objectives/test_group_advantages.py"
GROUP, DETAILS, SCRIPT = (
    "tests/algorithms/test_group.py",
    "tests/algorithms/test_ppo_details.py",
    "tests/experiments/test_grpo.py",
)


def row(id: str, file: str, find: str, replace: str, tests: str, reason: str) -> Mutation:
    """`file` below rlhf_jax/ unless it is a script; `tests` is "FILE name name …", the names below that file."""
    where = file if file.startswith("experiments/") else f"rlhf_jax/{file}"
    return Mutation(f"zoo-{id}", 0, where, find, replace, named(tests), reason)


LOSSES, OF_GROUPS = "objectives/policy_zoo.py", "objectives/group_advantages.py"

# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("sum-for-mean", LOSSES, " / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)", "",
        f"{ZOO} a_loss_equals_a_loop", "a sequence's ratio grows with its length"),
    row("mean-over-the-window", LOSSES, "jnp.sum(blank(x, mask), axis=1, keepdims=True)",
        "jnp.sum(x, axis=1, keepdims=True)", f"{ZOO} what_stands_after_the_last_token_does_not_matter",
        "padded slots count in a sequence's ratio"),
    row("unclipped-sign", LOSSES, "return -ratio(logprobs, old_logprobs) * advantages",
        "return ratio(logprobs, old_logprobs) * advantages",
        f"{ZOO} at_the_old_policy_every_loss_pulls_alike_along_the_advantage", "reward is minimised"),
    row("penalty-the-wrong-way-round", LOSSES, "kl.k3(old_logprobs, logprobs)", "kl.k3(logprobs, old_logprobs)",
        f"{ZOO} a_loss_equals_a_loop", "tokens drawn from π_old estimate KL(π_old, π)"),
    row("gspo-clip-high", LOSSES,
        "return clipped(sequence, jnp.zeros_like(sequence), advantages, clip=clip, clip_high=clip_high)\n\n\ndef gspo_token",
        "return clipped(sequence, jnp.zeros_like(sequence), advantages, clip=clip)\n\n\ndef gspo_token",
        f"{ZOO} a_loss_equals_a_loop", "the upper bound has its own setting"),
    row("gspo-token-is-gspo", LOSSES,
        "jax.lax.stop_gradient(row_mean(logprobs - old_logprobs, mask) - logprobs) + logprobs",
        "row_mean(logprobs - old_logprobs, mask) + 0.0 * logprobs",
        f"{ZOO} gspo_and_its_token_form_part_only_where_tokens_have_advantages_of_their_own",
        "each token is pulled by its own advantage"),
    row("cispo-differentiates-its-weight", LOSSES, "-jax.lax.stop_gradient(bounded) * advantages * logprobs",
        "-bounded * advantages * logprobs", f"{ZOO} gradient_by_hand_inside_and_outside_the_bounds", "a weight is not a loss"),
    row("cispo-lower-bound", LOSSES, "None if clip is None else 1.0 - clip", "None", f"{ZOO} a_loss_equals_a_loop",
        "the lower bound is never used"),
    row("sapo-temperatures-swapped", LOSSES, "jnp.where(advantages > 0, tau_pos, tau_neg)",
        "jnp.where(advantages < 0, tau_pos, tau_neg)", f"{ZOO} a_loss_equals_a_loop", "bad tokens are to fade sooner"),
    row("sapo-unscaled", LOSSES, "-(4.0 / tau)", "-(2.0 / tau)",
        f"{ZOO} at_the_old_policy_every_loss_pulls_alike_along_the_advantage", "the slope at ρ = 1 is that of ρ A"),
    row("geometric-optimistic", LOSSES, "jnp.minimum(sign * log_ratio, sign * bounded)",
        "jnp.maximum(sign * log_ratio, sign * bounded)", f"{ZOO} gradient_by_hand_inside_and_outside_the_bounds",
        "the bound must be pessimistic"),
    row("geometric-unbounded", LOSSES, "jnp.clip(row_mean(pessimistic, mask), -kl.LIMIT, kl.LIMIT)",
        "row_mean(pessimistic, mask)", f"{ZOO} gradients_stay_finite_at_extreme_log_ratios", "exp(90) overflows"),
    row("importance-capped-not-masked", "objectives/policy.py", "jnp.where((ratios >= floor) & (ratios <= cap), ratios, 0.0)",
        "jnp.clip(ratios, floor, cap)", f"{ZOO} masked_importance_equals_a_loop_and_is_detached",
        "what differs too much is left out"),
    row("importance-floor-ignored", "algorithms/ppo.py", "if importance_floor is None:",
        "if importance_floor is not None or True:",
        f"{DETAILS} importance_floor", "the setting changes nothing"),
    row("mask-of-the-whole-window", "algorithms/ppo.py", "policy.with_mask(policy_loss, mask)",
        "policy.with_mask(policy_loss, jnp.ones_like(mask))", f"{GROUP} a_loss_of_ones_own_may_ask_for_the_mask",
        "a sequence is as long as its window"),
    # --- advantages
    row("rows-that-are-not-there", OF_GROUPS, "(groups[:, None] == groups[None, :]) & valid[None, :]",
        "(groups[:, None] == groups[None, :]) & (valid[None, :] | True)",
        f"{ADVANTAGES} rows_without_a_response_take_no_part", "an empty row moves the mean of its group"),
    row("mean-of-raw-scores", OF_GROUPS, "return blank(above - total(above, same) / count(same), valid)",
        "return blank(scores - total(scores, same) / count(same), valid)",
        f"{ADVANTAGES} a_group_that_all_scores_the_same_gets_exactly_zero", "rounding teaches something"),
    row("rloo-with-itself", OF_GROUPS, "jnp.where(size > 1, size / jnp.maximum(size - 1, 1), 0.0)",
        "jnp.where(size > 1, 1.0, 0.0)",
        f"{ADVANTAGES} an_advantage_equals_a_loop", "the baseline depends on the response itself"),
    row("deviation-of-the-population", OF_GROUPS, "squares / jnp.maximum(size - ddof, 1)",
        "squares / jnp.maximum(size - 0 * ddof, 1)",
        f"{ADVANTAGES} an_advantage_equals_a_loop", "n for n − 1"),
    row("batch-deviation-of-the-group", OF_GROUPS, "batch = jnp.zeros_like(groups)", "batch = groups",
        f"{ADVANTAGES} an_advantage_equals_a_loop", "the deviation is that of the whole batch"),
    row("opo-without-length", OF_GROUPS, "long = length.astype(scores.dtype)", "long = 1 + 0 * length.astype(scores.dtype)",
        f"{ADVANTAGES} an_advantage_equals_a_loop", "the plain mean of the group"),
    row("plus-plus-unshifted", OF_GROUPS, "jnp.where(mask, returns - lowest, 0.0)", "jnp.where(mask, returns - 0 * lowest, 0.0)",
        f"{ADVANTAGES} a_group_that_all_scores_the_same_gets_exactly_zero", "rounding, blown up by 10,000"),
    row("plus-plus-over-the-window", OF_GROUPS,
        "whiten(jnp.broadcast_to(dr_grpo(scores, groups, valid)[:, None], mask.shape), mask)",
        "whiten(jnp.broadcast_to(dr_grpo(scores, groups, valid)[:, None], mask.shape), mask | True)",
        f"{ADVANTAGES} reinforce_plus_plus_baseline_equals_a_loop", "padded slots count in the deviation"),
    row("pass-at-k-off-by-one", OF_GROUPS, "size - 1 - place - drawn", "size - place - drawn",
        f"{ADVANTAGES} pass_at_k_is_the_gradient_of_the_expected_best_of_k", "chances that do not sum to one"),
    row("pass-at-k-with-itself", OF_GROUPS, "others = same & ~jnp.eye(same.shape[0], dtype=bool)",
        "others = same | jnp.eye(same.shape[0], dtype=bool)", f"{ADVANTAGES} pass_at_k_by_hand",
        "a response is compared with itself"),
    row("remax-adds", OF_GROUPS, "blank(scores - greedy, valid)", "blank(scores + greedy, valid)",
        f"{ADVANTAGES} remax_is_the_distance_to_the_greedy_response", "the baseline is taken off"),
    row("varies-with-itself", OF_GROUPS, "jnp.any(same & (above[None, :] > 0), axis=1) & valid",
        "jnp.any(same & (above[None, :] >= 0), axis=1) & valid", f"{ADVANTAGES} varies_finds_the_groups_with_two_scores",
        "no group is ever left out"),
    # --- targets
    row("critic-kept", "algorithms/group.py", "values=None, bootstrap=None, scores=", "scores=",
        f"{GROUP} every_token_has_the_advantage_of_its_response", "the values of a saved rollout count as rewards"),
    row("length-rewarded", "algorithms/group.py", "rollout.scores - length_coef", "rollout.scores + length_coef",
        f"{GROUP} scores_are_shaped_before_they_are_compared", "long responses are paid for"),
    row("whole-responses-masked", "algorithms/group.py", "(rollout.stop != STOP_LENGTH)", "(rollout.stop == STOP_LENGTH)",
        f"{GROUP} responses_cut_at_the_window_leave_the_loss_and_stay_in_their_groups", "only the truncated are learnt from"),
    row("flat-after-the-kl", "algorithms/group.py", "varies(ppo.shaped_scores(facts, **shape), groups, valid)",
        "varies(batch.returns[:, 0], groups, valid)", f"{GROUP} groups_that_all_score_the_same_leave_the_loss",
        "the KL tells every group apart"),
    # --- grpo.py
    row("kl-in-both-places", "experiments/grpo_parts.py", 'cfg.kl_coef if cfg.kl_in == "reward" else 0.0', "cfg.kl_coef",
        f"{SCRIPT} settings_reach_the_targets_and_the_loss", "a KL in the loss is put in the reward too"),
    row("reference-forgotten", "experiments/grpo.py", 'kept["train"], kept["reference"] or own', 'kept["train"], own',
        f"{SCRIPT} killed_and_resumed_it_ends_with_the_same_bytes", "the reference that moved is lost with the process"),
    row("none-overrides-a-default", "experiments/ppo_parts.py", "if name in needed or getattr(cfg, name) is not None",
        "if name in needed or True",
        f"{SCRIPT} a_loss_has_its_own_bounds_unless_told", "a setting left alone switches the clip off"),
    row("greedy-samples", "experiments/grpo_parts.py", "temperature=0.0, top_k=0", "top_k=0",
        f"{SCRIPT} the_greedy_baseline_is_one_score_a_prompt", "the baseline is a sample like any other"),
    row("one-clip-for-all", "runs/ppo_settings.py", "    clip: float | None = None", "    clip: float | None = 0.2",
        "tests/experiments/test_ppo.py a_loss_keeps_its_own_bounds_unless_some_are_given",
        "the ratios of whole sequences under the bound of tokens"),
)
# fmt: on
