"""Mistakes in sweeps, in their statistics and in tracking: a wrong comparison looks as convincing as a right one."""

from tests.mutations.mutation import Mutation, named

RUN, BAD, PAGE = "tests/runs/test_sweep.py", "tests/runs/test_sweep_bad_input.py", "tests/runs/test_sweep_page.py"
STATISTICS, TRACK, LIVE = (
    "tests/evaluation/test_aggregates.py",
    "tests/runs/test_track.py",
    "tests/runs/test_sweep_live.py",
)
AGGREGATES, SWEEP = "rlhf_jax/evaluation/aggregates.py", "rlhf_jax/runs/sweep"
TOLD = f"{BAD} test_a_mistake_is_told_before_anything_runs"
TABLE = f"{RUN} test_the_table_is_recomputed_from_the_lines_of_the_runs"
KILLED = f"{RUN} test_six_points_killed_twice_end_each_exactly_once"
LOST = f"{RUN} test_failures_are_listed_and_never_averaged_away"
SAME = f"{RUN} test_an_id_is_of_what_is_computed_and_nothing_else"
PUBLISH = "tests/runs/test_sweep_publish.py"
CHANGES = "tests/runs/test_sweep_changes.py"
EDITED = f"{CHANGES} test_a_loss_that_is_edited_while_the_sweep_runs_is_never_recorded_under_the_old_id"
RETURNED = "tests/runs/test_sweep_returns.py test_what_a_function_should_not_return_is_its_points_failure_and_no_others"
VMAP = f"{PAGE} test_seeds_of_a_notebooks_function_run_together_under_vmap"


def row(id: str, file: str, find: str, replace: str, tests: str, reason: str) -> Mutation:
    """`tests` is "FILE name …"; a file without a folder is one of the sweep's."""
    file = file if "/" in file else f"{SWEEP}/{file}"
    return Mutation(f"sweep-{id}", 0, file, find, replace, named(tests), reason)


# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("iqm-share", AGGREGATES, "axis=axis), 0.25, axis=axis)", "axis=axis), 0.2, axis=axis)",
        f"{STATISTICS} test_estimates_are_those_of_plain_loops", "another share is cut off than in the paper"),
    row("ties-lost", AGGREGATES, "(x > y) + 0.5 * (x == y)", "(x > y) + 0.0 * (x == y)",
        f"{STATISTICS} test_the_figures_that_rliable_publishes", "equal arms look worse than the baseline"),
    row("strata-together", AGGREGATES, "    low, high = _resampled(samples, _iqm, level, resamples, seed)\n",
        "    low, high = _resampled([np.concatenate(samples)], _iqm, level, resamples, seed)\n",
        f"{STATISTICS} test_strata_are_resampled_each_on_its_own", "the spread between tasks counts as noise"),
    row("one-sided-level", AGGREGATES, "confidence_level=_level(level),", "confidence_level=2 * _level(level) - 1,",
        f"{STATISTICS} test_intervals_are_quantiles_of_every_resample_there_is", "a 90 % interval called 95 %"),
    row("band-of-points", AGGREGATES, "drawn, [tail, 1 - tail], axis=0)", "drawn, [2 * tail, 1 - 2 * tail], axis=0)",
        f"{STATISTICS} test_a_band_is_the_interval_at_every_iteration", "bands narrower than they say"),
    row("survivors-averaged", "compare.py", 'if set(lost) - {"not run yet"} else told',
        'if set(lost) - {"not run yet", "failed"} else told',
        LOST, "an arm of which a seed crashed has the average of those that did not"),
    row("nan-averaged-away", "results.py", "if len(finite) == len(tail) else None", "if finite else 0.0",
        LOST, "a run that ended in NaN counts as 0"),
    row("tail-of-a-run", "results.py", "real[-max(1, round(over * len(real))) :]", "real[: max(1, round(over * len(real)))]",
        TABLE, "the first values are compared, not the last"),
    row("lower-is-better", "compare.py", 'if better == "higher" else (base, values)',
        'if better == "higher" else (values, base)',
        TABLE, "a metric that should fall is an improvement when it rises"),
    row("gain-turned-round", "compare.py", "[values[seed] - base[seed] for seed in common]",
        "[base[seed] - values[seed] for seed in common]",
        TABLE, "worse arms look better"),
    row("done-run-again", "execute.py", 'states = {job.id: "done" if state.done(job) else "waiting" for job in jobs}',
        'states = {job.id: "waiting" for job in jobs}\n    shutil.rmtree(jobs[0].folder, ignore_errors=True)',
        KILLED, "a finished point is run again"),
    row("anew-not-resumed", "execute.py", '*(["--resume", "true"] if goes_on else [])', "*[]",
        KILLED, "an interrupted point begins anew"),
    row("marker-of-a-failure", "execute.py", "        if code == 0:\n", "        if code >= 0:\n", LOST,
        "a failed point counts as done"),
    row("stage-not-awaited", "execute.py", 'if needed - {"done"}:', 'if needed - {"done", "waiting", "running"}:',
        f"{RUN} test_stages_run_once_a_seed_before_what_needs_them", "points begin before the stage that they read"),
    row("stop-is-a-failure", "execute.py", "        if stopping:\n", "        if False:\n",
        f"{RUN} test_a_signal_is_passed_on_and_the_points_are_no_failures", "what somebody stopped is told as a failure"),
    row("saving-in-the-id", "plan.py", '"resume", "save_every", "keep"', '"resume", "keep"', SAME,
        "how often a run saves makes it another run"),
    row("functions-not-in-the-id", "plan.py", "functions = {spec: _function_hash(spec) for spec in sorted(_functions(settings))}",
        "functions = {}", SAME, "an edited loss has the results of the old one"),
    row("place-in-the-id", "plan.py", 'f"stage {job.id}")\n', "str(job.folder))\n",
        f"{RUN} test_an_id_follows_its_stages_and_not_their_place", "a sweep in another folder has other ids"),
    row("duplicates-run", "plan.py", "check(twin is job,", "check(True,", TOLD, "one run under two names, told to differ"),
    row("baseline-unknown", "spec.py", "known = not baseline or baseline in arms", "known = True", TOLD,
        "a misspelt baseline compares with nothing"),
    row("seeds-empty", "spec.py", "check(len(seeds) > 0,", "check(len(seeds) >= 0,", TOLD, "a sweep of no runs ends well"),
    row("metric-unknown", "results.py", "metric.name not in names and not metric.optional", "not names and not metric.optional",
        f"{BAD} test_a_metric_that_no_run_has_is_told_after_the_first_run_and_then_before_any",
        "a misspelt metric is told when all has run"),
    row("stage-unread", "plan.py", "check(not unread,", "check(True,", TOLD, "a stage runs for nobody"),
    row("dots-off", "charts.py", 'class="dot" cx="{place(row.value)}"', 'class="dot" cx="{place(0.99 * row.value)}"',
        f"{PAGE} test_dots_stand_where_their_values_are", "dots that do not stand at their values"),
    row("unescaped-notes", "page.py", 'f"<p>{escape(note)}</p>"', 'f"<p>{note}</p>"',
        f"{PAGE} test_nothing_on_the_page_runs_or_is_fetched", "texts become tags"),
    row("notebook-failure-lost", "in_process.py", '"failed" if error else "done"', '"done"',
        f"{PAGE} test_a_function_of_a_notebook_is_swept_in_process", "a call that raised is not told of"),
    row("vmap-seeds-mixed", "in_process.py", "itemgetter(i)", "itemgetter(0)", VMAP, "every seed has the first one's numbers"),
    row("vmap-names-sorted", "in_process.py", "names.extend(returned)", "names.extend(sorted(returned))", VMAP,
        "one metric's numbers under another's name"),
    row("vmap-in-vain", "in_process.py", "(_together if vmap else _one_by_one)", "(_one_by_one)", VMAP, "seeds run one by one"),
    row("vmap-host-code", "in_process.py", "except jax.errors.JAXTypeError as raised:", "except ZeroDivisionError as raised:",
        f"{PAGE} test_what_fails_under_vmap_fails_for_every_seed_and_says_why", "a page of JAX's words, and no advice"),
    row("published-failure", "publish.py", 'row["status"], values, {})', '"done", values, {})',
        f"{PUBLISH} test_the_csv_alone_gives_the_same_comparison", "an arm with a failed seed has an average again"),
    row("published-in-part", "publish.py", "check(not lost,", "check(True,",
        f"{PUBLISH} test_a_csv_of_another_sweep_is_told", "a page of half a sweep"),
    row("published-old-passage", "publish.py", "<!-- /{name} -->", "<!-- /{name}-->",
        f"{PUBLISH} test_a_page_is_filled_and_filling_it_again_changes_nothing", "a passage that is never filled again"),
    row("published-colourless", "publish.py", "--line:#e4e6ea;", "",
        f"{PUBLISH} test_a_drawing_is_a_whole_svg_that_needs_no_page", "a drawing without its grid"),
    row("early-samples-lost", "rlhf_jax/runs/track.py", "            early.append(rows)\n", "            pass\n",
        f"{TRACK} test_trackers_hear_what_the_run_logs_and_open_at_the_first_metrics",
        "the samples from before training are lost"),
    row("tracker-left-open", "rlhf_jax/runs/log.py", "        self.tracker.close()\n", "",
        f"{TRACK} test_trackers_hear_what_the_run_logs_and_open_at_the_first_metrics", "the last events are never written"),
    row("old-news", "live.py", 'if job.id not in known and now == "done":', "if False:",
        f"{LIVE} test_elsewhere_it_is_a_line_a_change", "what was done before is told as if it ran now"),
    row("edited-while-it-ran", "execute.py", "if path := job.changed():\n            return _changed(job, path, facts",
        'if path := "":\n            return _changed(job, path, facts', EDITED,
        "what an edited loss made is recorded under the old one's id"),
    row("edited-before-it-ran", "execute.py", "if path := job.changed():\n        return _changed(job, path, {}",
        'if path := "":\n        return _changed(job, path, {}', EDITED, "a point begins with another text than its id's"),
    row("edited-gone-on-from", "execute.py", '    shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)',
        '    shutil.rmtree(job.folder / "no", ignore_errors=True)',
        f"{CHANGES} test_nothing_goes_on_from_what_another_text_of_a_loss_may_have_saved",
        "a run is one loss to its middle and another to its end"),
    row("data-not-in-the-id", "plan.py", 'FREE = ("out",', 'FREE = ("out", "data",',
        f"{CHANGES} test_data_is_part_of_the_id_where_there_is_some", "other data has the results of the old"),
    row("other-text-untold", "state.py", '.get("script", text) != text', '.get("script", text) != script',
        f"{CHANGES} test_points_of_another_text_of_the_script_are_told_before_anything_runs_and_on_the_page",
        "points of two texts of a script are told for one"),
    row("stopped-is-done", "execute.py", "        if stopping:\n", "        if stopping and code:\n",
        f"{CHANGES} test_what_ends_with_0_because_it_was_told_to_stop_is_not_done", "half a run counts as done"),
    row("stages-for-nobody", "state.py", "if job.id in wanted or not (job.stage or done(job)):", "if True:",
        f"{CHANGES} test_stages_that_are_gone_are_run_again_only_for_points_that_are_not_done",
        "stages train again that no point needs"),
    row("bad-return-loses-all", "in_process.py", "_named(call(**settings))", "call(**settings)", RETURNED,
        "one bad return value loses the whole sweep"),
    row("baseline-0-is-none", "spec.py", '"" if value is None else str(value)', 'str(value or "")',
        f"{BAD} test_an_arm_named_by_a_number_can_be_the_baseline", "a baseline that was given is none"),
    row("published-twice", "publish.py", "(point.arm, point.seed) not in known,", "True,",
        f"{PUBLISH} test_a_csv_of_another_sweep_is_told", "the last of two rows counts, and nobody is told"),
)
# fmt: on
