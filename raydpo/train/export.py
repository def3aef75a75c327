"""A trainer's weights -> a plain transformers folder (safetensors, config, tokenizer, generation config).

Decision: written in the compute dtype; under ZeRO-3 every rank takes part in gathering, and rank 0 alone writes. For
LoRA only the adapter is written.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

from raydpo.models.load import load_tokenizer
from raydpo.models.logprobs import AnswerLogProbs

COPIED = ("generation_config.json", "chat_template.jinja")


def export_model(
    scoring: AnswerLogProbs,
    stage: int,
    source: Path,
    folder: Path,
    is_writer: bool,
    chat_template: str | None = None,
) -> None:
    """Write the current weights to `folder`. Collective: every rank calls it.

    source: folder of the start model, for its tokenizer and generation config. chat_template: replaces the tokenizer's.
    """
    model = scoring.model
    state = _gathered_state(model, is_writer) if stage == 3 else None
    if not is_writer:
        return
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), state_dict=state, safe_serialization=True)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    with contextlib.suppress(OSError, ValueError):  # a model folder without a tokenizer stays one
        tokenizer = load_tokenizer(source)
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        tokenizer.save_pretrained(str(folder))
    _make_readable(folder)


def _gathered_state(model: Any, is_writer: bool) -> dict[str, Any]:
    import deepspeed

    state = {}
    for name, parameter in model.named_parameters():
        if hasattr(model, "peft_config") and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            if is_writer:
                state[name] = parameter.detach().cpu().clone()
    return state


def _make_readable(folder: Path) -> None:
    # PEFT and safetensors may create files that only the owner can read; a model folder is meant to be shared.
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(path.stat().st_mode | 0o044)
