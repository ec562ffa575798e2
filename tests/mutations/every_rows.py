"""Mistakes in the comparison of all scripts on one world."""

from tests.mutations.mutation import Mutation

TESTS = "tests/experiments/test_every_script.py"
ARMS, PARTS = "experiments/every_script.py", "experiments/every_parts.py"


def row(id: str, file: str, find: str, replace: str, test: str, reason: str) -> Mutation:
    return Mutation(f"every-{id}", 0, file, find, replace, (f"{TESTS}::test_{test}",), reason)


# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("gold-rewarded", ARMS, '"rewards.judged.model": "{world}/reward_model/model"',
        '"rewards.judged.function": "rlhf_jax/playground/gold.py:score"',
        "no_arm_sees_gold_or_the_held_out_prompts_and_all_sample_alike", "scripts are trained on what they are measured by"),
    row("trained-on-the-evaluation", ARMS, 'JUDGED = SAMPLING | {"prompts": "{world}/world/prompts.jsonl"',
        'JUDGED = SAMPLING | {"prompts": "{held_out}"',
        "no_arm_sees_gold_or_the_held_out_prompts_and_all_sample_alike", "scripts practise on the held-out prompts"),
    row("another-temperature", ARMS, '"sampling.temperature": 0.7', '"sampling.temperature": 1.0',
        "no_arm_sees_gold_or_the_held_out_prompts_and_all_sample_alike", "training and evaluation sample differently"),
    row("prompts-of-training", PARTS, 'prompts.draw(seed, count, split="held out")', "prompts.draw(seed, count)",
        "the_evaluation_has_prompts_that_training_never_saw", "the evaluation asks what training asked"),
    row("leaks-unseen", PARTS, "config.check(not shared,", "config.check(True,",
        "the_evaluation_has_prompts_that_training_never_saw", "a world with held-out prompts in it is taken"),
    row("half-a-world", PARTS, "config.check((found[0] / name).exists(),", "config.check(True,",
        "a_world_is_found_by_its_seed_and_must_be_whole", "a world without its reward model is taken"),
    row("best-of-all", PARTS, "[:, CHOSEN - 1]", "[:, -1]", "the_best_of_four_is_expected_over_all_draws",
        "the best of sixteen is told as the best of four"),
    row("chosen-by-itself", PARTS, "best_of_n.expected_best(proxy, values)", "best_of_n.expected_best(values, values)",
        "the_best_of_four_is_expected_over_all_draws", "what is told is chosen by itself, not by the reward model"),
    row("seeds-fixed", PARTS, "draw.integers(seeds, size=(count, seeds))", "np.arange(seeds) + np.zeros((count, 1), int)",
        "the_bootstrap_draws_seeds_and_their_prompts", "the interval leaves out how seeds differ"),
    row("prompts-fixed", PARTS, "draw.integers(size, size=(count, seeds, size))",
        "np.arange(size) + np.zeros((count, seeds, 1), int)", "the_bootstrap_draws_seeds_and_their_prompts",
        "the interval of one seed has no width"),
    row("one-sft-for-all", ARMS, 'row[name]["gold"] - row["SFT"]["gold"]', 'row[name]["gold"] - found[0]["SFT"]["gold"]',
        "each_arm_runs_its_scripts_on_each_seed_and_its_last_model_is_measured", "seeds are not paired with their own SFT"),
    row("first-model-measured", ARMS, "        folder = str(here / script.__name__)\n",
        "        folder = folder or str(here / script.__name__)\n",
        "each_arm_runs_its_scripts_on_each_seed_and_its_last_model_is_measured", "the second script writes over the first"),
    row("old-settings-kept", ARMS, 'if done.get("settings") != wanted:', "if not done:",
        "finished_arms_are_kept_and_changed_ones_run_again", "a changed arm keeps the figures of the old one"),
    row("teacher-unseen", ARMS, "before = told_of(ARMS[name].after) if ARMS[name].after else []", "before = []",
        "finished_arms_are_kept_and_changed_ones_run_again", "a student keeps the figures that another teacher gave it"),
)
# fmt: on
