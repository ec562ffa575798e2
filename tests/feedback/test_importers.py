import pytest

from rlhf_jax.feedback.importers import dialogues as importers
from rlhf_jax.feedback.importers import own as importers_own
from rlhf_jax.feedback.importers.dialogues import BadRow


def reason_of(function, row, **keywords):
    with pytest.raises(BadRow) as bad:
        function(row, source="test", **keywords)
    return bad.value.reason


PANDALM = {
    "idx": 7,
    "motivation_app": "Maps",
    "cmp_key": "one_two",
    "instruction": "Name a city.",
    "input": "In France.",
    "response1": "Lyon",
    "response2": "Rome",
    "annotator1": 1,
    "annotator2": 0,
    "annotator3": 2,
}


def test_pandalm():
    found, notes = importers.pandalm(PANDALM, source="pandalm:x")
    assert notes == []
    assert [c.annotator for c in found] == ["annotator1", "annotator2", "annotator3"]
    assert [c.ranks for c in found] == [(0, 1), (0, 0), (1, 0)], (
        "1: the first is better, 0: tie, 2: the second is better"
    )
    for c in found:
        assert c.prompt == ({"role": "user", "content": "Name a city.\n\nIn France."},)
        assert (c.responses, c.item, c.source, c.source_kind) == (("Lyon", "Rome"), "7", "pandalm:x", "human")
        assert c.meta == {"idx": 7, "motivation_app": "Maps", "cmp_key": "one_two"}


@pytest.mark.parametrize(
    ("change", "prompt"),
    [
        ({"input": ""}, "Name a city."),
        ({"input": None}, "Name a city."),
        ({"input": " \n"}, "Name a city."),
        ({"instruction": " "}, "In France."),
    ],
)
def test_pandalm_prompts_of_one_part(change, prompt):
    assert importers.pandalm(PANDALM | change, source="")[0][0].prompt[0]["content"] == prompt


@pytest.mark.parametrize(
    ("change", "responses", "notes"),
    [
        ({"response1": True}, ("True", "Rome"), ["boolean_response"]),
        ({"response1": False, "response2": True}, ("False", "True"), ["boolean_response"]),
        ({"response2": ""}, ("Lyon", ""), ["empty_response"]),
        ({"response2": "Lyon"}, ("Lyon", "Lyon"), ["identical_responses"]),
        ({"annotator2": 3}, ("Lyon", "Rome"), ["bad_label"]),
        ({"annotator1": None, "annotator2": "two"}, ("Lyon", "Rome"), ["bad_label", "bad_label"]),
        ({"annotator1": True}, ("Lyon", "Rome"), ["bad_label"]),
        ({"annotator1": [1]}, ("Lyon", "Rome"), ["bad_label"]),
    ],
)
def test_pandalm_oddities_are_kept_and_noted(change, responses, notes):
    found, noted = importers.pandalm(PANDALM | change, source="")
    assert found[0].responses == responses and noted == notes
    assert len(found) == 3 - notes.count("bad_label")


def test_pandalm_labels_as_csv_and_pandas_write_them():
    found, notes = importers.pandalm(PANDALM | {"annotator1": "2", "annotator2": 1.0, "annotator3": "0.0"}, source="")
    assert [c.ranks for c in found] == [(1, 0), (0, 1), (0, 0)] and not notes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"instruction": 3}, "instruction_not_text"),
        ({"instruction": "", "input": ""}, "empty_prompt"),
        ({"input": ["x"]}, "input_not_text"),
        ({"response1": None}, "response1_not_text"),
        ({"annotator1": 9, "annotator2": 9, "annotator3": 9}, "no_usable_label"),
    ],
)
def test_pandalm_rows_that_cannot_be_used(change, reason):
    assert reason_of(importers.pandalm, PANDALM | change) == reason
    assert reason_of(importers.pandalm, {"instruction": "a", "response1": "b"}) == "no_response2"


def message(text, role="assistant", replies=(), **fields):
    return {"message_id": f"id of {text}", "text": text, "role": role, "replies": list(replies)} | fields


def tree(*replies, text="question", **fields):
    return {"message_tree_id": "tree", "prompt": message(text, "prompter", replies, **fields)}


def ranked(*texts):
    return [message(text, rank=rank) for rank, text in enumerate(texts)]


def best_first(comparison):
    return [text for _, text in sorted(zip(comparison.ranks, comparison.responses))]


def test_oasst_sets_and_their_prompts():
    deep = message("first", rank=0, replies=[message("why?", "prompter", ranked("yes", "no", "maybe"))])
    found, notes = importers.oasst(tree(deep, message("second", rank=1)), source="oasst:x")
    assert notes == [] and len(found) == 2
    assert best_first(found[0]) == ["first", "second"] and best_first(found[1]) == ["yes", "no", "maybe"]
    assert found[0].prompt == ({"role": "user", "content": "question"},)
    assert [(m["role"], m["content"]) for m in found[1].prompt] == [
        ("user", "question"),
        ("assistant", "first"),
        ("user", "why?"),
    ]
    for c in found:
        assert c.annotator == "" and c.source_kind == "human" and sorted(c.ranks) == list(range(len(c.ranks)))
        assert c.meta["message_ids"] == [f"id of {text}" for text in c.responses]


def test_oasst_order_tells_nothing_of_the_rank():
    sets = [importers.oasst(tree(*ranked(f"a{k}", f"b{k}", f"c{k}", f"d{k}")), source="")[0][0] for k in range(400)]
    for place in range(4):  # 400 draws of 1 in 4: 5 standard deviations are 43
        assert abs(sum(c.ranks[place] == 0 for c in sets) - 100) < 44
    for c, k in zip(sets, range(400)):
        again = importers.oasst(tree(*ranked(f"a{k}", f"b{k}", f"c{k}", f"d{k}")[::-1]), source="")[0][0]
        assert again == c, "the order in the file makes no difference"


def test_oasst_replies_that_are_left_out():
    replies = [
        message("worst", rank=5),
        message("unranked"),
        message("best", rank=0),
        message("gone", rank=1, deleted=True),
        message("odd", rank="2"),
        message("flag", rank=True),
        {"text": None, "role": "assistant", "rank": 3},
        "no message",
        message("a prompter", "prompter", rank=4),
        message("middle", rank=2),
    ]
    (found,), notes = importers.oasst(tree(*replies), source="")
    assert best_first(found) == ["best", "middle", "worst"] and sorted(found.ranks) == [0, 1, 2], "ranks close up"
    assert {note: notes.count(note) for note in notes} == {
        "unranked_reply": 4,
        "deleted_message": 1,
        "malformed_message": 2,
    }


def test_oasst_equal_ranks_are_ties():
    (found,), _ = importers.oasst(tree(message("a", rank=0), message("b", rank=0), message("c", rank=1)), source="")
    assert dict(zip(found.responses, found.ranks)) == {"a": 0, "b": 0, "c": 1}


def test_oasst_synthetic_messages_are_flagged_or_dropped():
    below = message("human", rank=1, replies=[message("more", "prompter", ranked("x", "y"))])
    made = message("made", rank=0, synthetic=True, replies=[message("so?", "prompter", ranked("p", "q"))])
    row = tree(made, below, message("other", rank=2, synthetic=False))
    kept, notes = importers.oasst(row, source="")
    assert not notes and [best_first(c) for c in kept] == [["made", "human", "other"], ["p", "q"], ["x", "y"]]
    assert [c.meta["synthetic_prompt"] for c in kept] == [False, True, False]
    assert dict(zip(kept[0].responses, kept[0].meta["synthetic_responses"])) == {
        "made": True,
        "human": False,
        "other": False,
    }
    assert {c.source_kind for c in kept} == {"human"}, "people ranked them"
    clean, notes = importers.oasst(row, source="", synthetic="drop")
    assert [best_first(c) for c in clean] == [["human", "other"], ["x", "y"]]
    assert sorted(clean[0].ranks) == [0, 1]
    assert sorted(notes) == ["synthetic_prompt_dropped", "synthetic_reply_dropped"]
    few = tree(message("made", rank=0, synthetic=True), below)
    assert importers.oasst(few, source="", synthetic="drop")[1].count("fewer_than_2_replies_left") == 1


def test_oasst_trees_that_cannot_be_used():
    assert reason_of(importers.oasst, tree(message("only", rank=0))) == "no_ranked_set"
    assert reason_of(importers.oasst, {"message_tree_id": 1, "prompt": "text"}) == "no_ranked_set"
    assert reason_of(importers.oasst, tree(*ranked("a", "b"), deleted=True)) == "no_ranked_set"
    assert reason_of(importers.oasst, {"prompt": {"text": "a", "role": "prompter", "replies": 7}}) == "no_ranked_set"
    assert reason_of(importers.oasst, tree(*ranked("a", "b"), synthetic=True), synthetic="drop") == "synthetic_only"


def test_oasst_trees_may_be_deep():
    node = message("end", "prompter", ranked("a", "b"))
    for depth in range(3000):
        node = message(str(depth), ("assistant", "prompter")[depth % 2], [node])
    (found,), _ = importers.oasst({"message_tree_id": "x", "prompt": node}, source="")
    assert len(found.prompt) == 3001


HH = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a city?\n\nAssistant:"


def test_hh_rlhf():
    (found,), notes = importers.hh_rlhf({"chosen": HH + " Lyon.", "rejected": HH + " Rome. ", "n": 1}, source="hh:x")
    assert notes == [] and found.responses == ("Lyon.", "Rome.") and found.ranks == (0, 1) and found.meta == {"n": 1}
    assert [(m["role"], m["content"]) for m in found.prompt] == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "a city?"),
    ]


def test_hh_rlhf_repeated_roles_are_noted():
    head = "\n\nHuman: hi\n\nHuman: you there?\n\nAssistant:"
    (found,), notes = importers.hh_rlhf({"chosen": head + " a", "rejected": head + " b"}, source="")
    assert notes == ["repeated_role"] and [m["role"] for m in found.prompt] == ["user", "user"]
    head = "\n\nHuman: hi\n\nAssistant: yes\n\nAssistant:"
    assert importers.hh_rlhf({"chosen": head + " a", "rejected": head + " b"}, source="")[1] == ["repeated_role"]
    same, notes = importers.hh_rlhf({"chosen": HH + " a", "rejected": HH + " a"}, source="")
    assert notes == ["identical_responses"] and len(same) == 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        (HH + " a", HH.replace("city", "town") + " b", "prefix_mismatch"),
        (HH + " a", HH + " b\n\nHuman: thanks\n\nAssistant: c", "prefix_mismatch"),
        (HH + " a", HH + "", "empty_response"),
        (HH + "  ", HH + " b", "empty_response"),
        (HH + " a", HH + " b\n\nHuman: and?", "last_turn_not_assistant"),
        (HH + " a", "\n\nHuman: a city?", "not_a_transcript"),
        ("a", "b", "not_a_transcript"),
        ("Sure." + HH + " a", "Sure." + HH + " b", "not_a_transcript"),
        (HH + " a", None, "rejected_not_text"),
        ([], HH + " a", "chosen_not_text"),
    ],
)
def test_hh_rlhf_rows_that_cannot_be_used(chosen, rejected, reason):
    assert reason_of(importers.hh_rlhf, {"chosen": chosen, "rejected": rejected}) == reason
    assert reason_of(importers.hh_rlhf, {"chosen": HH + "a"}) == "no_rejected"


OWN = {"prompt": "hello", "responses": ["a", "b", "c"], "ranks": [0, 1, 1]}


def test_own_form():
    (found,), _ = importers_own.own(OWN, source="x", source_kind="ai")
    assert found.prompt == ({"role": "text", "content": "hello"},) and found.ranks == (0, 1, 1)
    assert (found.source, found.source_kind) == ("x", "ai")
    more = {
        "source": "y",
        "source_kind": "synthetic",
        "weight": 2,
        "strength": None,
        "meta": {"k": 1},
        "prompt_id": "stale",
    }
    (told,), _ = importers_own.own(OWN | more, source="x", source_kind="ai")
    assert (told.source, told.source_kind, told.weight, told.meta) == ("y", "synthetic", 2, {"k": 1})
    assert told.prompt_id == found.prompt_id


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"rank": [0, 1]}, "unknown keys rank"),
        ({"responses": "abc"}, "responses must be a list of texts"),
        ({"responses": ["a", 1, "c"]}, "responses must be a list of texts"),
        ({"ranks": [0, 1]}, "one per response (3)"),
        ({"ranks": [1, 2, 3]}, "the best of them 0"),
        ({"ranks": [0, 1, 1.5]}, "ranks must be a list of whole numbers"),
        ({"ranks": [0, 1, True]}, "plain ints"),
        ({"weight": "1"}, "weight must be a number"),
        ({"weight": float("nan")}, "weight must be a finite number"),
        ({"strength": "strong"}, "strength must be a number or null"),
        ({"axis": None}, "axis must be a text"),
        ({"meta": []}, "meta must be an object"),
        ({"source_kind": "crowd"}, "human, ai, synthetic"),
    ],
)
def test_own_form_rows_that_cannot_be_used(change, detail):
    with pytest.raises(BadRow) as bad:
        importers_own.own(OWN | change, source="x", source_kind="ai")
    assert bad.value.reason == "not_a_comparison" and detail in bad.value.detail


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (3, "prompt_not_messages"),
        ([], "prompt_empty"),
        (["hello"], "prompt_not_messages"),
        ([{"role": "gpt", "content": "a"}], "unknown_role"),
        ([{"role": ["user"], "content": "a"}], "unknown_role"),
        ([{"role": "user", "content": None}], "content_not_text"),
        ([{"role": "user", "content": "a"}, {"role": "text", "content": "a"}], "unknown_role"),
    ],
)
def test_prompts_that_are_no_messages(prompt, reason):
    assert reason_of(importers_own.own, OWN | {"prompt": prompt}, source_kind="ai") == reason


RATED = {"prompt": "hi", "response": "a", "axis": "style", "value": 3, "scale": [1, 5], "source_kind": "human"}


def test_own_ratings():
    (found,), notes = importers_own.own_rating(RATED | {"meta": {"x": 1}}, source="f", source_kind="ai")
    assert (found.value, found.scale, found.source, found.source_kind) == (3, (1, 5), "f", "human") and notes == []
    stale = RATED | {"prompt_id": "stale"}
    (again,), _ = importers_own.own_rating(stale, source="f", source_kind="ai")
    assert again.prompt_id == found.prompt_id != "stale"
    assert importers_own.own_rating(RATED | {"response": ""}, source="f", source_kind="ai")[1] == ["empty_response"]


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"value": 6}, "at least 1 and at most 5"),
        ({"value": "3"}, "value must be a number"),
        ({"scale": [1]}, "a list of two numbers"),
        ({"scale": ["1", "5"]}, "a list of two numbers"),
        ({"scale": "1-5"}, "a list of two numbers"),
        ({"scale": [5, 1]}, "from its lowest to its highest"),
        ({"axis": ""}, "names its axis"),
        ({"response": None}, "response must be a text"),
        ({"ranks": [0]}, "unknown keys ranks"),
        ({"source_kind": "crowd"}, "human, ai, synthetic"),
        ({"meta": []}, "meta must be an object"),
    ],
)
def test_own_ratings_that_cannot_be_used(change, detail):
    with pytest.raises(BadRow) as bad:
        importers_own.own_rating(RATED | change, source="f", source_kind="ai")
    assert bad.value.reason == "not_a_rating" and detail in bad.value.detail
    with pytest.raises(BadRow) as bad:
        importers_own.own_rating({k: v for k, v in RATED.items() if k != "axis"}, source="f", source_kind="ai")
    assert bad.value.detail == "no axis"


def test_rankings():
    row = {"prompt": "hi", "ranking": ["a", ["b", "c"], ["d"]], "axis": "style", "annotator": "ann", "id": 3}
    (found,), notes = importers_own.ranking(row, source="f", source_kind="ai")
    assert (found.responses, found.ranks, found.axis, found.annotator) == (tuple("abcd"), (0, 1, 1, 2), "style", "ann")
    assert (found.source_kind, found.meta, notes) == ("ai", {"id": 3}, [])
    for change, reason in (
        ({"ranking": "a > b"}, "ranking_not_a_list"),
        ({"ranking": [["a"], []]}, "ranking_not_texts"),
        ({"ranking": [["a"], [1]]}, "ranking_not_texts"),
        ({"ranking": [["a"], 1]}, "ranking_not_texts"),
        ({"ranking": ["a"]}, "fewer_than_2_responses"),
        ({"source_kind": "crowd"}, "unknown_source_kind"),
        ({"prompt": 3}, "prompt_not_messages"),
    ):
        with pytest.raises(BadRow) as bad:
            importers_own.ranking(row | change, source="f", source_kind="ai")
        assert bad.value.reason == reason
