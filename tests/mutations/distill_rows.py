"""Mistakes in distillation, in packing, and in preferences learnt online."""

from tests.mutations.mutation import Mutation, rows

ORACLE, TEXTS, SCRIPT = (
    "tests/objectives/test_distillation.py",
    "tests/algorithms/test_distill.py",
    "tests/experiments/test_distill.py",
)
PACKING, PACKED = "tests/runs/test_packing.py", "tests/experiments/test_packed_sft.py"
ONLINE, LOOP = "tests/algorithms/test_online.py", "tests/experiments/test_online_dpo.py"

row = rows("distill")

LOSSES, DISTILL = "rlhf_jax/objectives/distillation.py", "rlhf_jax/algorithms/distill.py"
PACK, DECODER = "rlhf_jax/runs/packing.py", "rlhf_jax/model/transformer.py"
JUDGE, PARTS = "rlhf_jax/algorithms/online.py", "experiments/online_parts.py"

# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("mixture-turned-round", LOSSES, "math.log(beta) + teacher, math.log1p(-beta) + student",
        "math.log(beta) + student, math.log1p(-beta) + teacher",
        f"{ORACLE} divided_by_its_weight_jsd_tends_to_the_kl_of_that_end", "m has the share of the teacher be 1 − β"),
    row("mixture-of-logarithms", LOSSES, "jnp.logaddexp(math.log(beta) + teacher, math.log1p(-beta) + student)",
        "beta * teacher + (1 - beta) * student", f"{ORACLE} a_divergence_equals_a_loop",
        "the mean of log-probabilities in place of that of probabilities"),
    row("ends-exchanged", LOSSES, "    if beta == 0:\n        return forward_kl", "    if beta == 0:\n        return reverse_kl",
        f"{ORACLE} a_divergence_equals_a_loop", "β = 0 is the reverse KL"),
    row("kl-turned-round", LOSSES, "jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)",
        "jnp.sum(jnp.exp(teacher) * (student - teacher), axis=-1)", f"{ORACLE} a_divergence_equals_a_loop",
        "the divergence is made large"),
    row("no-floor", LOSSES, "return jnp.where(logprobs > FLOOR, logprobs, FLOOR)", "return logprobs",
        f"{ORACLE} extremes_have_finite_values_and_gradients", "an id that is ruled out gives NaN"),
    row("temperature-of-one", DISTILL, "jax.nn.log_softmax(other / temperature)", "jax.nn.log_softmax(other)",
        f"{TEXTS} each_response_token_is_compared_where_it_is_predicted", "the teacher keeps its own temperature"),
    row("a-place-later", DISTILL, "texts.prompt_length - 1, window", "texts.prompt_length, window",
        f"{TEXTS} each_response_token_is_compared_where_it_is_predicted", "the distribution after the token"),
    row("metrics-learnt", DISTILL, "told = [jax.lax.stop_gradient(x) for x in logprobs]", "told = logprobs",
        f"{TEXTS} metrics_have_no_gradient", "what is only told of has a gradient"),
    row("teacher-learns", DISTILL, 'fixed = jax.lax.stop_gradient(params["teacher"])', 'fixed = params["teacher"]',
        f"{TEXTS} the_loss_is_the_mean_of_its_weights_and_moves_the_student_alone", "the teacher's head has a gradient"),
    row("padded-vocabulary", DISTILL, "logits(teacher, teacher_states, cfg=teacher_cfg)[..., :size]",
        "logits(teacher, teacher_states, cfg=teacher_cfg)[..., -size:]",
        f"{TEXTS} rows_of_a_matrix_past_the_smaller_vocabulary_are_no_tokens", "ids of the two models are shifted"),
    row("all-logits", DISTILL, "chunk, size = min(chunk, R)", "chunk, size = R",
        f"{TEXTS} no_array_of_all_logits_is_traced", "logits of all positions at one time"),
    row("one-count", DISTILL, "np.where(own, np.cumsum(own), np.cumsum(~own)) - 1", "np.arange(iterations)",
        f"{TEXTS} turns_have_the_share_asked_for_and_lose_no_batch", "batches whose turn was the other kind's are lost"),
    row("vocabularies-unseen", "experiments/distill_parts.py",
        "hf.tokenizer(cfg.teacher).get_vocab() != vocabulary", "False",
        f"{SCRIPT} a_teacher_with_other_words_is_refused", "ids that mean other words"),
    row("key-of-the-run", "experiments/distill.py", "key = jax.random.fold_in(run_key, iteration)",
        "key = jax.random.fold_in(run_key, iteration - start)", f"{SCRIPT} killed_and_resumed_it_ends_with_the_same_bytes",
        "noise depends on when a run was resumed"),
    row("long-responses", "experiments/distill_parts.py", "texts.response_length > cfg.response_window",
        "texts.response_length < 0", f"{SCRIPT} given_responses_are_told_from_their_prompts",
        "the end of a long response is never compared"),
    row("seen-across", DECODER, "mask = mask if same is None else mask & same", "mask = mask if same is None else mask",
        f"{PACKING} nothing_is_seen_across_texts", "texts of a row attend to each other"),
    row("positions-go-on", DECODER, "positions, same = masks.restarted(segments), segments", "_, same = None, segments",
        f"{PACKING} packed_loss_and_gradients_are_those_of_rows_of_their_own", "positions are those of the row"),
    row("window-forgotten", DECODER, "mask if same is None else mask & same", "mask if same is None else jnp.tril(same)",
        f"{PACKING} packed_loss_and_gradients_are_those_of_rows_of_their_own", "a packed row has no sliding window"),
    row("first-token", PACK, "            loss_mask[row, start] = False\n", "", f"{PACKING} a_packed_row_holds_its_texts_whole",
        "a text's beginning is learnt from another's end"),
    row("worst-fit", PACK, "place = bisect.bisect_left(rooms, size)",
        "place = len(rooms) - 1 if rooms and rooms[-1] >= size else len(rooms)",
        f"{PACKING} it_is_near_the_fewest_rows_and_fits_where_least_room_is_left", "the emptiest row is taken"),
    row("segments-dropped", "rlhf_jax/algorithms/sft.py", "alone if batch.segment is None else (*alone, batch.segment)",
        "alone", f"{PACKED} packed_and_unpacked_runs_begin_with_one_loss", "the forward pass is not told of segments"),
    row("worse-first", JUDGE, "scores[:, 1] > scores[:, 0], 0, 1", "scores[:, 1] < scores[:, 0], 0, 1",
        f"{ONLINE} the_better_response_comes_first", "the worse response is learnt"),
    row("ties-taught", JUDGE, "jnp.where(ahead > 0, 1.0, 0.0)", "jnp.where(ahead >= 0, 1.0, 0.0)",
        f"{ONLINE} the_better_response_comes_first", "a tie is a win of the first response"),
    row("exploration-sign", JUDGE, "total = total + exploration * bonus", "total = total - exploration * bonus",
        f"{ONLINE} xpo_adds_the_log_probability_of_the_second_response", "the reference is imitated"),
    row("exploration-of-the-first", JUDGE, "batch.second[:, None]", "1 - batch.second[:, None]",
        f"{ONLINE} xpo_adds_the_log_probability_of_the_second_response", "the policy's own samples become less likely"),
    row("soft-label", JUDGE, "jax.nn.sigmoid(ahead / temperature)", "jax.nn.sigmoid(ahead * temperature)",
        f"{ONLINE} a_soft_judge_is_bradley_and_terry", "a higher temperature makes the judge surer"),
    row("both-of-the-policy", PARTS, "enumerate((params, reference))", "enumerate((params, params))",
        f"{LOOP} xpo_has_one_response_of_the_reference", "XPO without its exploration"),
    row("kl-of-the-reference", "experiments/online_dpo.py", "x[::2], experience) if cfg.exploration else experience",
        "x, experience)", f"{LOOP} the_run_folder_is_that_of_any_run", "what the reference wrote is told as the policy's"),
)
# fmt: on
