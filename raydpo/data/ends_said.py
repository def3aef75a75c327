"""How rows begin and end, in one line, and the tokens that answers end with: found by encoding probe rows.

What comes in: a tokenizer whose `ends` are decided. What goes out: sentences with what says so, and ids.
Decision: what is said is read off rows that were encoded as data are, so that it cannot differ from what is trained.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from raydpo.data.bad_rows import BadRow
from raydpo.data.encode import Encoded, encode
from raydpo.data.messages import Example
from raydpo.data.template import render
from raydpo.data.tokenizer import TextTokenizer

_QUESTION = [{"role": "user", "content": "probe-question"}]
_CALL = {"type": "function", "id": "probe0001", "function": {"name": "probe", "arguments": {"city": "probe"}}}
_PLAIN = Example("probe-question", ["probe-answer"])
_CHAT = Example(_QUESTION, [[{"role": "assistant", "content": "probe-answer"}]])
_TOOL_CALL = Example(_QUESTION, [[{"role": "assistant", "content": "", "tool_calls": [_CALL]}]])


@dataclass(frozen=True)
class Said:
    """text: how rows begin and end. added: what the model's files lack of it; may be empty. ids: answers' ends."""

    text: str
    added: str
    ids: tuple[int, ...]


def ends_said(tokenizer: TextTokenizer) -> Said:
    """What training teaches `tokenizer`'s model about beginnings and ends."""
    plain, chat = _encoded(tokenizer, _PLAIN), _encoded(tokenizer, _CHAT)
    call = _encoded(tokenizer, _TOOL_CALL)
    assert plain is not None
    texts = [f"{_end(tokenizer, plain)}; {_bos(tokenizer, plain, is_templated=False)}"]
    found = [plain]
    if chat is not None:
        found = [chat, plain]
        ending = _end(tokenizer, chat)
        if call is not None and _last(call) != _last(chat):
            found.insert(1, call)
            ending += f", tool calls with {_named(tokenizer, _last(call))}"
        said = f"{ending}; {_bos(tokenizer, chat, is_templated=True)}"
        texts = [f"conversations: {said}", f"plain text: {texts[0]}"]
    ids = tuple(dict.fromkeys(_last(one) for one in found))
    return Said(". ".join(texts), _added(tokenizer, ids), ids)


def _encoded(tokenizer: TextTokenizer, example: Example) -> Encoded | None:
    """The row of `example`, None where the template cannot write it."""
    if example.is_conversation and not tokenizer.has_template:
        return None
    try:
        text = render(example, tokenizer, "plain")
    except BadRow:
        return None
    (found,) = encode(tokenizer, [text], max_length=sys.maxsize, overlong="drop")
    return found if isinstance(found, Encoded) else None


def _last(example: Encoded) -> int:
    return example.answer_ids[0][-1]


def _spelled(tokenizer: TextTokenizer, token: int) -> str:
    return tokenizer.decode([token]).strip() or repr(tokenizer.decode([token]))


def _named(tokenizer: TextTokenizer, token: int) -> str:
    """The token and what says that it is an end."""
    ends: Any = tokenizer.ends
    if ends.is_set:
        source = "data.eos"
    elif token in ends.model.ids:
        source = ends.model.source
    else:
        source = "the tokenizer's EOS" if token == tokenizer.eos_id else "the chat template's own"
    return f"{_spelled(tokenizer, token)} ({source})"


def _end(tokenizer: TextTokenizer, example: Encoded) -> str:
    return f"answers end with {_named(tokenizer, _last(example))}"


def _bos(tokenizer: TextTokenizer, example: Encoded, *, is_templated: bool) -> str:
    ends, who = tokenizer.ends, "the chat template" if is_templated else "the tokenizer"
    if ends.bos != "auto":
        who = f"data.bos is {ends.bos}"
        return (
            f"BOS {_spelled(tokenizer, ends.bos_id)} ({who})"
            if ends.bos == "always" and ends.bos_id is not None
            else f"no BOS ({who})"
        )
    if ends.prefix and not is_templated:
        return f"BOS {tokenizer.decode(ends.prefix)}: {who} writes it"
    if ends.bos_id is None:
        return "no BOS: the tokenizer names none"
    if example.prompt_ids[0] == ends.bos_id:
        return f"BOS {_spelled(tokenizer, ends.bos_id)}: {who} writes it"
    return f"no BOS: {who} writes none"


def _added(tokenizer: TextTokenizer, ids: tuple[int, ...]) -> str:
    """Which ends the exported model gets; empty where the files of the model that it is made from hold every one."""
    model = tokenizer.ends.model
    known = model.ids or (tokenizer.eos_id,)
    strange = [_spelled(tokenizer, one) for one in ids if one not in known]
    if not strange:
        return ""
    if model.ids:
        says = f"{model.source} names {', '.join(_spelled(tokenizer, one) for one in model.ids)} alone"
    else:
        says = "no file of the model names it"
    return (
        f"answers are taught to end with {', '.join(strange)}, and {says}: eos_token_id of the exported generation_config.json "
        "gets it, too"
    )
