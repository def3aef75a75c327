"""A trainer's weights -> a plain transformers folder (safetensors, config, tokenizer, generation config).

Decision: written in the compute dtype; under ZeRO-3 every rank takes part in gathering, and rank 0 alone writes. For
LoRA only the adapter is written.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from raydpo.models.adapter_files import DESCRIBED, is_adapter
from raydpo.models.carried_files import add_ends, carry_config, carry_files
from raydpo.models.logprobs import AnswerLogProbs
from raydpo.models.packed import described_packing


def gather_weights(scoring: AnswerLogProbs, stage: int, is_writer: bool) -> dict[str, Tensor]:
    """A copy of the current weights in CPU memory, for an adapter its own; empty but on the writer. Collective.

    Tied weights come once. stage: of ZeRO; under 3 each weight is gathered from all ranks.
    """
    model = scoring.model
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if hasattr(model, "peft_config") and not parameter.requires_grad:
            continue
        with gathered([parameter], stage):
            if is_writer:
                state[name] = parameter.detach().to("cpu", copy=True)
    if is_writer and not hasattr(model, "peft_config"):
        kept = model.state_dict().keys()
        state |= {name: value.to("cpu", copy=True) for name, value in model.named_buffers() if name in kept}
    return state


def gathered(weights: list[Tensor], stage: int) -> contextlib.AbstractContextManager[Any]:
    """A block in which every rank has the whole of `weights`. Collective under ZeRO-3."""
    if stage != 3 or not weights:
        return contextlib.nullcontext()
    import deepspeed

    block: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(weights)
    return block


def write_model(
    model: Any,
    state: dict[str, Tensor],
    source: Path,
    folder: Path,
    chat_template: str | None = None,
    base: tuple[str, str | None] | None = None,
    end_ids: Sequence[int] = (),
) -> None:
    """Write gathered weights to `folder` as a transformers folder. Reads nothing that training changes.

    source: folder of the start model, whose config keys, tokenizer, processors and generation config are carried over.
    chat_template: replaces the tokenizer's. base: what an adapter says of its base: folder or hub id, and commit.
    end_ids: tokens that answers were taught to end with; the generation config gets those that it lacks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(str(folder), state_dict=state, safe_serialization=True)
    if base is not None and is_adapter(folder):
        _name_base(folder / DESCRIBED, *base)
    if (packing := described_packing(model)) is not None:
        packing.write(folder)
    carry_config(source, folder)
    carry_files(source, folder, chat_template)
    add_ends(folder, end_ids)
    _make_readable(folder)


def _name_base(path: Path, name: str, commit: str | None) -> None:
    described = {**json.loads(path.read_text()), "base_model_name_or_path": name, "revision": commit}
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def _make_readable(folder: Path) -> None:
    # PEFT and safetensors may create files that only the owner can read; a model folder is as readable as the umask made it.
    readers = folder.stat().st_mode & 0o044
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | readers)
