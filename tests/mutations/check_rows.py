"""Mistakes in what is checked before a run: seen by nobody until a run is lost, or has learnt from the wrong tokens."""

from tests.mutations.mutation import Mutation, rows

FIRST, PARTS = "tests/experiments/test_checks_first.py", "tests/runs/test_config_parts.py"
SAVING, LOG = "tests/model/test_hf_saving.py", "tests/runs/test_log.py"

row = rows("check")

# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("window-of-sft", "experiments/sft.py", "check_window(model, cfg.window,", "check_window(model, 1,",
        f"{FIRST} test_no_window_goes_past_the_learned_positions", "rows past the learned positions are trained on"),
    row("window-of-a-reward-model", "experiments/reward_model.py", "check_window(opened.cfg, cfg.window,",
        "check_window(opened.cfg, 1,", f"{FIRST} test_no_window_goes_past_the_learned_positions", "the same of pairs"),
    row("window-of-a-reward", "experiments/reward_scores.py", "check_window(model, window,", "check_window(model, 1,",
        f"{FIRST} test_no_window_goes_past_the_learned_positions", "a reward model reads past its positions"),
    row("window-of-a-value-model", "experiments/ppo_parts.py",
        "opened.cfg, cfg.prompt_window + cfg.response_window, f", "opened.cfg, cfg.prompt_window, f",
        f"{FIRST} test_no_window_goes_past_the_learned_positions", "a value model reads past its positions"),
    row("rotary-windows-end", "rlhf_jax/model/transformer.py", 'if cfg.positions == "learned" and tokens >',
        "if tokens >", f"{FIRST} test_a_window_of_rotary_positions_has_no_end",
        "rotary models are held to the length of their training"),
    row("stop-below-zero", "rlhf_jax/generate/engine.py", "if not 0 <= token < cfg.vocab_size",
        "if not token < cfg.vocab_size", f"{FIRST} test_a_stop_sequence_of_ids_that_there_are_not",
        "a stop sequence that is never met"),
    row("rows-of-the-mesh", "rlhf_jax/runs/settings.py", "rows % devices == 0,", "True,",
        f"{FIRST} test_rows_that_do_not_divide_over_the_devices", "every device computes every row, and nobody is told"),
    row("reward-window", "experiments/ppo_parts.py", "part.window > cfg.response_window + 1",
        "part.window > cfg.response_window", f"{FIRST} test_a_reward_window_too_small_for_a_response_and_its_eos",
        "the first whole response ends the run"),
    row("empty-reference", "experiments/reward_parts.py", "isinstance(texts, list) and texts and all(",
        "isinstance(texts, list) and all(", f"{FIRST} test_reference_responses_are_texts",
        "the run fails once all is trained"),
    row("output-is-input", "experiments/generate.py", "not path.samefile(prompts)", "path != Path(prompts)",
        f"{FIRST} TestTheFileThatGenerateWrites::test_is_not_its_input", "prompts lost under another name of their file"),
    row("output-written-in-place", "experiments/generate.py", 'target.with_name(f".{target.name}.partial")', "target",
        f"{FIRST} TestTheFileThatGenerateWrites::test_is_the_old_one_until_all_is_sampled", "an error costs the old file"),
    row("unknown-tokens-diluted", "rlhf_jax/runs/data.py", "(ids == unknown) | ~np.isin(ids, tokenizer.all_special_ids)",
        "ids >= 0", f"{FIRST} TestATokenizerThatDoesNotKnowTheTexts::test_is_told_of_where_it_knows_most",
        "the template's own tokens count as known words"),
    row("evaluation-sizes-late", "experiments/evaluate.py", "aligned = sampled(cfg, cfg.policy,",
        "_ = sampled(cfg, cfg.start, prompts, score, 1, role=0)\n    aligned = sampled(cfg, cfg.policy,",
        f"{FIRST} test_a_policy_of_another_size_is_found_before_its_start_is_sampled",
        "hours of samples before a look at the sizes"),
    row("run-left-behind", "rlhf_jax/runs/log.py", "if kind is not None and not logged and", "if kind is None and not logged and",
        f"{LOG} test_a_run_that_ends_before_its_first_line_takes_itself_away", "the same command is refused"),
    row("logged-run-taken-away", "rlhf_jax/runs/log.py", "and not logged and", "and",
        f"{LOG} test_a_run_that_has_begun_stays_however_it_ends", "what was logged is lost with the error"),
    row("resumed-run-taken-away", "rlhf_jax/runs/log.py", "begun=() if goes_on else begun", "begun=(folder / \"config.yaml\",)",
        f"{LOG} test_a_run_that_has_begun_stays_however_it_ends", "files of an earlier run go too"),
    row("shards-replaced-after-an-error", "rlhf_jax/model/hf/files.py", "        yield stage\n        for name in names:\n",
        "        with contextlib.suppress(UserError):\n            yield stage\n"
        "        for name in [n for n in names if (stage / n).exists()]:\n",
        f"{SAVING} test_nan_in_the_last_shard_leaves_all_shards_as_they_were",
        "half an old model and half a new one"),
    row("part-of-the-file-only", "rlhf_jax/runs/config.py", "copy.deepcopy(data.get(path[0]))", "None",
        f"{PARTS} test_settings_of_parts_fold_into_the_file", "one setting of a part throws the file's other parts away"),
    row("text-of-a-part-as-yaml", "rlhf_jax/runs/config.py", "if hint is not str:", "if True:",
        f"{PARTS} test_a_part_of_the_command_line_alone", "text that looks like a number is one"),
    row("part-unnamed", "rlhf_jax/runs/config.py", "found += wrong[:1]", "found += []",
        f"{PARTS} test_what_is_wrong_is_told_by_the_parts_name", "nobody learns which part is wrong"),
)
# fmt: on
