"""A model folder as anybody would load it: plain transformers, and PEFT for an adapter; and what it says of a few rows.

Comes in: a folder that this run wrote. Goes out: log-probs. Decision: nothing of this package loads or scores here, so that a
folder which only this package reads as it was trained is found. Price: one forward a row, without packing. Where a model is
streamed this package decides which tensors are there when; transformers converts and casts them, and computes, all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydpo.models.adapter_files import DESCRIBED, is_adapter
from raydpo.models.auto_class import auto_class
from raydpo.models.four_bit import packing_of
from raydpo.models.layer_stream import LayerStream
from raydpo.models.layer_weights import LayerWeights
from raydpo.models.packed import as_one_function
from raydpo.models.pretrained import DTYPES


@torch.no_grad()
def nats_of_folder(
    folder: Path, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], dtype: str, device: str
) -> list[np.ndarray]:
    """Log-probs of each answer's tokens, float32 nats, by the model or adapter in `folder`. Raises what loading raises."""
    model = _load(folder, dtype).to(device).eval()
    return [_nats(model, prompt, answer, device) for prompt, answer in sequences]


@torch.no_grad()
def streamed_nats_of_folder(
    folder: Path, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], dtype: str, device: str
) -> tuple[list[np.ndarray], int]:
    """The same of a model that is held one layer at a time, all rows in one pass; and the bytes of weights that were read.

    Raises NotImplementedError for a model whose layers cannot be held one by one."""
    stream = LayerStream(LayerWeights(folder, DTYPES[dtype], "auto", device))
    calls = [partial(_nats, stream.model, prompt, answer, device) for prompt, answer in sequences]
    return stream.run(calls), stream.weights.files.bytes_read


def _nats(model: Any, prompt: Sequence[int], answer: Sequence[int], device: str) -> np.ndarray:
    ids = torch.tensor([[*prompt, *answer]], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    found: np.ndarray = logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].cpu().numpy()
    return found


def _load(folder: Path, dtype: str) -> Any:
    settings: dict[str, Any] = {"dtype": DTYPES[dtype], "use_safetensors": True, "trust_remote_code": False}
    if not is_adapter(folder):
        return _read(str(folder), None, settings)
    from peft import PeftModel

    described = json.loads((folder / DESCRIBED).read_text())
    if (four_bit := packing_of(folder)) is not None:
        from transformers import BitsAndBytesConfig

        settings |= {"quantization_config": BitsAndBytesConfig(**four_bit.arguments()), "device_map": {"": "cpu"}}
    base = as_one_function(_read(described["base_model_name_or_path"], described.get("revision"), settings))
    return PeftModel.from_pretrained(base, str(folder), autocast_adapter_dtype=False)


def _read(name: str, revision: str | None, settings: dict[str, Any]) -> Any:
    """By the auto class of transformers that its config.json asks for."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
    return auto_class(config.to_dict()).from_pretrained(name, revision=revision or "main", **settings)
