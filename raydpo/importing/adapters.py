"""LoRA of another project as our section train.lora.

Comes in: the names that a project has for rank, scale, targets and the rest. Goes out: lines of ours, in a draft.
"""

from __future__ import annotations

import re
from typing import Any

from raydpo.importing.draft import Draft
from raydpo.importing.fates import names, number

_ALL = ("all-linear", "all", "all_linear", "linear")
_QUERY_VALUE = re.compile(r"llama|qwen|mistral|gemma|smollm|tulu|zephyr|olmo|phi-?3", re.I)


def lora(
    draft: Draft, rank: str, alpha: str, dropout: str, targets: str, saved: str = "", rslora: str = "", dora: str = ""
) -> None:
    """The adapter. Names that are empty are options that the project does not have."""
    for option, key in ((rank, "rank"), (alpha, "alpha")):
        draft.put(f"train.lora.{key}", number(draft.get(option)), option)
    if draft.get(dropout) in (None, 0, 0.0):
        draft.same(dropout, "no dropout")
    else:
        draft.lose(
            dropout,
            "an adapter has no dropout here: policy and reference are compared token by token",
            "train.lora.dropout",
        )
    if targets:
        _targets(draft, targets)
    if saved and draft.get(saved):
        draft.put("train.lora.modules_to_save", names(draft.get(saved)), saved)
    for option, key in ((rslora, "rslora"), (dora, "dora")):
        if option and draft.get(option):
            draft.put(f"train.lora.{key}", True, option)
    for option in (saved, rslora, dora):
        if option and option not in draft.fates:
            draft.same(option, "off")


def _targets(draft: Draft, option: str) -> None:
    value: Any = draft.get(option)
    given = names(value) if value is not None else []
    if value is None:
        peft_choice(draft, option)
    elif len(given) == 1 and given[0] in _ALL:
        draft.put("train.lora.target_modules", "all-linear", option)
    else:
        draft.put("train.lora.target_modules", given, option)


def peft_choice(draft: Draft, option: str) -> None:
    """What PEFT adapts where nothing is named: by the family of the model."""
    model = str(draft.get("model_name_or_path", ""))
    found = ["q_proj", "v_proj"] if _QUERY_VALUE.search(model) else ["c_attn"] if "gpt2" in model else None
    if found is not None:
        draft.note("train.lora.target_modules", found, f"PEFT's own choice for {model}, since {option} is not set")
        draft.same(option, "PEFT's own choice for the family")
    elif not draft.is_yours("train.lora.target_modules"):
        draft.differences.append(
            f"{option} is not set, and PEFT's choice for {model or 'the model'} is not known here: all-linear"
        )
        draft.note("train.lora.target_modules", "all-linear", f"{option} is not set")


def four_bit(draft: Draft, kind: str = "") -> None:
    """QLoRA: nf4 is the one kind."""
    how = str(draft.get(kind, "nf4")) if kind else "nf4"
    if draft.get("load_in_4bit") and how == "nf4":
        draft.put("train.lora.quantize_base", "nf4", "load_in_4bit", *([kind] if kind in draft.options else []))
    elif draft.get("load_in_4bit"):
        draft.lose(kind, f"4 bits of the kind {how}; there is nf4", "train.lora.quantize_base")
    for option in ("load_in_4bit", kind):
        if option and option not in draft.fates:
            draft.same(option, "off")
    if draft.get("load_in_8bit"):
        draft.lose("load_in_8bit", "a base in 8 bits; there is nf4, in 4 bits", "train.lora.quantize_base")
    else:
        draft.same("load_in_8bit", "off")
