"""Rows that carry token ids next to their text: pairs of on-policy rounds, read as the policy read and wrote them.

What comes in: rows with prompt_ids, chosen_ids, rejected_ids and the digest of the tokenizer that they belong to. What
goes out: an `Example` with `Tokens` and no text.
Decision: the ids are the truth and the text next to them is not read: nothing is tokenised again, no BOS or EOS is added,
so that an answer that was cut off keeps having no end. Price: text that somebody edits in such a file changes nothing.
chosen_mask and rejected_mask, 0 or 1 for each id of an answer, say which of its tokens the loss covers; absent: all.
"""

from __future__ import annotations

from typing import Any

from raydpo.data.bad_rows import BadRow, field_of, text
from raydpo.data.format import Format
from raydpo.data.messages import Example, Row, Tokens
from raydpo.data.plain_rows import sides_of
from raydpo.data.tokenizer import TextTokenizer
from raydpo.errors import DataError


def fits_tokenized(row: Row) -> bool:
    """Token ids of prompt and chosen answer, and the digest of their tokenizer."""
    return all(isinstance(row.get(name), list) for name in ("prompt_ids", "chosen_ids")) and isinstance(
        row.get("tokenizer"), str
    )


def tokenized(row: Row, num_answers: int) -> Example:
    """The ids of a row, with the masks of its answers.

    BadRow: missing_field, not_a_string, bad_ids, bad_mask, empty_prompt, empty_answer, identical_answers.
    """
    prompt = _ids(row, "prompt_ids")
    answers = {side: _ids(row, f"{side}_ids") for side in sides_of(num_answers)}
    digest = text(row.get("tokenizer"), "tokenizer")
    if not prompt:
        raise BadRow("empty_prompt", "prompt_ids is empty; a prompt without text is BOS alone")
    for side, ids in answers.items():
        if not ids:
            raise BadRow("empty_answer", f"{side}_ids is empty")
    found = list(answers.values())
    if len(found) > 1 and found[0] == found[1]:
        raise BadRow("identical_answers", "chosen and rejected have the same token ids")
    masks = tuple(_mask(row, f"{side}_mask", len(ids)) for side, ids in answers.items())
    return Example("", [], tokens=Tokens(prompt, found, digest, masks if any(masks) else ()))


def _ids(row: Row, name: str) -> list[int]:
    ids: Any = field_of(row, name)
    if not isinstance(ids, list):
        raise BadRow("bad_ids", f"{name} is {type(ids).__name__}, not a list of token ids")
    place = next((place for place, one in enumerate(ids) if type(one) is not int), None)
    if place is not None:
        raise BadRow("bad_ids", f"{name}[{place}] is {str(ids[place])[:40]!r}, not a whole number")
    return ids


def _mask(row: Row, name: str, length: int) -> list[bool] | None:
    """The marks of an answer of `length` tokens; None where the loss covers all of them."""
    marks: Any = row.get(name)
    if marks is None:
        return None
    if not isinstance(marks, list) or any(type(one) not in (int, bool) or one not in (0, 1) for one in marks):
        raise BadRow("bad_mask", f"{name} is not a list of 0 and 1")
    if len(marks) != length:
        raise BadRow(
            "bad_mask", f"{name} has {len(marks)} marks for {length} tokens; each token of the answer needs one"
        )
    if not any(marks):
        raise BadRow("empty_answer", f"{name} is 0 everywhere, so that the loss would cover no token of the answer")
    return None if all(marks) else [bool(one) for one in marks]


def check_vocabulary(tokens: Tokens, num_ids: int) -> None:
    """Refuse ids below 0 or from `num_ids` on."""
    for name, ids in zip(("prompt_ids", "chosen_ids", "rejected_ids"), (tokens.prompt, *tokens.answers), strict=False):
        if min(ids) < 0 or max(ids) >= num_ids:
            bad = next(one for one in ids if not 0 <= one < num_ids)
            raise BadRow("bad_ids", f"{name} holds {bad}, and the tokenizer has ids 0 to {num_ids - 1}")


def late_ids(place: str, layout: str) -> DataError:
    """The error for a file that has been read as `layout` when the first row with token ids comes, at `place`."""
    return DataError(
        f"{place}: this row has token ids, and the first rows of the file have none, so that it is read as {layout}. Its text "
        "would have been tokenised a second time, into ids that may be others. Keep rows with and without ids in files of "
        f"their own, or set data.format: {layout} to read the text of all."
    )


def other_tokenizer(tokens: Tokens, tokenizer: TextTokenizer, place: str) -> DataError:
    """The error for a file with ids of another tokenizer than the run's, seen first at `place`."""
    return DataError(
        f"{place}: the token ids belong to another tokenizer: the row names {tokens.tokenizer[:64]!r}, and the tokenizer "
        f"of {tokenizer.path!r} is {tokenizer.ids_digest!r} (vocabulary, BOS and EOS; the chat template is no part of "
        "it). The ids would have been read as other text. Train the model that gave the answers, or one with the same "
        "tokenizer; or set data.format to standard (conversational for messages), which tokenises the text of the rows "
        "and takes no notice of the ids."
    )


TOKENIZED = Format("tokenized", "token ids of pairs", fits_tokenized, tokenized, place=0)
