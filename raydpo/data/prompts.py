"""From files of prompts to token ids: what generators read is, token for token, what training sees before an answer.

What comes in: files with rows of `prompt`; pairs with a prompt and HH transcripts will do. What goes out: each different
prompt once, as a `Prompt`, and a `PromptReport`; and the data's own answer to a prompt as ids.
Decision: rows are read, written and tokenised by the functions that `prepare` uses, and a prompt ends where it ends in
training: a reasoning block that a template opens for generation, and that some answers lack, is the policy's to open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from raydpo.config.sections import DataSection
from raydpo.data.aliases import canonical
from raydpo.data.bad_rows import BadRow, field_of, text
from raydpo.data.chat_rows import conversation_of
from raydpo.data.chat_template import SETTINGS, template_settings
from raydpo.data.column_use import ColumnUse
from raydpo.data.embedding_rows import Beyond, Embedding
from raydpo.data.encode import Encoded, encode
from raydpo.data.lines import encode_lines
from raydpo.data.messages import Example, Row, is_messages, messages, tools_of
from raydpo.data.plain_rows import fits_hh, hh
from raydpo.data.report import Tally, num_bad, table
from raydpo.data.row_extras import refuse_media, with_system_turn
from raydpo.data.row_view import RowView
from raydpo.data.sources import Source, find
from raydpo.data.template import ControlTokens, Rendered, no_template, render, render_prompt
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError
from raydpo.schema.rows import row_key
from raydpo.schema.samples import Conversation, Prompt

_ANSWERS = ("chosen", "rejected", "completion", "label", "answers", "scores")


@dataclass(frozen=True)
class PromptReport:
    """What became of every line.

    lines_read: in all files.
    num_prompts: prompts that are used.
    num_duplicates: lines whose prompt was there before, not used again.
    quarantined: lines left out, by reason (`overlong`: no room for an answer token).
    samples: the first places of each reason.
    control_tokens_found: control tokens spelled out in the prompts.
    columns_not_read: columns of each source that held something and were not read.
    entries: a line of quarantine.jsonl each.
    """

    lines_read: int
    num_prompts: int
    num_duplicates: int
    quarantined: dict[str, int]
    samples: dict[str, list[str]]
    control_tokens_found: int
    columns_not_read: dict[str, list[str]] = field(default_factory=dict)
    entries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        accounted = self.num_prompts + self.num_duplicates + sum(self.quarantined.values())
        assert self.lines_read == accounted, f"{self.lines_read} lines read, {accounted} accounted for"

    def to_json(self) -> dict[str, Any]:
        """Nested plain values, without `entries`."""
        return {name: value for name, value in asdict(self).items() if name != "entries"}


def read_prompts(
    key: str,
    sources: Sequence[str],
    tokenizer: TextTokenizer,
    *,
    max_length: int,
    control_tokens: ControlTokens,
    max_bad_fraction: float,
    embedding: Embedding | None = None,
    settings: DataSection | None = None,
) -> tuple[list[Prompt], PromptReport]:
    """Prompts of all `sources` (the value of config key `key`), in the order of files and lines; none for no sources.

    max_length: tokens of prompt + answer; a prompt must leave room for one. embedding: what the ids have to fit into; None:
    unknown. settings: whose `columns` and `ignore` hold here too. Raises DataError with all problems: missing files, no chat
    template, more than `max_bad_fraction` bad lines, no prompt left, tokens beyond the embedding, columns that nothing reads
    and whose names say that they matter to a prompt.
    """
    found, problems = find(key, sources)
    if problems:
        raise DataError(problems)
    tally, prompts, num_used = Tally(), dict[str, Prompt](), 0
    beyond = Beyond(tokenizer, embedding)
    for source in found:
        tally.uses.append(use := ColumnUse(source.name, settings or DataSection()))
        try:
            for prompt in _prompts(source, tokenizer, max_length, control_tokens, tally, beyond, use):
                prompts.setdefault(prompt.key, prompt)
                num_used += 1
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    beyond.refuse()
    problems += [text for use in tally.uses if (text := use.problem("prompts")) is not None]
    if problems:
        raise DataError([f"{key}: {problem}" for problem in problems])
    quarantined = tally.by_reason()
    report = PromptReport(
        lines_read=tally.lines_read,
        num_prompts=len(prompts),
        num_duplicates=num_used - len(prompts),
        quarantined=quarantined,
        samples={reason: tally.samples[reason] for reason in quarantined},
        control_tokens_found=tally.counts["control_tokens_found"],
        columns_not_read={use.source: sorted(use.unread) for use in tally.uses if use.unread},
        entries=tuple(tally.entries),
    )
    if sources:
        _refuse(key, report, max_bad_fraction)
    return list(prompts.values()), report


def chosen_ids(
    tokenizer: TextTokenizer, prompt: Prompt, *, control_tokens: ControlTokens = "plain"
) -> tuple[tuple[int, ...] | None, str]:
    """(ids of the data's own answer to `prompt`, "") as training would read them, EOS included; or (None, why not).

    tokenizer and control_tokens must be those that the prompt was read with.
    """
    found, why = own_answer(tokenizer, prompt, control_tokens=control_tokens)
    return None if found is None else tuple(found.answer_ids[0]), why


def own_answer(
    tokenizer: TextTokenizer, prompt: Prompt, *, control_tokens: ControlTokens = "plain"
) -> tuple[Encoded | None, str]:
    """As `chosen_ids`, with the mask of the answer where it has several turns."""
    record = prompt.record
    try:
        given = record.get("chosen")
        answer = given if isinstance(given, list) else text(given, "chosen")
        if isinstance(record["prompt"], str):
            example = Example(record["prompt"], [answer])  # type: ignore[arg-type]
        else:
            turns = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
            own = record.get(SETTINGS, {})
            example = Example(record["prompt"], [turns], tools=record.get("tools"), template_settings=own)
        rendered = render(example, tokenizer, control_tokens)
        (encoded,) = encode(tokenizer, [rendered], max_length=sys.maxsize, overlong="drop")
        if isinstance(encoded, BadRow):
            raise encoded
        if tuple(encoded.prompt_ids) != prompt.ids:
            raise BadRow("prefix_mismatch", "the prompt has other ids when this answer follows")
    except BadRow as bad:
        return None, f"{bad.reason}: {bad.detail}"
    return encoded, ""


def _prompts(
    source: Source,
    tokenizer: TextTokenizer,
    max_length: int,
    control_tokens: ControlTokens,
    tally: Tally,
    beyond: Beyond,
    use: ColumnUse,
) -> Iterator[Prompt]:
    """Good prompts of one source; everything else is counted in the tally."""
    write = partial(_text_of, use, tokenizer, control_tokens)
    lines = encode_lines(
        source.name, source.rows(), write, tokenizer, tally, beyond, max_length=max_length, overlong="drop"
    )
    for _, ids, example in lines:
        found = tuple(ids.prompt_ids)
        yield Prompt(row_key(ids.prompt_ids, []), _for_judge(example), found, _record(example))


def _text_of(
    use: ColumnUse, tokenizer: TextTokenizer, control_tokens: ControlTokens, place: str, row: Row
) -> tuple[Rendered, Example]:
    """The prompt of a row. Raises DataError when none of the file can be written down."""
    example = _example(use, place, row)
    if example.is_conversation and not tokenizer.has_template:
        raise no_template(tokenizer, use.source)
    return render_prompt(example, tokenizer, control_tokens), example


def _example(use: ColumnUse, place: str, row: Row) -> Example:
    """Prompt and own answer (if any) of a row, split, named and spelled as `prepare` would, behind its system text."""
    use.see(row)
    values, origin = canonical(row, use.settings.columns, use.ignored, is_ours=True)
    view = RowView(values, origin)
    for name in _ANSWERS:  # what a prompt's row says of answers is not asked for
        view.mark(name)
    example = with_system_turn(_split(view), view)
    refuse_media(row, use.ignored, example)
    settings = template_settings(view, use.settings.chat_template_kwargs)
    example = replace(example, template_settings=settings)
    use.add_prompt(place, row, view, example)
    return example


def _split(row: Row) -> Example:
    if fits_hh(row):
        return hh(row, 1)
    side = "chosen" if row.get("chosen") is not None else "completion"
    answer = row.get(side)
    if is_messages(answer):
        example = conversation_of(row, [side])
    elif isinstance(field_of(row, "prompt"), list):
        answers = [] if answer is None else [[{"role": "assistant", "content": text(answer, side)}]]
        example = Example(messages(row["prompt"], "prompt"), answers, tools=tools_of(row))
    else:
        return Example(text(row["prompt"], "prompt"), [] if answer is None else [text(answer, side)])
    last = example.prompt[-1]["role"]  # type: ignore[index]
    if last not in ("user", "tool"):
        raise BadRow(
            "bad_turn_order", f"the prompt ends with a turn of {last}, where a user or a tool should have spoken last"
        )
    return example


def _for_judge(example: Example) -> str:
    """A prompt as a judge reads it: plain text and a single message as they are, else turns with their roles."""
    turns = example.prompt
    if isinstance(turns, str):
        return turns
    is_one = len(turns) == 1
    text = turns[0]["content"] if is_one else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    return Conversation(text, turns, example.tools)


def _record(example: Example) -> dict[str, Any]:
    """What a preference record repeats: prompt, tools if there are any, and the data's own answer.

    That is text, or messages where there are several or one says more than its content (a call of a tool).
    """
    record: dict[str, Any] = {"prompt": example.prompt}
    if example.tools is not None:
        record["tools"] = example.tools
    if example.template_settings:
        record[SETTINGS] = dict(example.template_settings)
    if example.answers:
        answer = example.answers[0]
        is_text = isinstance(answer, list) and len(answer) == 1 and answer[0].keys() == {"role", "content"}
        record["chosen"] = answer[0]["content"] if is_text else answer  # type: ignore[index]
    return record


def _refuse(key: str, report: PromptReport, max_bad_fraction: float) -> None:
    """Raise what makes the prompts as a whole unusable."""
    bad = num_bad(report.quarantined)
    share = bad / max(1, report.lines_read)
    if share > max_bad_fraction:
        raise DataError(
            f"{key}: {bad:,} of {report.lines_read:,} lines ({share:.1%}) cannot be used, and data.max_bad_fraction allows "
            f"{max_bad_fraction:.1%}. Rounds would sample from what is left. Fix the rows (each needs prompt: text, or a list "
            f"of messages that the user ends), or raise data.max_bad_fraction.\n{table(report.quarantined, report.samples)}"
        )
    if not report.num_prompts:
        raise DataError(
            f"{key} gives no prompt: of {report.lines_read:,} lines none is left, and there would be nothing to answer. Name "
            "files with rows of prompt, or raise data.max_length if all are overlong.\n"
            f"{table(report.quarantined, report.samples)}"
        )
