"""The one loop over lines: each of them comes out as token ids, or is in the tally under its reason.

What comes in: the lines of a source, and a function that writes the text of a row. What goes out: for each good line, in
order, its place, its ids, and what that function returned with the text.
Decision: examples and prompts go through the same loop, so that both account for every line, and alike. Lines are
tokenised in batches; a batch is counted as read before any of its lines goes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

from raydpo.data.bad_rows import BadRow
from raydpo.data.embedding_rows import Beyond
from raydpo.data.encode import Encoded, encode
from raydpo.data.messages import Row
from raydpo.data.read import Line
from raydpo.data.report import Tally
from raydpo.data.template import Rendered
from raydpo.data.tokenizer import TextTokenizer
from raydpo.schema.events import Advanced, Observer, ignore

_BATCH_ROWS = 512
_BATCH_BYTES = 32 << 20

T = TypeVar("T")
Write = Callable[[str, Row], tuple[Rendered, T]]


def encode_lines(
    name: str,
    lines: Iterator[Line],
    write: Write[T],
    tokenizer: TextTokenizer,
    tally: Tally,
    beyond: Beyond,
    *,
    max_length: int,
    overlong: Literal["drop", "truncate_prompt", "error"],
    observer: Observer = ignore,
) -> Iterator[tuple[str, Encoded, T]]:
    """Good lines of the source `name`; everything else is counted in the tally.

    beyond: is shown every good line. write(place, row): text and what belongs to it. It raises BadRow when the row cannot
    be used, DataError when the whole file cannot.
    """
    while batch := taken(lines, _BATCH_ROWS):
        tally.lines_read += len(batch)
        outcomes = [_outcome(line, f"{name}:{line.number}", write) for line in batch]
        texts = [outcome[0] for outcome in outcomes if isinstance(outcome, tuple)]
        encoded = iter(encode(tokenizer, texts, max_length=max_length, overlong=overlong))
        for line, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, BadRow):
                tally.leave_out(name, line, outcome)
                continue
            text, rest = outcome
            tally.counts["control_tokens_found"] += text.found
            tally.counts["reasoning_dropped"] += text.reasoning_dropped
            example = next(encoded)
            if isinstance(example, BadRow):
                tally.leave_out(name, line, example)
                continue
            tally.counts["truncated_prompts"] += example.truncated
            tally.counts["boundary_merges"] += example.merged
            tally.counts["empty_prompts"] += example.is_bos_added
            place = f"{name}:{line.number}"
            beyond.look(place, example)
            yield place, example, rest
        observer(Advanced("data", tally.lines_read))


def taken(lines: Iterator[Line], most_rows: int) -> list[Line]:
    """The next lines: up to `most_rows`, and fewer where these hold much."""
    found, size = list[Line](), 0
    while len(found) < most_rows and size < _BATCH_BYTES and (line := next(lines, None)) is not None:
        found.append(line)
        size += line.num_bytes
    return found


def _outcome(line: Line, place: str, write: Write[T]) -> tuple[Rendered, T] | BadRow:
    try:
        if line.bad is not None or line.row is None:
            return line.bad or BadRow("not_an_object", "nothing was read")
        return write(place, line.row)
    except BadRow as bad:
        return bad
    except RecursionError:
        return BadRow("malformed_json", "nested too deeply")
