"""Mistakes at the labelling page and in what is put before people: a judgement that is not what somebody meant."""

from tests.mutations.mutation import Mutation

PAGE = "rlhf_jax/feedback/server/page"
KEYS, KEPT = "tests/browser/test_keyboard.py", "tests/browser/test_kept.py"
STRANGERS, LOOKS = "tests/browser/test_strangers.py", "tests/browser/test_looks.py"
SCRIPT, DIVERSE = "tests/experiments/test_label.py", "tests/feedback/test_diverse.py"


def row(id: str, file: str, find: str, replace: str, tests: str, reason: str) -> Mutation:
    """`tests` is "FILE name …"."""
    path, *names = tests.split()
    return Mutation(f"label-{id}", 0, file, find, replace, tuple(f"{path}::{name}" for name in names), reason)


# fmt: off
ROWS: tuple[Mutation, ...] = (
    row("strength-mirrored", f"{PAGE}/pair.js", "choose({ strength: number - 4 })", "choose({ strength: 4 - number })",
        f"{KEYS} test_twenty_pairs", "every preference turned round"),
    row("tie-is-slight", f"{PAGE}/pair.js", "choose({ strength: 0 })", "choose({ strength: 1 })",
        f"{KEYS} test_twenty_pairs", "a tie counts for the second response"),
    row("both-bad-is-tie", f"{PAGE}/pair.js", 'choose({ both_bad: true });\n      else', 'choose({ strength: 0 });\n      else',
        f"{KEYS} test_twenty_pairs", "two bad responses pass for two good ones"),
    row("tie-is-next", f"{PAGE}/rank.js", "} else if (tie && groups.length) {", "} else if (false) {",
        f"{KEYS} test_twenty_rankings", "tied responses are ranked one below the other"),
    row("order-turned", f"{PAGE}/rank.js", "} else groups.push([at]);", "} else groups.unshift([at]);",
        f"{KEYS} test_twenty_rankings", "the best response is stored as the worst"),
    row("rank-begun-is-best", f"{PAGE}/rank.js", "rank < 0 ? null : rank", "rank < 0 ? 0 : rank",
        f"{KEPT} test_a_reload_in_the_middle_restores_the_draft", "what nobody picked comes back as picked first"),
    row("mark-stays", f"{PAGE}/rate.js", "if (current < rows.length - 1) go(current + 1);", "",
        f"{KEYS} test_twenty_ratings", "all digits answer the first question"),
    row("text-parsed", f"{PAGE}/dom.js", "  node.textContent = text;", "  node.innerHTML = text;",
        f"{STRANGERS} test_hostile_texts_are_shown_as_text", "a response is run as markup"),
    row("token-in-address", f"{PAGE}/api.js", "history.replaceState(null, \"\", location.pathname + location.search);", "",
        f"{STRANGERS} test_the_token_stays_out_of_every_address", "the token stays where others look over the shoulder"),
    row("draft-of-anybody", f"{PAGE}/drafts.js", " || here.whose !== token()", "",
        f"{KEPT} test_a_draft_is_of_one_file_only", "another person's draft is taken for this one's"),
    row("draft-not-here", f"{PAGE}/drafts.js", 'kept.set("draft", JSON.stringify({ whose: token(), assignment, draft }));', "",
        f"{KEPT} test_a_draft_that_did_not_reach_the_server_is_there_after_a_reload", "lost with the connection"),
    row("draft-not-there", f"{PAGE}/drafts.js", "timer = setTimeout(() => save(told), DELAY);", "",
        f"{KEPT} test_another_window_has_the_draft_too", "lost with the window"),
    row("time-begins-anew", f"{PAGE}/app.js", "spent = Number.isFinite(draft?.ms) ? draft.ms : 0;", "spent = 0;",
        f"{KEPT} test_time_goes_on_after_a_reload", "slow work passes for fast work"),
    row("undo-forgets", f"{PAGE}/app.js", 'act("api/undo", {}, () => drafts.save())', 'act("api/undo", {})',
        f"{KEPT} test_undo_keeps_what_was_begun", "what was begun is gone after an undo"),
    row("last-item-stays", f"{PAGE}/app.js", '  byId("rationale").value = "";\n', "",
        f"{KEPT} test_nothing_of_one_person_is_on_the_page_of_the_next", "one person's reason is on the next person's page"),
    row("lost-is-refused", f"{PAGE}/api.js", "throw new Lost(answer ?", "throw new Refused(0, answer ?",
        f"{KEPT} test_the_server_goes_away_and_comes_back", "a lost connection is not tried again"),
    row("busy-takes-keys", f"{PAGE}/app.js", "done = Boolean(form && !busy && !byId", "done = Boolean(form && !byId",
        f"{KEPT} test_the_server_goes_away_and_comes_back", "the page shows another answer than the one it sends"),
    row("digits-of-flags", f"{PAGE}/app.js", 'else if (byId("flags").contains(target) && digit(event) !== null) {',
        "else if (false) {", f"{KEYS} test_flags_and_a_reason", "flags cannot be set by key"),
    row("shortcuts-always", f"{PAGE}/guidelines.js", 'export const shortcuts = () => byId("shortcuts").checked;',
        "export const shortcuts = () => true;", f"{KEYS} test_single_keys_can_be_switched_off", "speech presses keys"),
    row("columns-on-a-tablet", f"{PAGE}/style.css", "@media (max-width: 56.24rem) {\n  .cards.pair,",
        "@media (max-width: 40rem) {\n  .cards.pair,",
        f"{LOOKS} test_no_screen_cuts_anything_off", "two columns where there is room for one"),
    row("dark-on-dark", f"{PAGE}/style.css", "--text: #e4e2dc;", "--text: #5e6266;",
        f"{LOOKS} test_all_text_stands_out", "text that cannot be read at night"),
    row("no-ring", f"{PAGE}/style.css", ":focus-visible {\n  outline: 3px solid var(--focus);\n  outline-offset: 2px;\n}\n\nmain",
        ":focus-visible {\n  outline: none;\n}\n\nmain", f"{LOOKS} test_tab_reaches_everything_and_the_focus_is_seen",
        "nobody sees where the keyboard is"),
    row("motion-for-all", f"{PAGE}/style.css", "    transition: none !important;\n", "",
        f"{LOOKS} test_who_wants_no_motion_gets_none", "motion for those it makes ill"),
    row("wheel-without-scripts", "pyproject.toml", '"**/*.js", ', "",
        "tests/browser/test_wheel.py test_every_file_of_the_page_is_in_it", "an installed page that does nothing"),
    row("just-as-similar", "rlhf_jax/feedback/diverse.py", "< similar * len(own | other)", "<= similar * len(own | other)",
        f"{DIVERSE} test_one_leaves_out_only_the_same_text_and_zero_all_but_one", "the same text twice in one item"),
    row("case-and-space", "rlhf_jax/feedback/diverse.py", '" ".join(text.split()).casefold()', "text",
        f"{DIVERSE} test_by_hand", "the same words in capitals count as another response"),
    row("pairs-overlap", "experiments/label_parts.py", "range(0, len(candidates), size)",
        "range(0, len(candidates), max(size - 1, 1))",
        f"{SCRIPT} test_each_kept_response_is_in_one_item_and_the_rest_is_counted", "a response is judged in two pairs"),
    row("sampled-again", "experiments/label_parts.py", "if prompt.prompt_id not in known}", "if prompt.prompt_id not in ()}",
        f"{SCRIPT} test_only_new_prompts_are_sampled", "each start samples all prompts once more"),
    row("gold-turned", "experiments/label_parts.py", '{"strength": -2}', '{"strength": 2}',
        f"{SCRIPT} test_gold_is_what_all_judges_say", "careful people fail the hidden items"),
    row("gold-disputed", "experiments/label_parts.py", "for each in group}) > 1:", "for each in group}) > 9:",
        f"{SCRIPT} test_gold_is_what_all_judges_say", "a disputed answer is taken for the right one"),
    row("links-for-all", "experiments/label_parts.py", "os.O_EXCL, 0o600)", "os.O_EXCL, 0o644)",
        f"{SCRIPT} TestTokens::test_stay_the_same_and_are_only_in_a_file_of_their_owner", "others read everybody's tokens"),
    row("links-swapped", "experiments/label_parts.py", 'row is not None and row["name"] == name', "row is not None",
        f"{SCRIPT} TestTokens::test_of_somebody_else_are_not_taken", "two people judge under one name"),
    row("open-to-all", "experiments/label.py", "every_interface=cfg.public", "every_interface=True",
        f"{SCRIPT} test_other_machines_only_when_asked", "served to the whole network by a slip"),
    row("overlap-lost", "experiments/label_parts.py", "axes_of(cfg), cfg.overlap, source", "axes_of(cfg), 1, source",
        f"{SCRIPT} test_each_kept_response_is_in_one_item_and_the_rest_is_counted", "nobody judges what another one has judged"),
)
