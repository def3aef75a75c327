"""Which tokens of an answer the loss covers, from the parts of its text that are the assistant's.

What comes in: a `Rendered` with spans of characters, and the finished ids of its answers. What goes out: a mask of each
answer, None where it has no spans or where they take every token.
Decision: a token is covered by what it spells apart from white space at its ends, white space alone by where it begins; one
that holds text of both sides is no one's, and its row is left out. An end that was appended to the answer is covered.
"""

from __future__ import annotations

from collections.abc import Sequence

from raydpo.data.bad_rows import BadRow
from raydpo.data.template import Rendered
from raydpo.data.tokenizer import TextTokenizer
from raydpo.data.turn_spans import Span


def answer_masks(
    tokenizer: TextTokenizer, text: Rendered, answers: Sequence[list[int]]
) -> tuple[list[bool] | None, ...]:
    """The mask of each of `answers`; empty when no answer has one. BadRow: split_token, empty_answer, prefix_mismatch."""
    if not any(span is not None for span in text.spans):
        return ()
    rows = zip(text.answers, text.spans, answers, strict=True)
    masks = tuple(None if spans is None else _mask(tokenizer, text, answer, spans, ids) for answer, spans, ids in rows)
    return masks if any(masks) else ()


def _mask(
    tokenizer: TextTokenizer, text: Rendered, answer: str, spans: list[Span], ids: list[int]
) -> list[bool] | None:
    joined = _joined(spans, len(answer))
    mask = [_is_covered(answer, place, joined) for place in _places(tokenizer, text, answer, ids)]
    mask += [True] * (len(ids) - len(mask))
    is_ended = tokenizer.ends.is_end(ids[-1])
    if not any(mask[: len(mask) - is_ended]):
        raise BadRow("empty_answer", "no token of an answer is the assistant's")
    mask[-1] = mask[-1] or is_ended
    return None if all(mask) else mask


def _places(tokenizer: TextTokenizer, text: Rendered, answer: str, ids: list[int]) -> list[Span]:
    """The characters of `answer` behind each of `ids`, but for an end that was appended to them.

    The answer was tokenised behind its prompt, alone, or behind a line break; which it was, the ids say.
    """
    for before in (text.prompt, "", "\n"):
        found, offsets = tokenizer.offsets(before + answer, plain=text.plain)
        own = [(one, place) for one, place in zip(found, offsets, strict=True) if place[0] >= len(before)]
        for skipped in range(2):  # a BOS that the template wrote may have moved into an empty prompt
            kept = own[skipped : skipped + len(ids)]
            num_equal = next((n for n, (one, _) in enumerate(kept) if one != ids[n]), len(kept))
            if num_equal and num_equal >= len(ids) - 1:
                return [(start - len(before), stop - len(before)) for _, (start, stop) in kept[:num_equal]]
    raise BadRow(
        "prefix_mismatch", "the tokens of an answer are not those of its text, so that its turns cannot be told apart"
    )


def _joined(spans: Sequence[Span], length: int) -> list[Span]:
    """Spans in order, those that touch as one."""
    joined: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        assert start >= 0, f"span {start}:{stop}"
        assert stop <= length, f"span {start}:{stop} of a text of {length} characters"
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined


def _is_covered(answer: str, place: Span, spans: Sequence[Span]) -> bool:
    start, stop = place
    piece = answer[start:stop]
    if not piece.strip():
        return any(first <= start < end for first, end in spans)
    start, stop = start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip())
    if any(first <= start and stop <= end for first, end in spans):
        return True
    if any(start < end and first < stop for first, end in spans):
        raise BadRow("split_token", f"the token of {piece[:40]!r} holds text of the assistant and of somebody else")
    return False
