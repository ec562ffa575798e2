"""Conversations as token ids: the chat template, one BOS, one EOS, and which tokens the assistant wrote."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] | trim }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""For conversations where the tokenizer has no chat template: the transcript form of the HH-RLHF data. The space before
an answer is the answer's, because most tokenizers make one token of a space and the word after it."""


def render(tokenizer: Any, messages: Sequence[dict[str, str]], *, answer: bool) -> str:
    """The conversation as text, special tokens included; with `answer`, up to where the assistant begins to speak."""
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    return tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=answer, chat_template=template
    )


def encode_prompt(tokenizer: Any, prompt: records.Messages) -> list[int]:
    """Ids of a prompt. A conversation goes through the chat template, whose special tokens are the only ones: never
    two BOS. Plain text (role "text") is tokenized as it is, with the tokenizer's own BOS and without an EOS."""
    if prompt[0]["role"] == "text":
        ids = list(tokenizer(prompt[0]["content"])["input_ids"])
        while ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
        return ids
    return list(tokenizer(render(tokenizer, prompt, answer=True), add_special_tokens=False)["input_ids"])


def encode_response(tokenizer: Any, prompt: records.Messages, response: str) -> list[int]:
    """Ids of a response to the prompt, ending with exactly one EOS. They are what a policy would have sampled: the
    response is tokenized apart from the prompt. UserError if the template does not begin an answered conversation
    as it begins the question.
    """
    text = response
    if prompt[0]["role"] != "text":
        before = render(tokenizer, prompt, answer=True)
        after = render(tokenizer, [*prompt, {"role": "assistant", "content": response}], answer=False)
        if not after.startswith(before):
            raise UserError("the chat template changes the prompt once it is answered; use one that only adds to it")
        text = after[len(before) :]
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    eos = tokenizer.eos_token_id
    return [*ids[: ids.index(eos)], eos] if eos in ids else [*ids, eos]


def assistant_mask(tokenizer: Any, prompt: records.Messages) -> np.ndarray:
    """bool, one a token of `encode_prompt`: which of them an assistant's turns in the prompt are made of, each up to
    and with its first EOS. None of plain text, which has no turns.

    Needs a fast tokenizer, which tells the characters that a token covers. UserError for a slow one, and for a template
    that renders the beginning of a conversation in another way once it goes on (such as one that takes thoughts out).
    """
    size = len(encode_prompt(tokenizer, prompt))
    mask = np.zeros(size, bool)
    if all(message["role"] != "assistant" for message in prompt):
        return mask
    if not tokenizer.is_fast:
        raise UserError("learning from every turn of the assistant needs a fast tokenizer (tokenizer.json)")
    text = render(tokenizer, prompt, answer=True)
    told = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = np.array(told["offset_mapping"]).T
    ids = np.array(told["input_ids"])
    for index, message in enumerate(prompt):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, prompt[:index], answer=True)
        after = render(tokenizer, prompt[: index + 1], answer=False)
        if not (after.startswith(before) and text.startswith(after)):
            raise UserError("the chat template changes a turn once the conversation goes on; learn: completion instead")
        turn = np.flatnonzero((starts >= len(before)) & (ends <= len(after)))
        eos = np.flatnonzero(ids[turn] == tokenizer.eos_token_id)
        mask[turn[: eos[0] + 1] if eos.size else turn] = True
    return mask
