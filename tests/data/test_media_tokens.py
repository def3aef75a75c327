"""Placeholders of images and sound: refused where the tokenizer has a control token for them, text like any other elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raydpo.data.bad_rows import BadRow
from raydpo.data.media_tokens import refuse_media_tokens
from raydpo.data.messages import Example
from raydpo.data.template import open_tokenizer, render_prompt
from tests.data.conftest import CHATML, Run, save_tokenizer

MARK = "<|image_pad|>"


@pytest.fixture(scope="module")
def seeing_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChatML with a token for images, as Qwen2-VL has one."""
    folder = tmp_path_factory.mktemp("seeing_tokenizer")
    return save_tokenizer(folder, bos=None, eos="<|im_end|>", template=CHATML, specials=["<|im_start|>", MARK])


def _said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


ROWS: list[dict[str, Any]] = [
    {"prompt": f"{MARK} what is it?", "chosen": "a sea", "rejected": "a sky"},
    {"prompt": "what is it?", "chosen": f"a sea {MARK}", "rejected": "a sky"},
    {
        "prompt": [_said("user", f"what is {MARK}?")],
        "chosen": [_said("assistant", "a sea")],
        "rejected": [_said("assistant", "a sky")],
    },
]


@pytest.mark.parametrize("policy", ["plain", "allow", "quarantine"])
def test_a_placeholder_that_is_a_control_token_is_refused(run: Run, seeing_tokenizer: Path, policy: str) -> None:
    good = {"prompt": "what is it?", "chosen": "a sea", "rejected": "an <image> of the sky"}
    prepared = run([ROWS[0], good, ROWS[1]], seeing_tokenizer, control_tokens=policy)
    assert (prepared.report.pairs_used, prepared.report.quarantined) == (1, {"unsupported_media": 2})
    assert MARK in prepared.quarantine()[0]["detail"]


def test_a_placeholder_in_a_message_is_refused(run: Run, seeing_tokenizer: Path) -> None:
    answers = {"chosen": [_said("assistant", "a sea")], "rejected": [_said("assistant", "a sky")]}
    good = {"prompt": [_said("user", "what is it?")], **answers}
    report = run([ROWS[2], good], seeing_tokenizer).report
    assert (report.pairs_used, report.quarantined) == (1, {"unsupported_media": 1})


def test_it_is_text_where_the_tokenizer_has_no_such_token(run: Run, chat_tokenizer: Path) -> None:
    assert run(ROWS, chat_tokenizer).report.pairs_used == 3


def test_prompts_of_rounds_are_refused_alike(seeing_tokenizer: Path) -> None:
    tokenizer = open_tokenizer(str(seeing_tokenizer), None)
    with pytest.raises(BadRow) as raised:
        render_prompt(Example([_said("user", f"what is {MARK}?")], []), tokenizer, "plain")
    assert raised.value.reason == "unsupported_media"


def test_tokens_of_media_by_their_names() -> None:
    media = [
        "<start_of_image>",
        "<image_soft_token>",
        "<|image_1|>",
        "<IMG_CONTEXT>",
        "[IMG_BREAK]",
        "<|vision_start|>",
    ]
    for token in [*media, "<|video_pad|>", "<|AUDIO|>", "<|audio_bos|>", "<|media_pad|>", "<image>"]:
        with pytest.raises(BadRow):
            refuse_media_tokens(["words", f"and {token} more"], ["<|im_start|>", token])
    for token in ["<|im_start|>", "<|im_end|>", "<|imagine|>", "<|supervision|>", "</s>", "<|endoftext|>"]:
        refuse_media_tokens([f"and {token} more"], [token])
