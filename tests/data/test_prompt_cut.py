"""A prompt whose first part is tokenised once gives the ids of the whole, or it is not cut."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from raydpo.data import prompt_cut
from raydpo.data.prompt_cut import _PATTERNS, can_cut, cut_of
from tests.data.conftest import CHATML, CORPUS, Run, save_tokenizer

PIECES = [
    "a",
    "b",
    " ",
    "  ",
    "\n",
    "\r\n",
    " a",
    " the",
    "'ll",
    "'s",
    "'",
    "s",
    "1",
    "23",
    "456",
    " 7",
    "é",
    "e\u0301",
]
PIECES += [
    "\u0301",
    "\u3000",
    "日本",
    "한",
    "ᄒ",
    "ᅡ",
    "<|im_end|>",
    "<|",
    "|>",
    "!",
    "...",
    "\t",
    "\u00a0",
    " x",
    "Ll",
    "LL",
]


def byte_level(*steps: Any, normalizer: Any = None) -> Tokenizer:
    """A byte-level BPE tokenizer with these steps before it."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*CORPUS, "they'll say it's the sky we've seen \n\n 123 4567 \r\n x"], trainer)
    return backend


def split_by(pattern: str) -> list[Any]:
    split = pre_tokenizers.Split(Regex(pattern), "isolated", False)
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def plain_gpt2(**changes: Any) -> Any:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **changes})


GPT2, *OTHERS = sorted(_PATTERNS, key=len)
TOKENIZERS = {
    "GPT-2": byte_level(plain_gpt2()),
    "GPT-2 and digits": byte_level(pre_tokenizers.Digits(individual_digits=True), plain_gpt2()),
    "GPT-2 as a split, NFC": byte_level(*split_by(GPT2), normalizer=normalizers.NFC()),
    **{f"pattern {number}": byte_level(*split_by(each)) for number, each in enumerate(OTHERS)},
}


def state_of(backend: Tokenizer) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(backend.to_str())
    return state


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_of_both_parts_are_those_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_cut, "_LEAST_CHARS", 3)
    backend, draw, num_cut = TOKENIZERS[name], random.Random(7), 0
    assert can_cut(state_of(backend))

    def text(most: int) -> str:
        return "".join(draw.choices(PIECES, k=draw.randrange(most)))

    def ids(part: str) -> list[int]:
        found: list[int] = backend.encode(part, add_special_tokens=False).ids
        return found

    for _ in range(1200):
        prompt, answer = text(16), text(8)
        if cut := cut_of(prompt):
            num_cut += 1
            assert ids(prompt[:cut]) + ids(prompt[cut:] + answer) == ids(prompt + answer), (prompt, answer)
    assert num_cut > 99


def test_a_cut_is_before_the_last_blank_between_letters() -> None:
    start = "x" * 64
    assert cut_of(f"{start} one two 3 four. five\n") == len(f"{start} one")
    for prompt in ("", "short text of few words", start, f"{start}. 3 é é 4 a\nb", f"{start[:60]} a"):
        assert cut_of(prompt) == 0


def changed(**changes: Any) -> dict[str, Any]:
    return {**state_of(TOKENIZERS["GPT-2"]), **changes}


def token(**changes: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "special", "normalized"), False)
    return {"id": 999, "content": "<x>", **flags, **changes}


@pytest.mark.parametrize(
    "state",
    [
        changed(pre_tokenizer=None),
        changed(pre_tokenizer=state_of(byte_level(plain_gpt2(add_prefix_space=True)))["pre_tokenizer"]),
        changed(pre_tokenizer=state_of(byte_level(plain_gpt2(use_regex=False)))["pre_tokenizer"]),
        changed(pre_tokenizer=state_of(byte_level(*split_by(r"\w+\s?|\W")))["pre_tokenizer"]),
        changed(pre_tokenizer=state_of(byte_level(pre_tokenizers.Metaspace(), plain_gpt2()))["pre_tokenizer"]),
        changed(normalizer={"type": "Lowercase"}),
        changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Prepend", "prepend": "x"}]}),
        changed(added_tokens=[token(content="start of text")]),
        changed(added_tokens=[token(rstrip=True)]),
        changed(added_tokens=[token(lstrip=True)]),
        changed(added_tokens=[token(single_word=True)]),
        changed(model={"type": "Unigram"}),
        changed(model={"type": "BPE", "dropout": 0.1}),
    ],
    ids=lambda state: json.dumps([state[key] for key in ("pre_tokenizer", "normalizer", "added_tokens")])[-60:],
)
def test_other_tokenizers_read_whole_texts(state: dict[str, Any]) -> None:
    assert not can_cut(state)


def test_a_preparation_is_the_same_with_a_cut_and_without(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tokenizer(tmp_path / "t", bos=None, eos="<|im_end|>", template=CHATML, specials=["<|im_start|>"])
    words = "the sky is blue and green, they say; it's wide. " * 3
    rows: list[Any] = [
        {"prompt": words + end, "chosen": start + "yes", "rejected": start + "no"}
        for end in ("", " ", "x", "\n", "<|im_end|>")
        for start in ("", " ", "'ll ", "\u0301")
    ]
    monkeypatch.setattr(prompt_cut, "_LEAST_CHARS", 1 << 30)
    whole = run(rows, folder, control_tokens="allow")
    expected, report = whole.examples(), whole.report
    monkeypatch.setattr(prompt_cut, "_LEAST_CHARS", 8)
    (whole.folder / "prepared.json").unlink()
    again = run(rows, folder, control_tokens="allow")
    assert not again.report.reused
    assert (again.examples(), again.report) == (expected, report)
