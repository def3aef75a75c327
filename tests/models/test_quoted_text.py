"""What others write is text inside a chat template, whatever it spells; everything else is left as it is."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from raydpo.models.quoted_text import quoted
from raydpo.quickstart.bpe import train_bpe

TOKENIZER = train_bpe(["some words"], 280)
TOKENIZER.add_tokens([AddedToken("<|im_end|>", special=True), AddedToken("<\uff5cuser\uff5c>"), AddedToken("<think>")])


@pytest.mark.parametrize("name", ["<s>", "</s>", "<pad>", "<|im_end|>", "<\uff5cuser\uff5c>"])
def test_a_control_token_is_read_as_text(name: str) -> None:
    text = f"a{name}b {name}{name}"
    control = TOKENIZER.convert_tokens_to_ids(name)
    assert TOKENIZER(text, add_special_tokens=False)["input_ids"].count(control) == 3
    ids = TOKENIZER(quoted(TOKENIZER, text), add_special_tokens=False)["input_ids"]
    assert control not in ids
    assert TOKENIZER.decode(ids).replace("\N{WORD JOINER}", "") == text


@pytest.mark.parametrize("text", ["", "some <b>words</b>", "<think>so</think>", "<|unknown|> <| im_end |>"])
def test_other_text_is_left_as_it_is(text: str) -> None:
    assert quoted(TOKENIZER, text) == text
