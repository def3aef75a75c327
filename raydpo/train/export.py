"""A trainer's weights -> a plain transformers folder (safetensors, config, tokenizer, generation config).

Decision: written in the compute dtype; under ZeRO-3 every rank takes part in gathering, and rank 0 alone writes. What fits one
file is copied, and written while training goes on. A larger model is written tensor by tensor while it is gathered, so that no
copy of it stands in main memory; the price is that training waits for the disk. For LoRA only the adapter is written.
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
from raydpo.models.shard_files import SHARD_BYTES
from raydpo.models.streamed_weights import StreamedWeights, kept_buffers, without_data


def gather_weights(
    scoring: AnswerLogProbs, stage: int, is_writer: bool, folder: Path, max_bytes: int = SHARD_BYTES
) -> dict[str, Tensor] | StreamedWeights:
    """The current weights, for an adapter its own; empty but on the writer. Collective.

    At most `max_bytes` are copied to CPU memory, a larger model is written to files in the new `folder`. Tied weights come
    once. stage: of ZeRO; under 3 each weight is gathered from all ranks.
    """
    model = scoring.model
    is_adapter = hasattr(model, "peft_config")
    state: dict[str, Tensor] | StreamedWeights = {}
    if is_writer and not is_adapter:
        planned = without_data(model)
        if sum(tensor.nbytes for tensor in planned.values()) > max_bytes:
            state = StreamedWeights(model, planned, folder, max_bytes)
    keep = state.__setitem__ if isinstance(state, dict) else state.add
    for name, parameter in model.named_parameters():
        if is_adapter and not parameter.requires_grad:
            continue
        with gathered([parameter], stage):
            if is_writer:
                keep(name, parameter.detach().to("cpu", copy=True))
    if is_writer and not is_adapter:
        for name, value in kept_buffers(model):
            keep(name, value.to("cpu", copy=True))
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
    state: dict[str, Tensor] | StreamedWeights,
    source: Path,
    folder: Path,
    chat_template: str | None = None,
    base: tuple[str, str | None] | None = None,
    end_ids: Sequence[int] = (),
    max_bytes: int = SHARD_BYTES,
) -> None:
    """Write gathered weights to `folder` as a transformers folder. Reads nothing that training changes.

    source: folder of the start model, whose config keys, tokenizer, processors and generation config are carried over.
    chat_template: replaces the tokenizer's. base: what an adapter says of its base: folder or hub id, and commit.
    end_ids: tokens that answers were taught to end with; the generation config gets those that it lacks.
    max_bytes: of a file, as of `gather_weights`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = state if isinstance(state, dict) else {}
    size = {} if hasattr(model, "peft_config") else {"max_shard_size": max_bytes}  # PEFT writes one file
    model.save_pretrained(str(folder), state_dict=here, safe_serialization=True, **size)
    if isinstance(state, StreamedWeights):
        state.move_into(folder)
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
