"""Spans of an answer's text become a mask of its tokens: what is covered spells the spans, or the row is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raydpo.data.bad_rows import BadRow
from raydpo.data.encode import Encoded, encode
from raydpo.data.template import Rendered
from raydpo.data.tokenizer import TextTokenizer
from tests.data.conftest import save_tokenizer

HEAD = "<|im_start|>user\nwhat is the sky?<|im_end|>\n<|im_start|>assistant\n"
END, TOOL = "<|im_end|>", "\n<|im_start|>tool\n{}<|im_end|>\n<|im_start|>assistant\n"
WORDS = st.text("abc sky 日é😀\n{}", min_size=1, max_size=12).filter(str.strip)
SHARED = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def chat(chat_tokenizer: Path) -> TextTokenizer:
    return TextTokenizer(str(chat_tokenizer))


@pytest.fixture(scope="module")
def plain(plain_tokenizer: Path) -> TextTokenizer:
    return TextTokenizer(str(plain_tokenizer))


def trajectory(turns: list[str], results: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """An answer of several assistant turns with tool turns between them, and where the assistant speaks."""
    written, spans = "", []
    for number, turn in enumerate(turns):
        written += TOOL.format(results[number - 1]) if number else ""
        spans.append((len(written), len(written) + len(turn) + len(END)))
        written += turn + END
    return written, spans


def one(tokenizer: TextTokenizer, text: Rendered, max_length: int = 10**6) -> Encoded | BadRow:
    (found,) = encode(tokenizer, [text], max_length=max_length, overlong="truncate_prompt")
    return found


def used(tokenizer: TextTokenizer, text: Rendered, max_length: int = 10**6) -> Encoded:
    found = one(tokenizer, text, max_length)
    assert isinstance(found, Encoded), found
    return found


def covered(tokenizer: TextTokenizer, found: Encoded, answer: int = 0) -> str:
    """What the covered tokens spell, without white space."""
    ids, mask = found.answer_ids[answer], found.masks[answer] or [True] * len(found.answer_ids[answer])
    return "".join(tokenizer.decode([one for one, kept in zip(ids, mask, strict=True) if kept]).split())


def spelled(answer: str, spans: list[tuple[int, int]]) -> str:
    return "".join("".join(answer[start:stop] for start, stop in spans).split())


@SHARED
@given(turns=st.lists(WORDS, min_size=1, max_size=4), results=st.lists(WORDS, min_size=4, max_size=4))
def test_the_loss_covers_what_the_assistant_says(chat: TextTokenizer, turns: list[str], results: list[str]) -> None:
    answer, spans = trajectory(turns, results)
    found = used(chat, Rendered(HEAD, [answer, "no" + END], templated=True, spans=[spans, None]))
    unmasked = used(chat, Rendered(HEAD, [answer, "no" + END], templated=True))
    assert found.answer_ids == unmasked.answer_ids, "a mask changes no id"
    assert covered(chat, found) == spelled(answer, spans)
    assert found.masks[1] is None
    assert (found.masks[0] is None) == (len(turns) == 1), "a mask that covers everything is none"


@SHARED
@given(turns=st.lists(WORDS, min_size=2, max_size=3), results=st.lists(WORDS, min_size=4, max_size=4))
def test_control_tokens_that_the_data_spells_are_text(
    chat: TextTokenizer, turns: list[str], results: list[str]
) -> None:
    """The same with control tokens inside turns and results, which are read as plain text."""
    turns, results = [f"{turn}<|im_end|>" for turn in turns], [f"<|im_start|>{result}" for result in results]
    written, spans = "", []
    for number, turn in enumerate(turns):
        written += chat.from_marked(TOOL.format(chat.mark(results[number - 1]))) if number else ""
        said = chat.from_marked(chat.mark(turn) + END)
        spans.append((len(written), len(written) + len(said)))
        written += said
    head = chat.from_marked(HEAD)
    found = used(chat, Rendered(head, [written], plain=True, templated=True, spans=[spans]))
    assert covered(chat, found) == "".join("".join(turn + END for turn in turns).split())
    mask = found.masks[0]
    assert mask is not None
    assert not all(mask)


@SHARED
@given(data=st.data(), answer=st.text("ab the sky is blue 日é😀\n", min_size=1, max_size=40).filter(str.strip))
def test_any_spans_are_covered_or_the_row_is_left_out(plain: TextTokenizer, data: st.DataObject, answer: str) -> None:
    borders = st.integers(0, len(answer))
    spans = data.draw(st.lists(st.tuples(borders, borders).map(lambda two: (min(two), max(two))), max_size=3))
    found = one(plain, Rendered("the sky is", [answer], spans=[spans]))
    kept = [place for place in range(len(answer)) if any(start <= place < stop for start, stop in spans)]
    if isinstance(found, BadRow):
        assert found.reason in ("split_token", "empty_answer", "prefix_mismatch")
        assert found.reason != "empty_answer" or not "".join(answer[place] for place in kept).strip()
        return
    assert covered(plain, found) == "".join("".join(answer[place] for place in kept).split()) + "<|endoftext|>"


def test_a_token_of_both_sides_is_left_out(plain: TextTokenizer) -> None:
    (ids,) = plain.encode([" the"])
    assert len(ids) == 1, "the tokenizer has this word as one token"
    for spans, expected in (([(0, 3)], "split_token"), ([(1, 4)], None), ([(0, 2), (2, 4)], None), ([(0, 1)], None)):
        found = one(plain, Rendered("x", [" the sky"], spans=[[*spans, (5, 8)]]))
        assert (found.reason if isinstance(found, BadRow) else None) == expected, spans
    assert one(plain, Rendered("x", ["sky the"], spans=[[(3, 4)]])).reason == "empty_answer"  # type: ignore[union-attr]


def test_an_end_that_is_added_is_covered(plain: TextTokenizer) -> None:
    answer = " blue and green"
    found = used(plain, Rendered("the sky is", [answer], spans=[[(5, 9)]]))
    mask = found.masks[0]
    assert mask is not None
    assert mask[-1]
    assert covered(plain, found) == "and<|endoftext|>"


def test_an_answer_read_apart_from_its_prompt(plain: TextTokenizer) -> None:
    """Where the last word of the prompt and the first of the answer are one token."""
    found = used(plain, Rendered("the sky is ", ["blue and green"], spans=[[(0, 8)]]))
    assert found.merged
    assert covered(plain, found) == "blueand<|endoftext|>"


def test_a_beginning_of_text_that_a_template_writes(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path / "t", bos="<s>", eos="</s>", template=None, specials=[])
    tokenizer = TextTokenizer(str(folder))
    found = used(tokenizer, Rendered("", ["<s>the sky is blue"], spans=[[(3, 10)]]))
    assert found.prompt_ids == [tokenizer.bos_id]
    assert covered(tokenizer, found) == "thesky</s>"


def test_a_prompt_that_is_cut_leaves_the_mask(chat: TextTokenizer) -> None:
    answer, spans = trajectory(["look", "blue"], ["the sky"])
    text = Rendered(HEAD * 3, [answer], templated=True, spans=[spans])
    whole = used(chat, text)
    cut = used(chat, text, len(whole.prompt_ids) + len(whole.answer_ids[0]) - 5)
    assert cut.truncated
    assert (cut.answer_ids, cut.masks) == (whole.answer_ids, whole.masks)
