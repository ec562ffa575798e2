"""Ids and masks against `apply_chat_template`, for the templates of well-known families, on 50 conversations each."""

import functools

import numpy as np
import pytest

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.runs import chat, data

ANSWER = "{% generation %}{{ message['content'] }}END{% endgeneration %}"


def turns(user, before, end, after="", other="", begin=""):
    """A template: `user` and `other` say how those turns read, `before`, `end` and `after` stand around an answer."""
    return (
        f"{begin}{{% for message in messages %}}{{% if message['role'] == 'user' %}}{user}"
        f"{{% elif message['role'] == 'assistant' %}}{before}{ANSWER.replace('END', end)}{after}"
        f"{{% else %}}{other}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}{before}{{% endif %}}"
    )


SAID = "{{ message['content'] }}"
NL = "{{ '\\n' }}"
TEMPLATES = {
    "chatml": (
        turns(f"<|im_start|>user{NL}{SAID}<|im_end|>{NL}", f"<|im_start|>assistant{NL}", "<|im_end|>", NL,
              f"<|im_start|>system{NL}{SAID}<|im_end|>{NL}"), "<|im_end|>"),
    "llama3": (
        turns(f"<|start_header_id|>user<|end_header_id|>{NL}{NL}{SAID}<|eot_id|>",
              f"<|start_header_id|>assistant<|end_header_id|>{NL}{NL}", "<|eot_id|>", "",
              f"<|start_header_id|>system<|end_header_id|>{NL}{NL}{SAID}<|eot_id|>", "<s>"), "<|eot_id|>"),
    "gemma": (
        turns(f"<|im_start|>user{NL}{SAID}<|im_end|>{NL}", f"<|im_start|>model{NL}", "<|im_end|>", NL, "", "<s>"),
        "<|im_end|>"),
    "mistral": (turns(f"[INST] {SAID} [/INST]", "", "</s>", "", f"{SAID} ", "<s>"), "</s>"),
    "zephyr": (
        turns(f"<|user|>{NL}{SAID}</s>{NL}", f"<|assistant|>{NL}", "</s>", NL, f"<|system|>{NL}{SAID}</s>{NL}"), "</s>"),
    "phi3": (
        turns(f"<|user|>{NL}{SAID}<|end|>{NL}", f"<|assistant|>{NL}", "<|end|>", NL, f"<|system|>{NL}{SAID}<|end|>{NL}"),
        "<|end|>"),
    "transcript": (turns(f"{NL}{NL}Human: {SAID}", f"{NL}{NL}Assistant:", "</s>", "", SAID), "</s>"),
}  # fmt: skip
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]  # fmt: skip
WORDS = "yes no maybe the otter eats fish, naïve café 東京 is far 1. one 2. two ```code``` user assistant".split(" ")
WORDS += ["far\n\nsecond paragraph:"]


@functools.cache
def tokenizer(name):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    # newlines stand apart from the word after them, as in the tokenizers of Llama 3 and Qwen
    pieces = Regex(r" ?\w+|\s*[\r\n]+| ?[^\s\w]+|\s+")
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pieces, "isolated"), bytes_alone])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([" ".join(WORDS), "Human: Assistant: [INST] [/INST]\n\n"] * 3, trainer)
    template, eos = TEMPLATES[name]
    if name == "transcript":
        template = template.replace("{% generation %}", "{% generation %} ")
    words = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token=eos, unk_token="<unk>")
    words.chat_template = template
    return words


def conversations(name, count=50):
    """Of one to four questions and their answers, some with a system's turn, made of words, newlines and other scripts."""
    rng = np.random.default_rng(7)

    def said():
        return " ".join(rng.choice(WORDS, rng.integers(1, 12)))

    for index in range(count):
        system = [{"role": "system", "content": said()}] if index % 3 == 0 and name != "gemma" else []
        rounds = [
            {"role": role, "content": said()} for _ in range(rng.integers(1, 5)) for role in ("user", "assistant")
        ]
        yield (*system, *rounds)


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_and_masks_are_those_of_the_template(name):
    words, several = tokenizer(name), 0
    for messages in conversations(name):
        told = words.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, written = np.array(told["input_ids"]), np.array(told["assistant_masks"], bool)
        size = np.flatnonzero(ids == words.eos_token_id)[-1] + 1  # a newline may follow the last EOS
        example = records.Demonstration(messages[:-1], messages[-1]["content"], source_kind="synthetic")
        rows = {
            learn: data.encode_demonstrations([example], words, window=ids.size, learn=learn)[0] for learn in data.LEARN
        }
        assert rows["assistant"].tokens[0, : rows["assistant"].length[0]].tolist() == ids[:size].tolist()
        assert rows["assistant"].loss_mask[0, :size].tolist() == written[:size].tolist()
        assert not rows["assistant"].loss_mask[0, size:].any()
        last = np.flatnonzero(~written[:size])[-1] + 1
        assert np.flatnonzero(rows["completion"].loss_mask[0]).tolist() == list(range(last, size))
        assert np.flatnonzero(rows["all"].loss_mask[0]).tolist() == list(range(1, size))
        several += written.sum() > size - last
        prompt = words.apply_chat_template(
            list(messages[:-1]), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert chat.encode_prompt(words, messages[:-1]) == prompt["input_ids"]
    assert several > 10, "conversations with more than one answer"


def test_a_template_that_changes_earlier_turns_has_no_mask():
    words = tokenizer("chatml")
    messages = tuple({"role": role, "content": "yes"} for role in ("user", "assistant", "user"))
    kept = words.chat_template
    words.chat_template = kept.replace(
        "{% generation %}{{ message['content'] }}", "{% generation %}{{ message['content'] if loop.last else '' }}"
    )
    try:
        with pytest.raises(UserError, match="changes a turn once the conversation goes on; learn: completion"):
            chat.assistant_mask(words, messages)
    finally:
        words.chat_template = kept
    assert chat.assistant_mask(words, messages[:1]).sum() == 0
