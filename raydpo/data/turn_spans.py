"""Where the assistant speaks in an answer of several turns: ranges of characters in what the template writes for all of it.

What comes in: a template, the turns, and the text of the whole conversation. What goes out: spans, or BadRow.
Decision: a turn ends where the template, asked for the conversation up to there, ends; where it writes the turn differently
when others follow (an empty block for reasoning, say), a mark inside the turn is found in both texts, and what is written
from the mark to the end of the turn must be the same in both. The text of the whole conversation is what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raydpo.data.bad_rows import BadRow
from raydpo.data.chat_template import Template
from raydpo.data.messages import Message
from raydpo.data.pieces import MARK, marked_at_end
from raydpo.data.prompt_end import prompt_text

Span = tuple[int, int]
"""First character, and the one behind the last."""
Begin = Callable[[Sequence[Message]], str]
"""Some turns -> what is written for a conversation that has come so far."""


def joined(prompt: Sequence[Message], answer: Sequence[Message]) -> list[Message]:
    """The whole conversation; an answer to a prompt that the assistant ends goes on with that turn."""
    if prompt[-1]["role"] != "assistant":
        return [*prompt, *answer]
    opened, rest = prompt[-1], answer[0]
    return [
        *prompt[:-1],
        {**opened, **rest, "content": opened["content"] + rest["content"]},
        *answer[1:],
    ]  # text or parts


def turn_spans(
    template: Template, prompt: list[Message], turns: list[Message], head: str, full: str
) -> list[Span] | None:
    """Where the assistant speaks in the answer `turns`, counted from the end of `head`; None when nobody else does.

    full: what the template writes for prompt and answer. BadRow: prefix_mismatch.
    """
    if len(turns) == 1:
        return None
    whole = joined(prompt, turns)
    first = len(whole) - len(turns)
    spans: list[Span] = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        start, stop = len(head), len(full)
        if number:
            start = _place(template, whole, first + number, lambda given: prompt_text(template, given), full)
        if number < len(turns) - 1:
            stop = _place(template, whole, first + number + 1, lambda given: template.write(given).rstrip(), full)
        if not len(head) <= start <= stop:
            raise _differently(number)
        spans.append((start - len(head), stop - len(head)))
    return spans


def _place(template: Template, whole: list[Message], num_turns: int, begin: Begin, full: str) -> int:
    """The length of the part of `full` that stands for the first `num_turns` of `whole`, as `begin` ends it."""
    if full.startswith(alone := begin(whole[:num_turns])):
        return len(alone)
    marked = [*whole[: num_turns - 1], marked_at_end(whole[num_turns - 1]), *whole[num_turns:]]
    before, mark, behind = template.write(marked).partition(MARK)
    _, found, rest = begin(marked[:num_turns]).partition(MARK)
    if not mark or not found or before + behind != full or MARK in rest or not behind.startswith(rest):
        raise _differently(num_turns - 1)
    return len(before) + len(rest)


def _differently(number: int) -> BadRow:
    return BadRow(
        "prefix_mismatch",
        f"the chat template writes turn {number + 1} of the conversation differently when others follow, and where it ends "
        "cannot be told",
    )
