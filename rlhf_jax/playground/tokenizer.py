"""A tokenizer trained on the spot: one token a word, as an ordinary Hugging Face tokenizer with a chat template."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
ROLES: tuple[str, ...] = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""<bos> <|user|> question <|assistant|> answer <eos> …; the generation marks tell which tokens an assistant wrote."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 256) -> "PreTrainedTokenizerFast":
    """A word-level tokenizer: the special tokens and the most frequent words of `texts`, at most `vocab_size` in all.

    A word carries the space before it, so decoding is joining: `decode(encode(x)) == x` where the vocabulary has every
    word of x; other words become <unk>. Nothing is added around a text: the chat template writes <bos>, the role marks
    and, after an assistant's turn, <eos>. Pad and EOS differ. `save_pretrained` writes it, `AutoTokenizer` reads it.
    """
    os.environ.setdefault(
        "TRANSFORMERS_NO_ADVISORY_WARNINGS", "1"
    )  # as in model.hf: that PyTorch is missing is no news
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel(unk_token=UNK))
    model.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), behavior="isolated")
    model.decoder = decoders.Fuse()
    special = [PAD, BOS, EOS, UNK, *ROLES]
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    model.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
