"""Chat templates that other projects name: whether a name stands for the model's own, which is used here anyway.

Comes in: a name and the model. Goes out: the fate of the option, in a draft. Decision: another template than the
model's is a file
here (data.chat_template), and since their file holds none, the user names it.
"""

from __future__ import annotations

import re

from raydpo.importing.draft import Draft

_OWN = ("tokenizer_default", "default", "auto")
_FAMILIES = {
    r"qwen3.*": r"qwen-?3",
    r"qwen(_25|2_5|2)?|qwen_?2.*": r"qwen-?2",
    r"llama-?3(_1|_2|\.1)?": r"llama-?3.*instruct",
    r"llama-?2.*": r"llama-?2.*chat",
    r"mistral.*": r"(mistral|mixtral).*instruct",
    r"gemma.*": r"gemma.*it",
    r"phi.*": r"phi-?\d.*instruct",
    r"olmo.*": r"olmo.*(instruct|think)",
    r"tulu": r"tulu",
}


def named_template(draft: Draft, option: str, name: str, model: str) -> None:
    """The fate of `option`, which names the template `name` for `model`."""
    if name.lower() in _OWN:
        draft.same(option, "the tokenizer's own template")
    elif any(re.fullmatch(names, name, re.I) and re.search(models, model, re.I) for names, models in _FAMILIES.items()):
        draft.same(option, f"the template of {model} itself")
        draft.differences.append(
            f"the template {name} is taken for that of {model}; raydpo check --show 1 prints what comes of it"
        )
    else:
        draft.lose(
            option,
            f"the template {name} is not known to be the model's own, and token ids depend on it",
            "data.chat_template",
        )
