"""Conversations as token ids: the chat template, one BOS, an end where a policy stops, and which tokens the assistant wrote.

`stops` are the ids that end a response beside the tokenizer's own EOS: the policy's (`ModelConfig.eos_ids`). Gemma's turns
end in <end_of_turn> and Phi-3's in <|end|>, while the EOS of their tokenizers is another token.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.errors import UserError
from rlhf_jax.feedback import records
from rlhf_jax.model.hf.files import first_line

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
    """The conversation as text, special tokens included; with `answer`, up to where the assistant begins to speak.
    UserError where the template refuses it, as many do a system's message or two turns of one role."""
    template = None if tokenizer.chat_template else PLAIN_TEMPLATE
    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=answer, chat_template=template
        )
    except Exception as error:  # a template raises what it likes: jinja's errors, and those of the Python that it calls
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"the tokenizer's chat template cannot render a conversation of {roles or 'no message'}: {first_line(error)}; give "
            "it conversations of roles, and in an order, that it takes, or the tokenizer another template"
        ) from error


def encode_prompt(tokenizer: Any, prompt: records.Messages) -> list[int]:
    """Ids of a prompt. A conversation goes through the chat template, whose special tokens are the only ones: never
    two BOS. Plain text (role "text") is tokenized as it is, with the tokenizer's own BOS and without an EOS."""
    if prompt[0]["role"] == "text":
        ids = list(tokenizer(prompt[0]["content"])["input_ids"])
        while ids and ids[-1] == tokenizer.eos_token_id:
            ids.pop()
        return ids
    return list(tokenizer(render(tokenizer, prompt, answer=True), add_special_tokens=False)["input_ids"])


def encode_response(tokenizer: Any, prompt: records.Messages, response: str, *, stops: Sequence[int] = ()) -> list[int]:
    """Ids of a response to the prompt, up to and with the first that ends it (one of `stops` or the EOS); where the
    template writes none, the EOS is added. They are what a policy would have sampled: the response is tokenized apart from
    the prompt. UserError if the template does not begin an answered conversation as it begins the question.
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
    last = next((place for place, token in enumerate(ids) if token == eos or token in stops), None)
    return [*ids, eos] if last is None else ids[: last + 1]


def assistant_mask(tokenizer: Any, prompt: records.Messages, *, stops: Sequence[int] = ()) -> np.ndarray:
    """bool, one a token of `encode_prompt`: which of them an assistant's turns in the prompt are made of, each up to
    and with the first that ends it. None of plain text, which has no turns.

    Needs a fast tokenizer, which tells the characters that a token covers. UserError for a slow one, for a conversation that
    an assistant's turn begins, and for a template that renders the beginning of a conversation in another way once it goes
    on (such as one that takes thoughts out). An EOS at the end of all, as Phi-3's template writes, is no such change.
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
        if index == 0:
            raise UserError(
                "a conversation begins with the assistant, whose turn has nothing before it to answer; begin it with "
                "another's message, or learn: completion"
            )
        before = render(tokenizer, prompt[:index], answer=True)
        after = render(tokenizer, prompt[: index + 1], answer=False)
        if not text.startswith(after):
            after = after.removesuffix(tokenizer.eos_token or "")
        if not (after.startswith(before) and text.startswith(after)):
            raise UserError("the chat template changes a turn once the conversation goes on; learn: completion instead")
        turn = np.flatnonzero((starts >= len(before)) & (ends <= len(after)))
        end = np.flatnonzero(np.isin(ids[turn], [*stops, tokenizer.eos_token_id]))
        mask[turn[: end[0] + 1] if end.size else turn] = True
    return mask
