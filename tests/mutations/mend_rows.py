"""Mistakes in what a newcomer is told: which word is unknown, what a file already holds, who has yet to judge."""

from tests.mutations.mutation import Mutation, rows

FIRST, SCRIPT, SFT = (f"tests/experiments/test_{name}.py" for name in ("checks_first", "label", "sft"))
REPORT, EXPORT = "tests/runs/test_label_report.py", "tests/feedback/test_store_export.py"
KEYS, LOOKS = "tests/browser/test_keyboard.py", "tests/browser/test_looks.py"
PAGE = "rlhf_jax/feedback/server/page"

row = rows("mend")
UNKNOWN = f"{FIRST} TestATokenizerThatDoesNotKnowTheTexts::is_told_of_where_it_knows_most"
HELD_OUT = f"{SFT} held_out_prompts_that_training_shares_are_left_out"

# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("unknown-words-unnamed", "rlhf_jax/runs/data.py", "told += unknown_words(texts, tokenizer)", "pass",
        UNKNOWN, "which word it is has to be guessed"),
    row("known-words-named", "rlhf_jax/runs/data.py", "if token == tokenizer.unk_token_id)", "if token)",
        UNKNOWN, "words that it knows are called unknown"),
    row("rarest-words-first", "rlhf_jax/runs/data.py", "found.most_common(most)", "found.most_common()[-most:]",
        UNKNOWN, "the word that is everywhere goes unnamed"),
    row("prompts-from-before-untold", "experiments/label_parts.py", "if others := known - asked.keys():", "if others := ():",
        f"{SCRIPT} only_new_prompts_are_sampled", "people are asked about prompts that the file given does not have, untold"),
    row("all-items-new", "experiments/label_parts.py", '.fetchone()[0] - before\n', ".fetchone()[0]\n",
        f"{SCRIPT} items_from_before_are_told", "what was there is told as added"),
    row("items-from-before-untold", "experiments/label.py", 'if more := count - found["items"] - found["gold"]:', "if more := 0:",
        f"{SCRIPT} items_from_before_are_told", "more is asked about than was told"),
    row("files-found-late", "experiments/label_parts.py", "(cfg.prompts, cfg.responses, cfg.gold, cfg.guidelines, cfg.groups)",
        "(cfg.prompts, cfg.responses)", f"{SCRIPT} what_is_missing_is_told_before_anything_is_sampled",
        "minutes of sampling, then: no such file"),
    row("port-tried-late", "experiments/label.py",
        "with closing(parts.listen(cfg)) as listening, closing(open_store(cfg.db)) as con:\n"
        "        found: dict[str, Any] = fill(con, cfg)\n",
        "with closing(open_store(cfg.db)) as con:\n        found: dict[str, Any] = fill(con, cfg)\n"
        "        listening = parts.listen(cfg)\n",
        f"{SCRIPT} what_is_missing_is_told_before_anything_is_sampled", "minutes of sampling, then: the port is in use"),
    row("silent-people-unnamed", "rlhf_jax/runs/label_report.py", "[name for name in invited if name not in people]", "[]",
        f"{REPORT} who_has_not_judged_is_named_too", "two of three people are in the report, and the third is nowhere"),
    row("silent-people-by-name", "rlhf_jax/runs/label_report.py", 'person["name"] if names else person["id"]', 'person["name"]',
        f"{REPORT} who_has_not_judged_is_named_too", "names in a report that is to go without"),
    row("silent-people-as-markup", "rlhf_jax/runs/label_page.py", 'listed = ", ".join(escape(name) for name in waiting)',
        'listed = ", ".join(waiting)', f"{REPORT} who_has_not_judged_is_named_too", "a name is run as markup"),
    row("empty-export-blames-a-filter", "rlhf_jax/feedback/store/export.py", "        if +left:\n", "        if True:\n",
        f"{EXPORT} TestFiles::nothing_to_export_writes_nothing", "nobody has judged, and it says what was left out"),
    row("text-taken-for-rows", "rlhf_jax/feedback/formats/tables.py", 'name.endswith(".json") or not start',
        'name.endswith((".json", ".txt")) or not start',
        "tests/feedback/test_tables.py files_that_cannot_be_read_are_refused", "every line of a text file is a broken row"),
    row("licence-of-another-file", "rlhf_jax/feedback/formats/read.py", "if self.licence != usual:", "if False:",
        "tests/feedback/test_importers_sets.py a_licence_can_be_given",
        "a file of one's own is told to be under the published set's licence"),
    row("guidelines-in-one-line", f"{PAGE}/style.css", "white-space: pre-wrap;", "white-space: normal;",
        f"{KEYS} guidelines_open_and_close_by_key", "lists and paragraphs of the guidelines run together"),
    row("total-unexplained", f"{PAGE}/view.js", 'byId("count").title = ', "void ",
        f"{LOOKS} progress_is_told", "nobody knows why the total falls when others work too"),
    row("sft-evaluated-on-leaks", "experiments/sft.py",
        'held = held_out.clean(kept, held, "held out", cfg.leaks) if held else held',
        "held = list(held)", HELD_OUT, "what was learnt by heart counts as held out"),
    row("sft-leaks-not-heeded", "experiments/sft.py", '"held out", cfg.leaks)', '"held out")',
        HELD_OUT, "a setting that changes nothing"),
    row("distill-unchecked", "experiments/distill.py", "        check_samples(self)\n", "",
        "tests/experiments/test_distill.py what_cannot_work_is_refused", "a student that never samples"),
)
