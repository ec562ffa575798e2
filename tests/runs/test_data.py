"""From records to ids: one BOS, one EOS, the same prompt everywhere, nothing lost on the way; and the order of rows."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.algorithms import rollout
from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.playground import tokenizer as words
from rlhf_jax.runs import chat as chat_ids
from rlhf_jax.runs import data

TEXTS = ["the cat sat on the mat", "a dog ran", "Human: Assistant: user assistant", "sat", "ran"]


def chat(content):
    return ({"role": "user", "content": content},)


def plain(content):
    return ({"role": "text", "content": content},)


@functools.cache
def tokenizer(kind):
    """ "chat": a template that writes BOS and, after an answer, EOS. "adds": no template, BOS and EOS put around every text.
    "both": a template that writes BOS, in a tokenizer that would put a second one. "same": padding is the EOS."""
    from tokenizers.processors import TemplateProcessing

    made = words.train_tokenizer(TEXTS, 64)
    if kind in ("adds", "both"):
        ids = [(name, made.convert_tokens_to_ids(name)) for name in (words.BOS, words.EOS)]
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{words.BOS} $A {words.EOS}" if kind == "adds" else f"{words.BOS} $A", special_tokens=ids
        )
        assert made("the")["input_ids"][0] == made.bos_token_id, "this tokenizer adds a BOS by itself"
    if kind == "adds":
        made.chat_template = None
    if kind == "same":
        made.pad_token = made.eos_token
    return made


def text_of(kind, ids):
    return tokenizer(kind).decode(ids)


@pytest.mark.parametrize("kind", ["chat", "both"])
def test_invariant_16_a_conversation_has_one_bos_which_the_template_wrote(kind):
    ids = data.encode_prompt(tokenizer(kind), chat("the cat"))
    assert text_of(kind, ids) == "<bos><|user|>the cat<|assistant|>"
    assert ids.count(tokenizer(kind).bos_token_id) == 1 and ids[:2] != [tokenizer(kind).bos_token_id] * 2


def test_invariant_16_plain_text_has_the_tokenizers_own_bos_and_no_eos():
    ids = data.encode_prompt(tokenizer("adds"), plain("the cat"))
    assert text_of("adds", ids) == "<bos>the cat"
    assert text_of("chat", data.encode_prompt(tokenizer("chat"), plain("the cat"))) == "the cat"


@pytest.mark.parametrize(
    ("kind", "prompt", "response", "wanted"),
    [
        ("chat", chat("the cat"), "sat on", "sat on<eos>"),  # the template writes the EOS
        ("both", chat("the cat"), "sat on", "sat on<eos>"),
        ("chat", plain("the cat"), " sat on", " sat on<eos>"),  # nobody does: it is added
        ("adds", plain("the cat"), " sat on", " sat on<eos>"),  # the tokenizer would add one by itself
        ("chat", chat("the cat"), "", "<eos>"),
        ("chat", plain("the cat"), " sat<eos>", " sat<eos>"),  # the text brings one
        ("chat", chat("the cat"), "sat<eos> on the mat", "sat<eos>"),  # what follows an EOS was never sampled
    ],
)
def test_invariant_15_a_response_ends_with_exactly_one_eos(kind, prompt, response, wanted):
    ids = data.encode_response(tokenizer(kind), prompt, response)
    assert text_of(kind, ids) == wanted
    assert ids.count(tokenizer(kind).eos_token_id) == 1 and ids[-1] == tokenizer(kind).eos_token_id


def pair(prompt, chosen, rejected, **more):
    return records.Pair(prompt, chosen, rejected, source_kind="human", **more)


def test_what_was_said_of_a_pair_stands_in_its_row():
    given = [
        pair(
            chat("the cat"),
            " sat on",
            " ran",
            label=0.75,
            equal=0.25,
            margin=0.5,
            weight=2.0,
            annotator="B",
            axis="style",
        ),
        pair(chat("the cat"), " sat on", " ran", label=1.0, equal=0.6, tie=True, annotator="A"),
    ]
    rows, _, _ = data.encode_pairs(given, tokenizer("chat"), window=16, judges=("A", "B"), axes=("overall", "style"))
    found = {name: getattr(rows, name).tolist() for name in ("label", "tie", "margin", "weight", "judge", "axis")}
    assert found.pop("tie") == pytest.approx([0.25, 0.6])
    assert found == {"label": [0.75, 1.0], "margin": [0.5, 0.0], "weight": [2.0, 1.0], "judge": [1, 0], "axis": [1, 0]}


@pytest.mark.parametrize("kind", ["chat", "adds", "both", "same"])
def test_invariant_15_a_reward_model_reads_the_same_ids_in_training_and_in_scoring(kind):
    prompt = plain("the cat") if kind == "adds" else chat("the cat")
    rows, _, _ = data.encode_pairs([pair(prompt, " sat on", " ran")], tokenizer(kind), window=16)
    tokens, length = data.score_encoder(tokenizer(kind), window=16)([prompt, prompt], [" sat on", " ran"])
    np.testing.assert_array_equal(tokens, [rows.chosen[0], rows.rejected[0]])
    assert length.tolist() == [rows.chosen_length[0], rows.rejected_length[0]]
    for row, size in zip(tokens, length):
        assert (row[:size] == tokenizer(kind).eos_token_id).sum() == 1 and row[size - 1] == tokenizer(kind).eos_token_id
        assert (row[size:] == 0).all()


@pytest.mark.parametrize("kind", ["chat", "adds", "both", "same"])
def test_invariant_16_prompt_ids_are_the_same_in_rollout_training_and_scoring(kind):
    prompt = plain("the cat") if kind == "adds" else chat("the cat")
    sampled, _ = data.encode_prompts([records.Prompt(prompt)], tokenizer(kind), window=8)
    shown, _ = data.encode_demonstrations(
        [records.Demonstration(prompt, " sat on", source_kind="human")], tokenizer(kind), window=16
    )
    judged, _, _ = data.encode_pairs([pair(prompt, " sat on", " ran")], tokenizer(kind), window=16)
    scored, _ = data.score_encoder(tokenizer(kind), window=16)([prompt], [" sat on"])
    size = int(sampled.length[0])
    wanted = sampled.tokens[0, :size].tolist()
    for tokens in (shown.tokens[0], judged.chosen[0], judged.rejected[0], scored[0]):
        assert tokens[:size].tolist() == wanted


@pytest.mark.parametrize("kind", ["chat", "adds"])
def test_invariant_17_a_sampled_response_and_a_demonstrated_one_are_the_same_row(kind):
    """What a policy samples after a prompt lies where a demonstration has it: sampled ids are trained on as they are."""
    prompt = plain("the cat") if kind == "adds" else chat("the cat")
    shown, _ = data.encode_demonstrations(
        [records.Demonstration(prompt, " sat on", source_kind="human")], tokenizer(kind), window=12
    )
    sampled, _ = data.encode_prompts([records.Prompt(prompt)], tokenizer(kind), window=8)
    response = data.encode_response(tokenizer(kind), prompt, " sat on")
    rows, size = data.pad([response], 4)
    arrays = (jnp.asarray(x) for x in (sampled.tokens, sampled.length, rows, size))
    np.testing.assert_array_equal(rollout.join(*arrays)[0], shown.tokens[0])


def test_a_demonstration_is_learnt_from_its_completion_on_the_eos_included():
    rows, _ = data.encode_demonstrations(
        [records.Demonstration(chat("the cat"), "sat on", source_kind="human")], tokenizer("chat"), window=12
    )
    size, start = int(rows.length[0]), len(data.encode_prompt(tokenizer("chat"), chat("the cat")))
    assert rows.loss_mask[0].tolist() == [start <= t < size for t in range(12)]
    assert rows.tokens[0, size - 1] == tokenizer("chat").eos_token_id and rows.loss_mask[0, size - 1]
    whole, _ = data.encode_demonstrations(
        [records.Demonstration(chat("the cat"), "sat on", source_kind="human")],
        tokenizer("chat"),
        window=12,
        learn="all",
    )
    assert whole.loss_mask[0].tolist() == [1 <= t < size for t in range(12)]


def test_invariant_07_a_tokenizer_whose_padding_is_its_eos_gives_the_same_rows_and_masks():
    one, other = (
        data.encode_demonstrations(
            [records.Demonstration(chat("the cat"), "sat on", source_kind="human")], tokenizer(kind), window=12
        )[0]
        for kind in ("chat", "same")
    )
    for name in ("tokens", "length", "loss_mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_a_conversation_without_a_template_is_a_transcript():
    prompt = (*chat("the cat"), {"role": "assistant", "content": "sat"}, {"role": "user", "content": "a dog"})
    text = chat_ids.render(tokenizer("adds"), prompt, answer=True)
    assert text == "\n\nHuman: the cat\n\nAssistant: sat\n\nHuman: a dog\n\nAssistant:"
    assert text_of("adds", data.encode_response(tokenizer("adds"), prompt, "ran")) == " ran<eos>"


def test_a_template_that_rewrites_the_prompt_once_it_is_answered_is_refused():
    made = words.train_tokenizer(TEXTS, 64)
    made.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UserError, match="changes the prompt once it is answered"):
        data.encode_response(made, chat("the cat"), "sat")


LONG = [records.Prompt(plain(text), meta={"n": i}) for i, text in enumerate(("a", "the cat sat on the mat", "a dog"))]


def test_long_prompts_are_dropped_truncated_or_refused_as_told_and_counted():
    made = tokenizer("chat")
    kept, counts = data.encode_prompts(LONG, made, window=3)
    assert [meta["n"] for meta in kept.meta] == [0, 2] and counts == {"longer than 3 tokens: dropped": 1}
    assert kept.ids.tolist() == [0, 1] and kept.length.tolist() == [1, 2]
    cut, counts = data.encode_prompts(LONG, made, window=3, long="truncate")
    assert text_of("chat", cut.tokens[1]) == " on the mat" and counts == {"longer than 3 tokens: truncated": 1}
    with pytest.raises(UserError, match="a prompt has 6 tokens, the prompt window 3"):
        data.encode_prompts(LONG, made, window=3, long="refuse")


def test_empty_prompts_are_left_out_and_counted_and_nothing_left_is_refused():
    made = tokenizer("chat")
    kept, counts = data.encode_prompts([records.Prompt(plain("")), *LONG], made, window=6)
    assert counts == {"empty": 1} and len(kept.texts) == 3
    with pytest.raises(UserError, match="no prompt is left of 1"):
        data.encode_prompts([records.Prompt(plain(""))], made, window=6)


def test_plain_prompts_to_a_chat_model_are_warned_of(capsys):
    """They are continued, not answered: what comes out is rubbish, and nothing else would say why."""
    data.encode_prompts([*LONG, records.Prompt(chat("a cat"))], tokenizer("chat"), window=9)
    assert "warning: 3 prompts are plain text" in capsys.readouterr().out
    data.encode_prompts([records.Prompt(chat("a cat"))], tokenizer("chat"), window=9)
    data.encode_prompts(LONG, tokenizer("adds"), window=9)
    assert capsys.readouterr().out == ""


def test_pairs_and_demonstrations_past_the_window_are_dropped_and_counted_never_cut():
    made = tokenizer("chat")
    rows = [
        pair(plain("a"), " cat", " dog", label=0.75, margin=0.5, weight=2.0),
        pair(plain("a"), " cat sat on the mat", " dog"),
        pair(plain("a"), " dog", " cat sat on the mat"),
    ]
    found, kept, counts = data.encode_pairs(rows, made, window=4)
    assert kept == rows[:1] and counts == {"longer than 4 tokens: dropped": 2}
    assert (found.label[0], found.margin[0], found.weight[0]) == (0.75, 0.5, 2.0)
    assert text_of("chat", found.chosen[0][:3]) == "a cat<eos>" and found.chosen_length[0] == 3
    with pytest.raises(UserError, match="no pair is left of 2"):
        data.encode_pairs(rows[1:], made, window=4)
    shown = [records.Demonstration(plain("a"), text, source_kind="human") for text in (" cat", " cat sat on the mat")]
    found, counts = data.encode_demonstrations(shown, made, window=4)
    assert found.length.tolist() == [3] and counts == {"longer than 4 tokens: dropped": 1}
    with pytest.raises(UserError, match="no demonstration is left of 1"):
        data.encode_demonstrations(shown[1:], made, window=4)


def test_a_scored_text_past_the_window_loses_the_beginning_of_its_prompt_and_keeps_its_end():
    encode = data.score_encoder(tokenizer("chat"), window=4)
    tokens, length = encode([plain("the cat sat")], [" on the"])
    assert text_of("chat", tokens[0]) == " sat on the<eos>" and length.tolist() == [4]
    with pytest.raises(UserError, match="a response has 7 tokens for the reward model, whose window is 4"):
        encode([plain("a")], [" the cat sat on the mat"])


# --- order --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (3, 8), (12, 4), (1, 3), (7, 7)])
def test_batches_run_through_every_row_once_an_epoch(rows, size):
    steps = 3 * rows
    order = np.concatenate([data.batch_rows(rows, size, seed=5, step=step) for step in range(steps)])
    epochs = order[: len(order) // rows * rows].reshape(-1, rows)
    assert (np.sort(epochs, axis=1) == np.arange(rows)).all()
    assert rows < 7 or len({epoch.tobytes() for epoch in epochs}) > 1, "the same order in every epoch"


def test_a_batch_depends_on_seed_and_step_alone():
    again = data.batch_rows(50, 8, seed=1, step=13)
    assert again.tolist() == data.batch_rows(50, 8, seed=1, step=13).tolist()
    assert again.tolist() != data.batch_rows(50, 8, seed=2, step=13).tolist()
    assert again.tolist() != data.batch_rows(50, 8, seed=1, step=14).tolist()


def test_take_and_take_prompts_pick_rows_of_everything():
    kept, _ = data.encode_prompts(LONG, tokenizer("chat"), window=6)
    few = data.take_prompts(kept, np.array([2, 0]))
    assert few.ids.tolist() == [2, 0] and [m["n"] for m in few.meta] == [2, 0]
    assert few.texts == [LONG[2].prompt, LONG[0].prompt] and few.length.tolist() == [2, 1]
    np.testing.assert_array_equal(few.tokens, kept.tokens[[2, 0]])
    assert data.take({"x": np.arange(5)}, np.array([3, 1]))["x"].tolist() == [3, 1]


def test_data_is_found_as_given_below_the_folder_and_below_the_environment(tmp_path, monkeypatch):
    for name in ("here", "env"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text("{}")
    monkeypatch.setenv("RLHF_JAX_DATA", str(tmp_path / "env"))
    assert data.find(str(tmp_path / "here" / "here.jsonl")) == str(tmp_path / "here" / "here.jsonl")
    assert data.find("here.jsonl", str(tmp_path / "here")) == str(tmp_path / "here" / "here.jsonl")
    assert data.find("env.jsonl", str(tmp_path / "here")) == str(tmp_path / "env" / "env.jsonl")
    with pytest.raises(UserError, match="RLHF_JAX_DATA to where 'no.jsonl' lies") as error:
        data.find("no.jsonl", str(tmp_path / "here"))
    assert str(tmp_path / "env" / "no.jsonl") in str(error.value)


def test_a_prompt_reads_as_its_text_or_turn_by_turn():
    assert data.readable(chat("the cat")) == "the cat"
    assert data.readable((*chat("a"), {"role": "assistant", "content": "b"})) == "user: a\n\nassistant: b"
