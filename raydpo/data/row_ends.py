"""Where a row begins and where its answers end, as the tokenizer, the chat template and the model's own files say.

What comes in: token ids without BOS and EOS of ours. What goes out: ids with the BOS that the tokenizer itself would write,
and answers that end with one token at which the model stops.
Decision: conversations begin as their template writes them and end with the first token behind the answer's own text that
the model's files name as an end, so that nothing behind it is trained. Price: where no file names an end, the last control
token that the template writes is taken for one; the generation config of an export names it then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from raydpo.data.bad_rows import BadRow
from raydpo.errors import DataError
from raydpo.schema.json_text import read_object

if TYPE_CHECKING:
    from raydpo.data.tokenizer import TextTokenizer

Bos = Literal["auto", "always", "never"]
"""`data.bos`."""


_MOST_IDS = 1 << 31


@dataclass(frozen=True)
class ModelEnds:
    """ids: at which a model itself stops; none: its files name none. source: the file that names them."""

    ids: tuple[int, ...] = ()
    source: str = ""


def model_ends(folders: Iterable[Path]) -> ModelEnds:
    """What the first of `folders` with an answer says. Raises DataError for a file that cannot be read."""
    for folder in folders:
        for name in ("generation_config.json", "config.json"):
            found = _read(folder / name)
            part = found.get("text_config")
            for values in (found, part if isinstance(part, dict) else {}):
                given = values.get("eos_token_id")
                ids: list[Any] = given if isinstance(given, list) else [given]
                if ids and all(type(one) is int and 0 <= one < _MOST_IDS for one in ids):
                    return ModelEnds(tuple(ids), name)
    return ModelEnds()


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_object(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. It names the tokens that end an answer (eos_token_id), and answers would have "
            "been taught another end. Repair it, or take it out of the folder."
        ) from error


@dataclass(frozen=True)
class RowEnds:
    """How rows of one tokenizer begin and end.

    bos: as `data.bos`.
    bos_id: the token that the tokenizer names as BOS, or None.
    prefix: what the tokenizer itself writes in front of a text.
    eos_id: what closes plain text, and answers behind which a template writes no end.
    ends: ids at which the model stops, those of its files and `eos_id`.
    marks: control tokens that may stand behind an answer.
    model: what the model's files name.
    is_set: `data.eos` names `eos_id`, and nothing else is an end.
    """

    bos: Bos
    bos_id: int | None
    prefix: tuple[int, ...]
    eos_id: int
    ends: frozenset[int]
    marks: frozenset[int]
    model: ModelEnds
    is_set: bool = False
    _blank: dict[int, bool] = field(default_factory=dict, compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """What decides the ids of rows, beside the tokenizer."""
        return {"bos": self.bos, "prefix": self.prefix, "eos_id": self.eos_id, "ends": sorted(self.ends)}

    def is_end(self, token: int) -> bool:
        """Whether an answer may end with `token`."""
        return token in self.ends or (self.takes_marks and token in self.marks)

    @property
    def takes_marks(self) -> bool:
        """Whether the template alone says where its turns end."""
        return not self.is_set and not self.model.ids

    def begun(
        self, prompt_ids: list[int], answers: list[list[int]], *, is_templated: bool
    ) -> tuple[list[int], list[list[int]], bool]:
        """(prompt, answers, whether an empty prompt was given a BOS), with one BOS or none. BadRow: empty_prompt."""
        bos = self.bos_id
        if bos is None:
            prompt_ids = prompt_ids if is_templated else self._prefixed(prompt_ids)
            if not prompt_ids:
                raise BadRow("empty_prompt", "the prompt has no tokens and the tokenizer has no BOS")
            return prompt_ids, answers, False
        num_written = num_leading(bos, prompt_ids)
        body = prompt_ids[num_written:]
        if self.bos == "auto" and not is_templated and self.prefix:
            prompt_ids = self._prefixed(prompt_ids)
        elif self.bos == "always" or (self.bos == "auto" and num_written):
            prompt_ids = [bos, *body]
        else:
            prompt_ids = body
        if body:
            return prompt_ids, answers, False
        is_added = not prompt_ids and not all(ids[:1] == [bos] for ids in answers)
        if not prompt_ids and self.bos == "never":
            raise BadRow("empty_prompt", "the prompt has no tokens and data.bos is never")
        return prompt_ids or [bos], [ids[num_leading(bos, ids) :] for ids in answers], is_added

    def _prefixed(self, ids: list[int]) -> list[int]:
        """`ids` behind what the tokenizer writes in front of a text, once."""
        prefix = list(self.prefix)
        if prefix and ids[: len(prefix)] == prefix:
            ids = ids[len(prefix) :]
        if self.bos_id is not None and self.bos_id in prefix:
            ids = ids[num_leading(self.bos_id, ids) :]
        return prefix + ids

    def kept(self, prompt_ids: Sequence[int]) -> list[int]:
        """The beginning of a prompt that is not cut off: its BOS, or all that the tokenizer writes in front of a text."""
        prefix = list(self.prefix)
        if prefix and list(prompt_ids[: len(prefix)]) == prefix:
            return prefix
        return [self.bos_id] if self.bos_id is not None and prompt_ids[:1] == [self.bos_id] else []

    def ended(self, tokenizer: TextTokenizer, ids: list[int], *, is_templated: bool) -> list[int]:
        """An answer with one end: cut behind the first that stands in it, or with `eos_id` behind it."""
        if is_templated:
            start = self._end_of_text(tokenizer, ids)
            behind = [place for place in range(start, len(ids)) if ids[place] in self.ends]
            if not behind and self.takes_marks:
                behind = [place for place in range(start, len(ids)) if ids[place] in self.marks][-1:]
            if behind:
                return ids[: behind[0] + 1]
        return self._closed(tokenizer, ids)

    def _end_of_text(self, tokenizer: TextTokenizer, ids: list[int]) -> int:
        """Where the control tokens and the white space behind the answer's own text begin."""
        start = len(ids)
        while start and (ids[start - 1] in self.marks | self.ends or self._is_blank(tokenizer, ids[start - 1])):
            start -= 1
        return start

    def _is_blank(self, tokenizer: TextTokenizer, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not tokenizer.decode([token]).strip()
        return self._blank[token]

    def _closed(self, tokenizer: TextTokenizer, ids: list[int]) -> list[int]:
        """One `eos_id` at the end. White space behind one that the text itself has is dropped."""
        if self.eos_id in ids:
            last = len(ids) - 1 - ids[::-1].index(self.eos_id)
            if last == len(ids) - 1 or not tokenizer.decode(ids[last + 1 :]).strip():
                ids = ids[:last]
                while ids and ids[-1] == self.eos_id:
                    ids = ids[:-1]
        return [*ids, self.eos_id]


def num_leading(token: int | None, ids: Sequence[int]) -> int:
    """How many of the first ids are `token`."""
    return next((place for place, one in enumerate(ids) if one != token), len(ids))


def own_ends(tokenizer: TextTokenizer, folder: Path) -> RowEnds:
    """As tokenizer and the files of `folder` say, without a setting."""
    library = tokenizer.tokenizer
    bare = tokenizer.encode(["x"])[0]
    written = list(library("x")["input_ids"])
    place = next((p for p in range(len(written)) if bare and written[p : p + len(bare)] == bare), 0)
    unknown = {tokenizer.bos_id, library.unk_token_id}
    marks = frozenset(tokenizer.id_of(token) for token in tokenizer.control_tokens) - unknown - {None}
    model = model_ends([folder])
    eos_id = tokenizer.eos_id
    assert eos_id is not None
    return RowEnds(
        bos="auto",
        bos_id=tokenizer.bos_id,
        prefix=tuple(written[:place]),
        eos_id=eos_id,
        ends=frozenset({eos_id, *model.ids}),
        marks=frozenset(one for one in marks if one is not None),
        model=model,
    )


def decided(tokenizer: TextTokenizer, bos: Bos, eos: str, folders: Sequence[Path] = ()) -> RowEnds:
    """With the settings `data.bos` and `data.eos`. folders: of the model, asked in order for its ends; none: the tokenizer's.

    Raises DataError with every setting that this tokenizer cannot follow.
    """
    problems = []
    if bos == "always" and tokenizer.bos_id is None:
        problems.append(
            f"data.bos: always, and the tokenizer of {tokenizer.path!r} names no BOS token; no row could begin with one. Name "
            "one in tokenizer_config.json (bos_token), or leave data.bos out."
        )
    ends = tokenizer.ends
    if folders:
        model = model_ends(folders)
        ends = replace(ends, model=model, ends=frozenset({ends.eos_id, *model.ids}))
    if eos != "auto":
        if (found := _one_id(tokenizer, eos)) is None:
            problems.append(
                f"data.eos: {eos!r} is no single token of the tokenizer of {tokenizer.path!r}; answers would have ended with "
                f"several, and no generation stops at those. Name one token, such as {tokenizer.decode([ends.eos_id])!r}, or "
                "leave data.eos out."
            )
        else:
            ends = replace(ends, eos_id=found, ends=frozenset({found}), is_set=True)
    if problems:
        raise DataError(problems)
    return replace(ends, bos=bos)


def _one_id(tokenizer: TextTokenizer, text: str) -> int | None:
    """The id of the token that spells `text`, None where there is none."""
    if (found := tokenizer.id_of(text)) is not None:
        return found
    ids = tokenizer.encode([text])[0]
    return ids[0] if len(ids) == 1 else None
