"""Names that data sets have for what our layouts call prompt, chosen, rejected, completion, label, system, tools and scores.

Comes in: a row as it is in the file, and the config's `data.columns` and `data.ignore`. Goes out: the row under the names
that layouts look for, and which columns each value is from.
Decision: a data set of another spelling is a row of a table here and not a layout; what it means is then read by ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raydpo.config.meanings import Meaning
from raydpo.data.bad_rows import BadRow, number
from raydpo.data.messages import Row, is_message, is_messages
from raydpo.data.row_view import dig, is_absent

Values = dict[str, Any]
Origin = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Alias:
    """needs: columns that must hold something. means: meaning -> column (dots reach inside). convert: further values by
    meaning, made of `needs`; it raises BadRow for a tie. title: who writes so."""

    title: str
    needs: tuple[str, ...]
    means: Mapping[str, str] = field(default_factory=dict)
    convert: Callable[[Row], Values] | None = None


def _pick(first: str, second: str, vote: str) -> Callable[[Row], Values]:
    """The better of two answers, by a vote that names one."""

    def convert(row: Row) -> Values:
        better = _FIRST_SECOND_NONE.get(str(row[vote]).strip().lower())
        if better is None:
            raise BadRow("not_a_label", f"{vote} is {str(row[vote])[:40]!r}, which names neither {first} nor {second}")
        return _ordered(row, first, second, better)

    return convert


def _ordered(row: Row, first: str, second: str, better: int) -> Values:
    if better == 0:
        raise BadRow("tied_scores", f"{first} and {second} are equally good, or equally bad")
    chosen, rejected = (first, second) if better > 0 else (second, first)
    return {"chosen": _maybe_json(row[chosen]), "rejected": _maybe_json(row[rejected])}


_NAMES_OF_FIRST = "a model_a response_a answer_a assistant_a conversation_a response_1 response1 first left 1"
_NAMES_OF_SECOND = "b model_b response_b answer_b assistant_b conversation_b response_2 response2 second right 2"
_NAMES_OF_NONE = (
    "tie",
    "tie (bothbad)",
    "tie (both bad)",
    "both_bad",
    "bothbad",
    "both",
    "neither",
    "none",
    "equal",
    "draw",
)
_FIRST_SECOND_NONE = {
    **dict.fromkeys(_NAMES_OF_FIRST.split(), 1),
    **dict.fromkeys(_NAMES_OF_SECOND.split(), -1),
    **dict.fromkeys(_NAMES_OF_NONE, 0),
}


def _by_sign(row: Row) -> Values:
    """HelpSteer3: from -3, response1 is much better, to 3, response2 is."""
    found = number(row["overall_preference"], "overall_preference")
    return _ordered(row, "response1", "response2", (found < 0) - (found > 0))


def _by_place(first: str, second: str, place: str, of_first: int) -> Callable[[Row], Values]:
    """The better of two answers, by a number that is `of_first` for the first and its opposite of 0 and 1 for the second."""

    def convert(row: Row) -> Values:
        found = number(row[place], place)
        if found not in (0, 1):
            raise BadRow("not_a_label", f"{place} is {found:g}, which is neither 0 nor 1")
        return _ordered(row, first, second, 1 if found == of_first else -1)

    return convert


def _by_winners(row: Row) -> Values:
    """Columns winner_model_a, winner_model_b and winner_tie, one of which is 1."""
    first, second = (number(row[f"winner_model_{one}"], f"winner_model_{one}") for one in "ab")
    prompts, sides = _turns(row["prompt"]), {name: _turns(row[f"response_{name}"]) for name in "ab"}
    if not len(prompts) == len(sides["a"]) == len(sides["b"]):
        raise BadRow("length_mismatch", f"{len(prompts)} prompts, {len(sides['a'])} and {len(sides['b'])} responses")

    def conversation(answers: list[Any]) -> list[Any]:
        pairs = zip(prompts, answers, strict=True)
        return [
            {"role": who, "content": said}
            for pair in pairs
            for who, said in zip(("user", "assistant"), pair, strict=True)
        ]

    whole = {name: conversation(answers) for name, answers in sides.items()}
    return {"prompt": None, **_ordered(whole, "a", "b", int(first > second) - int(second > first))}


def _turns(value: Any) -> list[Any]:
    found = _parsed(value)
    return found if isinstance(found, list) else [value]


def _ranked(row: Row) -> Values:
    """Nectar: answers with a rank each, 1 the best."""
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(one, Mapping) and "rank" in one for one in answers):
        return {}
    texts = [next((one[name] for name in ("answer", "response", "text") if one.get(name)), None) for one in answers]
    return {"answers": texts, "scores": [-number(one["rank"], "rank") for one in answers]}


PAIRS: tuple[Alias, ...] = (
    Alias(
        "OpenAI preference format",
        ("input", "preferred_output", "non_preferred_output"),
        {
            "prompt": "input.messages",
            "tools": "input.tools",
            "chosen": "preferred_output",
            "rejected": "non_preferred_output",
        },
    ),
    *(
        Alias(title, (chosen, rejected), {"chosen": chosen, "rejected": rejected})
        for title, chosen, rejected in (
            ("argilla", "chosen_response", "rejected_response"),
            ("answers by name", "chosen_answer", "rejected_answer"),
            ("answers by name", "chosen_completion", "rejected_completion"),
            ("answers by name", "response_chosen", "response_rejected"),
            ("answers by name", "answer_chosen", "answer_rejected"),
            ("preferred and not", "preferred_response", "dispreferred_response"),
            ("preferred and not", "preferred", "dispreferred"),
            ("preferred and not", "preferred_output", "non_preferred_output"),
            ("better and worse", "better_response", "worse_response"),
            ("better and worse", "better", "worse"),
            ("accepted and rejected", "accepted", "rejected"),
        )
    ),
    Alias("HelpSteer3", ("response1", "response2", "overall_preference"), convert=_by_sign),
    Alias(
        "arena votes in columns",
        ("response_a", "response_b", "winner_model_a", "winner_model_b", "prompt"),
        convert=_by_winners,
    ),
    *(
        Alias("arena votes", (first, second, vote), convert=_pick(first, second, vote))
        for first, second in (
            ("conversation_a", "conversation_b"),
            ("response_a", "response_b"),
            ("answer_a", "answer_b"),
            ("response_1", "response_2"),
            ("response1", "response2"),
        )
        for vote in ("winner", "preference", "preferred", "choice")
    ),
    Alias(
        "PKU-SafeRLHF",
        ("response_0", "response_1", "better_response_id"),
        convert=_by_place("response_0", "response_1", "better_response_id", 0),
    ),
    Alias(
        "SHP",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        {"prompt": "history"},
        _by_place("human_ref_A", "human_ref_B", "labels", 1),
    ),
    Alias("Nectar", ("answers",), convert=_ranked),
)
"""Pairs and rankings of other names, asked in this order where a row has no chosen and rejected of its own."""

PROMPTS = (
    "question",
    "instruction",
    "query",
    "input",
    "problem",
    "request",
    "user_prompt",
    "user_input",
    "user_message",
)
"""Names of a prompt, where there is no `prompt`; the first that holds text or messages. (context: messages alone.)"""
ANSWERS = ("response", "answer", "output")
"""Names of the one answer next to a prompt, where there is no `completion`."""
OTHERS: dict[str, tuple[str, ...]] = {
    "system": ("system_prompt", "system_message", "system_text", "system_instruction", "sys_prompt"),
    "label": ("kto_tag", "is_chosen", "is_desirable", "desirable"),
    "tools": ("functions", "available_tools"),
}
"""Meaning -> names that stand for it."""

_MESSAGE_NAMES = frozenset(
    ("prompt", "chosen", "rejected", "completion", "messages", "conversations", "context", *PROMPTS)
)
_LIST_NAMES = frozenset(
    (
        *("answers", "responses", "completions", "candidates", "outputs", "generations"),
        *("scores", "ratings", "rewards", "score", "rating", "reward"),
    )
)
_OTHER_NAMES = frozenset(name for names in OTHERS.values() for name in names)


def canonical(
    row: Row, columns: Mapping[Meaning, str], ignored: frozenset[str], *, is_ours: bool
) -> tuple[Values, Origin]:
    """The row under the names that layouts look for. is_ours: the layout is; another reads the columns as they are.

    columns, ignored: `data.columns` and `data.ignore`, the latter in small letters. BadRow for a row whose vote is a tie.
    """
    values = {name: value for name, value in row.items() if name.lower() not in ignored} if ignored else dict(row)
    origin: Origin = {}
    if columns:
        _map(row, columns, values, origin)
    if not is_ours:
        return values, origin
    _parse_messages(values)
    if is_absent(values.get("chosen")) or is_absent(values.get("rejected")):
        _pair(values, origin)
        _parse_messages(values)  # those that had other names
    _rename(values, origin)
    return values, origin


def _map(row: Row, columns: Mapping[Meaning, str], values: Values, origin: Origin) -> None:
    found: Values = {meaning: dig(row, column) for meaning, column in columns.items()}
    tops: dict[str, str] = {
        meaning: column if column in row else column.partition(".")[0] for meaning, column in columns.items()
    }
    for meaning, value in found.items():
        if not is_absent(value):
            values.pop(tops[meaning], None)
    for meaning, value in found.items():
        if not is_absent(value):
            values[meaning] = value
            origin[meaning] = (tops[meaning],)


def _parsed(value: Any, kind: type = list) -> Any:
    """A list (kind: or an object) that is written as JSON text; None for anything else."""
    if not isinstance(value, str) or value.lstrip()[:1] != ("[" if kind is list else "{"):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, kind) else None


def _maybe_json(value: Any) -> Any:
    found = _parsed(value)
    return found if is_messages(found) else value


def _parse_messages(values: Values) -> None:
    """Messages, lists of them, and lists of answers and scores, that a file of cells holds as JSON text."""
    given: Values = {side: values[side] for side in ("chosen", "rejected") if side in values}
    for name in _MESSAGE_NAMES.intersection(values):
        value = values[name]
        if isinstance(value, str) and value[:1] in "[ \n" and is_messages(found := _parsed(value)):
            values[name] = found
    if (whole := _parsed(values.get("input"), dict)) is not None and is_messages(whole.get("messages")):
        values["input"] = whole
    if any(is_messages(values.get(name)) for name in ("conversations", "messages")):
        for side in given:
            if is_message(found := _parsed(values[side], dict)):
                values[side] = found
    if isinstance(values.get("chosen"), str) != isinstance(values.get("rejected"), str):
        values.update(given)  # one of two answers only looks like messages
    for name in _LIST_NAMES.intersection(values):
        if isinstance(values[name], str) and (listed := _parsed(values[name])) is not None:
            values[name] = listed


def _pair(values: Values, origin: Origin) -> None:
    for alias in PAIRS:
        if any(is_absent(values.get(name)) for name in alias.needs):
            continue
        found = {meaning: dig(values, column) for meaning, column in alias.means.items()}
        made = alias.convert(values) if alias.convert is not None else {}
        sources: Origin = {meaning: (column.partition(".")[0],) for meaning, column in alias.means.items()}
        sources |= dict.fromkeys(made, alias.needs)
        if not made and not found:
            continue
        for names in sources.values():
            for name in names:
                if name not in made:
                    values.pop(name, None)
        for meaning, value in {**found, **made}.items():
            if value is not None:
                values[meaning], origin[meaning] = value, sources[meaning]
            elif meaning in made:
                values.pop(meaning, None)
        return


def _rename(values: Values, origin: Origin) -> None:
    is_pair = not is_absent(values.get("chosen")) and not is_absent(values.get("rejected"))
    if not any(is_messages(values.get(name)) for name in ("messages", "conversations")):
        if is_absent(values.get("prompt")):
            _name_prompt(values, origin, is_pair)
        elif all(is_absent(values.get(name)) for name in ("chosen", "completion", "text")):
            _name_answer(values, origin)
    if is_messages(values.get("prompt")):
        for side in ("chosen", "rejected"):
            if isinstance(values.get(side), str):
                values[side] = [{"role": "assistant", "content": values[side]}]
    if _OTHER_NAMES.isdisjoint(values):
        return
    for meaning, names in OTHERS.items():
        if not is_absent(values.get(meaning)) or (meaning == "label" and is_pair):
            continue
        name = next((name for name in names if not is_absent(values.get(name))), None)
        if name is not None:
            values[meaning], origin[meaning] = values.pop(name), origin.pop(name, (name,))


def _name_prompt(values: Values, origin: Origin, is_pair: bool) -> None:
    is_instruction = isinstance(values.get("instruction"), str)
    if is_instruction and (values.get("output") is not None or (is_pair and isinstance(values["chosen"], str))):
        return  # alpaca, which joins instruction and input
    name = next((name for name in PROMPTS if _is_prompt(values.get(name))), None)
    if name is None and is_messages(values.get("context")):
        name = "context"
    if name is None:
        return
    if all(is_absent(values.get(side)) for side in ("chosen", "rejected", "completion")):
        if isinstance(values.get("text"), str) or not _name_answer(values, origin):
            return
    elif is_pair and _is_said_again(values, name):
        return
    values["prompt"], origin["prompt"] = values.pop(name), origin.pop(name, (name,))


def _name_answer(values: Values, origin: Origin) -> bool:
    answer = next((one for one in ANSWERS if isinstance(values.get(one), str) and values[one]), None)
    if answer is not None:
        values["completion"] = _maybe_json(values.pop(answer))
        origin["completion"] = origin.pop(answer, (answer,))
    return answer is not None


def _is_prompt(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or is_messages(value)


def _is_said_again(values: Values, name: str) -> bool:
    """Whether both answers begin with the prompt themselves, as texts with an implicit prompt and transcripts do."""
    sides = [values["chosen"], values["rejected"]]
    if not all(isinstance(side, str) for side in sides):
        return False
    if all(side.lstrip().startswith("Human:") and "\n\nAssistant:" in side for side in sides):
        return True
    asked = values[name].strip() if isinstance(values[name], str) else ""
    return bool(asked) and all(side.lstrip().startswith(asked) for side in sides)
