"""A word-level tokenizer and documents whose ids are known by hand: `w7` is 10, and specials come first."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


BOS, EOS, PAD, UNK, TURN_USER, TURN_ASSISTANT, TURN_SYSTEM, END = range(8)
FIRST_WORD = 8
WORDS = 2000
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}<u> {{ m.content }}<e>"
    "{% elif m.role == 'system' %}<y> {{ m.content }}<e>"
    "{% else %}<a> %GEN%{{ m.content }}<e>%ENDGEN%{% endif %}{% endfor %}"
)
PLAIN_TEMPLATE = CHAT_TEMPLATE.replace("%GEN%", "").replace("%ENDGEN%", "")
SPACED_TEMPLATE = CHAT_TEMPLATE.replace(" %GEN%", "{% generation %} ").replace("%ENDGEN%", "{% endgeneration %}")
MARKED_TEMPLATE = CHAT_TEMPLATE.replace("%GEN%", "{% generation %}").replace("%ENDGEN%", "{% endgeneration %}")


def word(*numbers: int) -> str:
    return " ".join(f"w{n}" for n in numbers)


def ids(*numbers: int) -> list[int]:
    return [FIRST_WORD + n for n in numbers]


def tokenizer(template: str | None = PLAIN_TEMPLATE, **special: str | None) -> PreTrainedTokenizerFast:
    specials = ["<s>", "</s>", "<pad>", "<unk>", "<u>", "<a>", "<y>", "<e>"]
    vocabulary = {token: number for number, token in enumerate([*specials, *(f"w{n}" for n in range(WORDS))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([AddedToken(token, special=True) for token in specials])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"} | special
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **{k: v for k, v in names.items() if v is not None})
    made.chat_template = template
    return made


def documents(count: int = 40, seed: int = 3) -> list[str]:
    """Texts of very different lengths in which every word is used at most once."""
    texts, start = [], 0
    for number in range(count):
        length = 1 + (number * seed * 7) % 23
        texts.append(word(*range(start, start + length)))
        start += length
    return texts


def chats(count: int = 12) -> list[dict[str, list[dict[str, str]]]]:
    records, start = [], 0
    for number in range(count):
        messages = []
        for turn in range(2 + number % 3):
            length = 1 + (number + turn) % 5
            role = "user" if turn % 2 == 0 else "assistant"
            messages.append({"role": role, "content": word(*range(start, start + length))})
            start += length
        records.append({"messages": messages})
    return records
