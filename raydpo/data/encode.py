"""From text to token ids: prompt ids that are a prefix, answers with one end, and the length limit.

What comes in: `Rendered` texts in batches. What goes out: `Encoded` or `BadRow` for each, in order.
Decision: where the last word of the prompt and the first of the answer would merge into one token, prompt and answer
are tokenised separately and joined, because that is what the model sees when it is asked; it is counted
(`boundary_merges`) and the joined ids must spell the same text, else the row is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from raydpo.data.answer_mask import answer_masks
from raydpo.data.bad_rows import BadRow
from raydpo.data.messages import Tokens
from raydpo.data.prompt_cut import cut_of
from raydpo.data.template import Rendered
from raydpo.data.token_rows import check_vocabulary
from raydpo.data.tokenizer import TextTokenizer, Unreadable

_MOST_CHARS = 1 << 20
_CHARS_A_TOKEN = 32
"""Text with more characters than this for each token of data.max_length, and than `_MOST_CHARS`, is not tokenised."""


@dataclass(frozen=True)
class Encoded:
    """One example in token ids.

    prompt_ids: of the prompt, cut to its limit.
    answer_ids: of each answer.
    prompt_hash: of the uncut prompt, for the split.
    merged: prompt and answer were tokenised separately, because the tokenizer would merge them at the boundary.
    truncated: the prompt was cut.
    answer_masks: of each answer, which of its tokens the loss covers, None for all; empty: None for every answer.
    is_bos_added: the prompt was empty and is a BOS now, which the tokenizer would not have written.
    """

    prompt_ids: list[int]
    answer_ids: list[list[int]]
    prompt_hash: int
    merged: bool = False
    truncated: bool = False
    answer_masks: Sequence[list[bool] | None] = ()
    is_bos_added: bool = False

    @property
    def masks(self) -> Sequence[list[bool] | None]:
        """`answer_masks` with an entry for every answer."""
        return self.answer_masks or [None] * len(self.answer_ids)


def encode(
    tokenizer: TextTokenizer,
    texts: Sequence[Rendered],
    *,
    max_length: int,
    overlong: Literal["drop", "truncate_prompt", "error"],
) -> list[Encoded | BadRow]:
    """Ids of each text, or why it cannot be used. Ids are int32 values; `tokenizer.ends` says how they begin and end.

    Ids that came with a row are kept as they are. A prompt without answers (`render_prompt`) must leave room for a token.
    """
    most = max(_MOST_CHARS, _CHARS_A_TOKEN * max_length)
    ordinary = [
        part
        for text in texts
        if not text.plain and text.tokens is None and _num_chars(text) <= most
        for part in _pieces(tokenizer, text)
    ]
    ids = _in_groups(tokenizer, ordinary)
    results: list[Encoded | BadRow] = []
    for text in texts:
        try:
            if (size := _num_chars(text)) > most:
                raise BadRow("too_large", f"{size:,} characters of prompt and answer; up to {most:,} are tokenised")
            if text.tokens is not None:
                example = _as_given(tokenizer, text.tokens)
            else:
                found = _encode_plain(tokenizer, text) if text.plain else _put_together(tokenizer, text, ids)
                example = _assemble(tokenizer, text, found[0], found[1:])
            results.append(_limited(example, tokenizer, max_length, overlong))
        except BadRow as bad:
            results.append(bad)
    return results


def _num_chars(text: Rendered) -> int:
    return len(text.prompt) + max(map(len, text.answers), default=0)


def _in_groups(tokenizer: TextTokenizer, parts: Sequence[str]) -> Iterator[list[int]]:
    """Ids of each part, tokenised in groups: a tokenizer takes hundreds of bytes for a character while it is at it."""
    group, size = list[str](), 0
    for part in parts:
        if group and size + len(part) > _MOST_CHARS:
            yield from tokenizer.encode(group)
            group, size = [], 0
        group.append(part)
        size += len(part)
    if group:
        yield from tokenizer.encode(group)


def _parts(text: Rendered) -> list[str]:
    return [text.prompt, *(text.prompt + answer for answer in text.answers)]


def _pieces(tokenizer: TextTokenizer, text: Rendered) -> list[str]:
    """What is tokenised of an ordinary text: its parts, or what all of them begin with and the rest of each."""
    cut = cut_of(text.prompt) if tokenizer.cuts_prompts else 0
    parts = _parts(text)
    return [text.prompt[:cut], *(part[cut:] for part in parts)] if cut else parts


def _put_together(tokenizer: TextTokenizer, text: Rendered, ids: Iterator[list[int]]) -> list[list[int]]:
    """Ids of the parts of a text, from those of its pieces."""
    is_cut = tokenizer.cuts_prompts and bool(cut_of(text.prompt))
    first = next(ids) if is_cut else []
    return [first + next(ids) for _ in range(1 + len(text.answers))]


def _encode_plain(tokenizer: TextTokenizer, text: Rendered) -> list[list[int]]:
    try:
        return [
            tokenizer.encode_plain(part, num_aliases=number)
            for part, number in zip(_parts(text), text.num_aliases, strict=True)
        ]
    except Unreadable as error:
        raise BadRow("control_tokens", f"control tokens in the text cannot be read as plain text: {error}") from error


def _assemble(tokenizer: TextTokenizer, text: Rendered, prompt_ids: list[int], full: list[list[int]]) -> Encoded:
    answers, merged = [], False
    for answer, ids in zip(text.answers, full, strict=True):
        if ids[: len(prompt_ids)] == prompt_ids:
            answers.append(ids[len(prompt_ids) :])
        else:
            answers.append(_apart(tokenizer, text, answer, prompt_ids, ids))
            merged = True
    ends = tokenizer.ends
    prompt_ids, answers, is_bos_added = ends.begun(prompt_ids, answers, is_templated=text.templated)
    answers = [ends.ended(tokenizer, ids, is_templated=text.templated) for ids in answers]
    if any(len(ids) == 1 and ends.is_end(ids[0]) for ids in answers):
        raise BadRow("empty_answer", "an answer has no tokens but its end")
    if len(answers) > 1 and answers[0] == answers[1]:
        raise BadRow("identical_answers", "chosen and rejected have the same token ids")
    masks = answer_masks(tokenizer, text, answers)
    return Encoded(
        prompt_ids, answers, _prompt_hash(prompt_ids), merged=merged, answer_masks=masks, is_bos_added=is_bos_added
    )


def _as_given(tokenizer: TextTokenizer, tokens: Tokens) -> Encoded:
    check_vocabulary(tokens, tokenizer.num_ids)
    return Encoded(tokens.prompt, tokens.answers, _prompt_hash(tokens.prompt), answer_masks=tokens.masks)


def _prompt_hash(prompt_ids: list[int]) -> int:
    digest = hashlib.blake2b(np.asarray(prompt_ids, dtype="<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _apart(tokenizer: TextTokenizer, text: Rendered, answer: str, prompt_ids: list[int], whole: list[int]) -> list[int]:
    """Ids of the answer on its own, such that prompt + answer still spell the text of `whole`."""

    def ids_of(part: str) -> list[int]:
        if not text.plain:
            return tokenizer.encode([part])[0]
        return tokenizer.encode_plain(part, num_aliases=len(whole))

    spelled = tokenizer.decode(whole)
    alone = ids_of(answer)
    if tokenizer.decode(prompt_ids + alone) == spelled:
        return alone
    # SentencePiece-like tokenizers put a blank before a text; after a line break they do not.
    anchor, anchored = ids_of("\n"), ids_of("\n" + answer)
    if anchored[: len(anchor)] == anchor and tokenizer.decode(prompt_ids + anchored[len(anchor) :]) == spelled:
        return anchored[len(anchor) :]
    raise BadRow("prefix_mismatch", "the tokenizer joins the end of the prompt with the beginning of the answer")


def _limited(example: Encoded, tokenizer: TextTokenizer, max_length: int, overlong: str) -> Encoded:
    longest = max(map(len, example.answer_ids), default=1)
    total = len(example.prompt_ids) + longest
    if total <= max_length:
        return example
    kept = max_length - longest
    head = tokenizer.ends.kept(example.prompt_ids)
    if overlong != "truncate_prompt" or kept <= len(head):
        if kept > len(head):
            what = f"prompt + {'longest answer' if example.answer_ids else 'one token'} takes {total}"
        else:
            what = f"the longest answer alone, which is never cut, takes {longest}"
        raise BadRow("overlong", f"{what} tokens of {max_length}")
    prompt_ids = head + example.prompt_ids[len(example.prompt_ids) - (kept - len(head)) :]
    return replace(example, prompt_ids=prompt_ids, truncated=True)
