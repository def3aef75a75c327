"""Splits that are said by names: which files of a folder, or splits of a data set, are for training and which are held out.

Comes in: names of files, folders and splits. Goes out: the parts that a config key reads, the held-out ones, and a sentence
on what was decided.
Decision: a name says a split by its whole words only (`latest` is not `test`), the first word before the last, and these
before others. Of several held-out splits the validation split is used and the test split is left unread, so that choosing
by evaluations does not use up the test split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from raydpo.errors import DataError

Split = Literal["train", "validation", "test"]
Role = Literal["train", "eval"]

_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
T = TypeVar("T")


def split_of(name: str) -> Split | None:
    """The split that a name says: `train-00000-of-00001.parquet` train, `my_test.jsonl` test, `latest.jsonl` none."""
    words = [word for word in re.split(r"[^a-z]+", name.lower().partition(".")[0]) if word]
    said = [_WORDS[word] for word in (*words[:1], *words[-1:], *words) if word in _WORDS]
    return said[0] if said else None


@dataclass(frozen=True)
class Parts(Generic[T]):
    """used: what a key reads. held_out: what a data set of its training part has to evaluate on. note: what was decided, for
    the log; empty where names say nothing."""

    used: list[T]
    held_out: list[T]
    note: str = ""


def by_name(name: str, parts: Sequence[tuple[str, Split | None, T]], role: Role) -> Parts[T]:
    """Divide the parts (name, split, part) of data set `name` for a key of `role`.

    Parts that name no split are for training. Raises DataError where there is nothing to train on but held-out splits.
    """
    splits: list[Split] = sorted({split or "train" for _, split, _ in parts})
    says_train = any(split == "train" for _, split, _ in parts)
    if splits == ["train"] or (role == "eval" and not says_train):
        return Parts([part for *_, part in parts], [])
    held: Split = "validation" if "validation" in splits else "test"
    names = {s: ", ".join(label for label, split, _ in parts if (split or "train") == s) for s in splits}
    if "train" not in splits:
        raise DataError(
            f"{name!r} holds only {' and '.join(f'{s} data ({names[s]})' for s in names)}, by their names. It would have been "
            "trained on. Name the files (or the split) themselves if that is meant, or move them to data.eval."
        )
    divided = {s: [part for _, split, part in parts if (split or "train") == s] for s in splits}
    unread = [f"{s} ({names[s]})" for s in names if s not in ("train", held)]
    if role == "eval":
        unread.insert(0, f"train ({names['train']})")
        said = f"{name}: split by name: held out {held} ({names[held]})"
        used, held_out = divided[held], []
    else:
        said = f"{name}: split by name: train ({names['train']}), {held} ({names[held]})"
        used, held_out = divided["train"], divided[held]
    return Parts(used, held_out, said + (f"; not read: {', '.join(unread)}" if unread else ""))
