"""Rows of plain text: standard pairs with explicit or implicit prompt, and HH transcripts.

Decision: an implicit prompt is the common beginning of both answers, moved back to the start of a word, so that no
word is cut in two; an HH transcript is split at its last assistant turn and everything before must agree.
"""

from __future__ import annotations

from raydpo.data.bad_rows import BadRow, text
from raydpo.data.format import Format
from raydpo.data.messages import Example, Row

HH_HUMAN = "\n\nHuman:"
HH_ASSISTANT = "\n\nAssistant:"


def sides_of(num_answers: int) -> list[str]:
    """Names of the answers that an objective reads."""
    return ["chosen", "rejected"][:num_answers]


def fits_standard(row: Row) -> bool:
    """chosen and rejected are text."""
    return isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str)


def standard(row: Row, num_answers: int) -> Example:
    """prompt, chosen, rejected; or chosen and rejected that begin with the same prompt."""
    if row.get("prompt") is not None:
        prompt = text(row["prompt"], "prompt")
        return Example(prompt, [text(row.get(side), side) for side in sides_of(num_answers)])
    chosen, rejected = text(row.get("chosen"), "chosen"), text(row.get("rejected"), "rejected")
    if chosen == rejected:
        raise BadRow("identical_answers", "chosen and rejected are the same text")
    cut = _shared_length(chosen, rejected)
    return Example(chosen[:cut], [chosen[cut:], rejected[cut:]][:num_answers])


def _shared_length(first: str, second: str) -> int:
    """Where the answers of an implicit-prompt pair begin: the common beginning, moved back to the start of a word."""
    shortest = min(len(first), len(second))
    cut = next((place for place in range(shortest) if first[place] != second[place]), shortest)
    if cut and _word(first[cut - 1 : cut]) and (_word(first[cut : cut + 1]) or _word(second[cut : cut + 1])):
        start = cut
        while start and _word(first[start - 1]):
            start -= 1
        cut = start or cut
    # A blank before the answer belongs to the answer: tokenizers join it with the word that follows.
    return cut - 1 if cut and first[cut - 1] == " " else cut


def _word(char: str) -> bool:
    """A letter or digit of a script that puts blanks between words."""
    return char.isalnum() and ord(char) < 0x2E80


def fits_hh(row: Row) -> bool:
    """chosen and rejected are transcripts of Human and Assistant, and there is no prompt."""
    return (
        fits_standard(row)
        and row.get("prompt") is None
        and all(
            row[side].lstrip().startswith("Human:") and HH_ASSISTANT in row[side] for side in ("chosen", "rejected")
        )
    )


def hh(row: Row, num_answers: int) -> Example:
    """Transcripts split after the last "\\n\\nAssistant:"; the blank that follows belongs to the answer."""
    prompts, answers = [], []
    for side in sides_of(num_answers):
        prompt, marker, answer = text(row.get(side), side).rpartition(HH_ASSISTANT)
        if not marker:
            raise BadRow("no_assistant_turn", f"{side} has no {HH_ASSISTANT!r}")
        if HH_HUMAN in answer:
            raise BadRow("bad_turn_order", f"{side} ends with a turn of the human")
        prompts.append(prompt + marker)
        answers.append(answer)
    if prompts[0] != prompts[-1]:
        raise BadRow("differing_prompts", "chosen and rejected differ before the last assistant turn")
    return Example(prompts[0], answers)


HH = Format("hh", "transcripts of Human and Assistant", fits_hh, hh, place=10)
STANDARD = Format("standard", "plain text", fits_standard, standard, place=70)
