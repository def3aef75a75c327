"""`raydpo chat`: a conversation with a model, beside the one that it was trained from where that is named.

Comes in: lines of a person. Goes out: each model's answer to its own conversation. Decision: each model hears the person and
itself, never the other model.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

from raydpo.answering.open_model import OpenModel
from raydpo.data.messages import Message
from raydpo.errors import DataError
from raydpo.schema.samples import Sampling

HELP = "/new begins anew, /quit ends (so do Ctrl-C and the end of input)"


def converse(
    models: Sequence[OpenModel],
    lines: Iterable[str],
    out: TextIO,
    sampling: Sequence[Sampling],
    *,
    seed: int = 0,
    width: int = 100,
) -> int:
    """Answer each line until "/quit" or the end of `lines`: number of answers of each model. sampling: of each model."""
    heard: list[list[Message]] = [[] for _ in models]
    turn = 0
    for line in lines:
        said = line.strip()
        if said == "/quit":
            break
        if said == "/new":
            heard = [[] for _ in models]
            print("a new conversation", file=out, flush=True)
        elif said.startswith("/"):
            print(HELP, file=out, flush=True)
        elif said:
            for model, turns, how in zip(models, heard, sampling, strict=True):
                _answer(model, turns, said, how, seed + turn, out, width if len(models) > 1 else 0)
            turn += 1
    return turn


def _answer(
    model: OpenModel, turns: list[Message], said: str, sampling: Sampling, seed: int, out: TextIO, width: int
) -> None:
    turns.append({"role": "user", "content": said})
    try:
        ids = model.ids_of(turns, sampling.max_new_tokens)
        text = model.answers([ids], sampling, seed)[0][0].text.strip()
    except DataError as error:
        del turns[:]
        print(f"{error} The conversation begins anew.", file=out, flush=True)
        return
    turns.append({"role": "assistant", "content": text})
    if width:
        print(f"{model.name}:", file=out)
        text = textwrap.indent("\n".join(textwrap.fill(part, width - 2) for part in text.splitlines()), "  ")
    print(text, file=out, flush=True)
