import pytest

from rlhf_jax.feedback.formats import trl
from rlhf_jax.feedback.formats.rows import BadRow


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def plain(text):
    return ({"role": "text", "content": text},)


def read(form, row, kind="human"):
    """The one record of a row and the notes on it."""
    keywords = {} if form in (trl.prompt_only, trl.dialogue_prompt) else {"source_kind": kind}
    (found,), notes = form(row, source="test", **keywords)
    assert found.source == "test"
    return found, notes


def reason_of(form, row):
    with pytest.raises(BadRow) as bad:
        read(form, row)
    return bad.value.reason


ASK = [user("Which colour has the sky?")]


@pytest.mark.parametrize(
    ("form", "row", "prompt", "responses"),
    [
        # the examples of TRL's page on data formats
        (
            trl.explicit,
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
            plain("The sky is"),
            (" blue.", " green."),
        ),
        (
            trl.implicit,
            {"chosen": "The sky is blue.", "rejected": "The sky is green."},
            plain("The sky is"),
            (" blue.", " green."),
        ),
        (
            trl.explicit,
            {"prompt": ASK, "chosen": [assistant("Blue.")], "rejected": [assistant("Green.")]},
            tuple(ASK),
            ("Blue.", "Green."),
        ),
        (
            trl.implicit,
            {"chosen": [*ASK, assistant("Blue.")], "rejected": [*ASK, assistant("Green.")]},
            tuple(ASK),
            ("Blue.", "Green."),
        ),
    ],
)
def test_the_four_preference_forms(form, row, prompt, responses):
    found, notes = read(form, row | {"margin": 0.25, "id": 3}, kind="ai")
    assert (found.prompt, found.responses, found.ranks, notes) == (prompt, responses, (0, 1), [])
    assert (found.margin, found.source_kind, found.meta) == (0.25, "ai", {"id": 3})
    assert read(form, row)[0].margin == 0.0


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses", "notes"),
    [
        ("Q: a? yes", "Q: a? no", "Q: a?", (" yes", " no"), []),
        ("Q:  yes", "Q:  no", "Q: ", (" yes", " no"), []),
        ("Q: black", "Q: blue", "Q: bl", ("ack", "ue"), ["prompt_ends_inside_a_word"]),
        ("Q: ab", "Q: a", "Q: a", ("b", ""), ["prompt_ends_inside_a_word", "empty_response"]),
        ("Q: a.", "Q: a", "Q: a", (".", ""), ["empty_response"]),
        ("Q\nyes", "Q\nno", "Q\n", ("yes", "no"), []),
    ],
)
def test_where_implicit_texts_are_cut(chosen, rejected, prompt, responses, notes):
    found, noted = read(trl.implicit, {"chosen": chosen, "rejected": rejected})
    assert (found.prompt, found.responses, noted) == (plain(prompt), responses, notes)
    assert prompt + responses[0] == chosen and prompt + responses[1] == rejected, "no letter is lost"


def test_implicit_conversations_share_all_leading_messages():
    lead = [{"role": "system", "content": "Be kind."}, *ASK, assistant("Blue."), user("Sure?")]
    found, _ = read(trl.implicit, {"chosen": [*lead, assistant("Yes.")], "rejected": [*lead, assistant("No.")]})
    assert found.prompt == tuple(lead) and found.responses == ("Yes.", "No.")
    same, notes = read(trl.implicit, {"chosen": [*ASK, assistant("x")], "rejected": [*ASK, assistant("x")]})
    assert same.prompt == tuple(ASK) and same.responses == ("x", "x") and notes == ["identical_responses"]


def test_completions_that_repeat_the_prompt():
    """The binarised UltraFeedback: a plain prompt beside conversations that begin with it."""
    row = {"prompt": "hi", "chosen": [user("hi"), assistant("a")], "rejected": [user("hi"), assistant("b")]}
    found, notes = read(trl.explicit, row)
    assert (
        found.prompt == (user("hi"),) and found.responses == ("a", "b") and notes == ["prompt_repeated_in_completion"]
    )
    mixed, notes = read(trl.explicit, {"prompt": "hi", "chosen": [assistant("a")], "rejected": [assistant("b")]})
    assert mixed.prompt == (user("hi"),) and notes == []


def test_message_fields_that_are_left_out_are_noted():
    row = {"prompt": [user("hi") | {"name": "Ann"}], "chosen": "a", "rejected": [assistant("b") | {"tool_calls": None}]}
    found, notes = read(trl.explicit, row)
    assert found.prompt == (user("hi"),) and notes == ["message_fields_ignored"]


@pytest.mark.parametrize(("value", "margin"), [(2, 2.0), ("0.5", 0.5), (None, 0.0), ("", 0.0), (-1.5, -1.5)])
def test_margins(value, margin):
    assert read(trl.explicit, {"prompt": "p", "chosen": "a", "rejected": "b", "margin": value})[0].margin == margin


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("form", "row", "reason"),
    [
        (trl.explicit, PAIR | {"margin": "much"}, "bad_margin"),
        (trl.explicit, PAIR | {"margin": True}, "bad_margin"),
        (trl.explicit, PAIR | {"margin": float("nan")}, "bad_margin"),
        (trl.explicit, PAIR | {"margin": 10**400}, "bad_margin"),
        (trl.explicit, PAIR | {"margin": [1]}, "bad_margin"),
        (trl.explicit, PAIR | {"source_kind": "crowd"}, "unknown_source_kind"),
        (trl.explicit, PAIR | {"source_kind": ["ai"]}, "unknown_source_kind"),
        (trl.explicit, PAIR | {"prompt": " "}, "empty_prompt"),
        (trl.explicit, PAIR | {"prompt": []}, "prompt_empty"),
        (trl.explicit, PAIR | {"prompt": None}, "prompt_not_text"),
        (trl.explicit, PAIR | {"chosen": 1}, "chosen_not_text"),
        (trl.explicit, {"prompt": "p", "chosen": "a"}, "no_rejected"),
        (trl.explicit, PAIR | {"chosen": [assistant("a"), user("b")]}, "completion_of_several_messages"),
        (trl.explicit, PAIR | {"chosen": [user("a")]}, "completion_not_by_assistant"),
        (trl.explicit, PAIR | {"chosen": [{"role": "assistant", "content": None}]}, "content_not_text"),
        (trl.explicit, PAIR | {"chosen": [{"from": "gpt", "value": "a"}]}, "unknown_role"),
        (trl.implicit, {"chosen": "a", "rejected": "b"}, "no_shared_prompt"),
        (trl.implicit, {"chosen": " a", "rejected": " b"}, "no_shared_prompt"),
        (trl.implicit, {"chosen": "\n a", "rejected": "\n b"}, "no_shared_prompt"),
        (trl.implicit, {"chosen": "same", "rejected": "same"}, "identical_texts"),
        (trl.implicit, {"chosen": "a", "rejected": [user("a")]}, "chosen_not_messages"),
        (trl.implicit, {"chosen": [user("a")], "rejected": [user("a")]}, "no_shared_prompt"),
        (
            trl.implicit,
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]},
            "no_shared_prompt",
        ),
        (
            trl.implicit,
            {"chosen": [user("a"), assistant("b"), user("c"), assistant("d")], "rejected": [user("a"), assistant("x")]},
            "completion_of_several_messages",
        ),
        (
            trl.implicit,
            {"chosen": [user("a"), user("b")], "rejected": [user("a"), user("c")]},
            "completion_not_by_assistant",
        ),
        (trl.prompt_only, {"prompt": 3}, "prompt_not_text"),
        (trl.prompt_completion, {"prompt": "p"}, "no_completion"),
        (trl.prompt_completion, {"prompt": "p", "completion": "c", "label": False}, "labelled_undesirable"),
        (trl.dialogue, {"messages": [user("a")]}, "no_prompt"),
        (trl.dialogue, {"messages": [assistant("a")]}, "no_prompt"),
        (trl.dialogue, {"messages": [user("a"), assistant("b"), user("c")]}, "completion_not_by_assistant"),
        (trl.dialogue, {"messages": "a"}, "messages_not_messages"),
        (trl.dialogue, {}, "no_messages"),
        (trl.dialogue_prompt, {"messages": [assistant("a")]}, "no_prompt"),
    ],
)
def test_rows_that_cannot_be_used(form, row, reason):
    assert reason_of(form, row) == reason


def test_prompts_keep_the_other_columns():
    found, notes = read(trl.prompt_only, {"prompt": "p", "answer": 42})
    assert (found.prompt, found.meta, notes) == (plain("p"), {"answer": 42}, [])
    assert read(trl.prompt_only, {"prompt": ASK})[0].prompt == tuple(ASK)
    asked = [*ASK, assistant("Blue."), user("Sure?")]
    for dialogue in ([*asked], [*asked, assistant("Yes.")]):
        found, _ = read(trl.dialogue_prompt, {"messages": dialogue, "id": 1})
        assert found.prompt == tuple(asked) and found.meta == {"id": 1}


def test_demonstrations():
    found, notes = read(trl.prompt_completion, {"prompt": "p", "completion": " c", "label": True}, kind="ai")
    assert (found.prompt, found.completion, found.source_kind, notes) == (plain("p"), " c", "ai", [])
    assert found.meta == {"label": True}
    found, _ = read(trl.prompt_completion, {"prompt": ASK, "completion": [assistant("Blue.")]})
    assert (found.prompt, found.completion) == (tuple(ASK), "Blue.")
    asked = [*ASK, assistant("Blue."), user("Sure?")]
    found, notes = read(trl.dialogue, {"messages": [*asked, assistant("")], "source_kind": "synthetic"})
    assert (found.prompt, found.completion, found.source_kind) == (tuple(asked), "", "synthetic")
    assert notes == ["empty_response"] and found.meta == {}


def test_unpaired_completions_are_ratings():
    found, notes = read(trl.unpaired, {"prompt": "p", "completion": "c", "label": False, "id": 1}, kind="ai")
    assert (found.prompt, found.response, found.axis, found.value, found.scale) == (
        plain("p"),
        "c",
        "overall",
        0,
        (0, 1),
    )
    assert (found.source_kind, found.meta, notes) == ("ai", {"id": 1}, [])
    for label, value in ((True, 1), ("True", 1), ("0", 0), (1, 1)):
        row = {"prompt": ASK, "completion": [assistant("Blue.")], "label": label}
        assert read(trl.unpaired, row)[0].value == value
    for label in (None, 2, "good", 1.0):
        assert reason_of(trl.unpaired, {"prompt": "p", "completion": "c", "label": label}) == "bad_label"


def test_steps_are_ratings_of_all_before_them():
    row = {"prompt": "1+1+1?", "completions": ["1+1=2", "2+1=4"], "labels": [True, False], "id": 3}
    (first, second), notes = trl.stepwise(row, source="test", source_kind="human")
    assert [r.response for r in (first, second)] == ["1+1=2", "1+1=2\n2+1=4"] and notes == []
    assert [(r.value, r.meta) for r in (first, second)] == [
        (1, {"id": 3, "steps": ["1+1=2"]}),
        (0, {"id": 3, "steps": ["1+1=2", "2+1=4"]}),
    ]
    assert first.item == second.item
    assert trl.stepwise(row | {"id": 4}, source="test", source_kind="human")[0][0].item != first.item
    for change, reason in (
        ({"labels": [True]}, "bad_label"),
        ({"labels": [True, None]}, "bad_label"),
        ({"labels": "yes"}, "bad_label"),
        ({"completions": []}, "completions_not_texts"),
        ({"completions": ["a", 1]}, "completions_not_texts"),
        ({"prompt": " "}, "empty_prompt"),
    ):
        assert reason_of(trl.stepwise, row | change) == reason


@pytest.mark.parametrize(
    ("length", "prompt", "responses"),
    [(3, "Q: ", ("black", "blue")), (5, "Q: bl", ("ack", "ue")), ("3", "Q: ", ("black", "blue"))],
)
def test_a_prompt_length_says_where_the_prompt_ends(length, prompt, responses):
    row = {"chosen": "Q: black", "rejected": "Q: blue", "prompt_length": length}
    found, notes = read(trl.implicit, row)
    assert (found.prompt, found.responses, found.meta, notes) == (plain(prompt), responses, {}, [])
    same = {"chosen": "Q: a", "rejected": "Q: a", "prompt_length": 3}
    assert read(trl.implicit, same)[0].responses == ("a", "a")


@pytest.mark.parametrize("length", [0, -1, 6, 99, "x", None, True, 2.5])
def test_prompt_lengths_that_cannot_be(length):
    row = {"chosen": "Q: black", "rejected": "Q: blue", "prompt_length": length}
    assert reason_of(trl.implicit, row) == "bad_prompt_length"
    assert reason_of(trl.implicit, {"chosen": "  a", "rejected": "  b", "prompt_length": 2}) == "bad_prompt_length"
