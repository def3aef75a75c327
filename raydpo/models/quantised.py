"""Folders whose matrices are packed integers or 8-bit floats: refused by their config.json, before anything is loaded.

Decision: none is trained, adapted or scored. Packed matrices take no gradient, so that training would change what is left,
embedding, norms and head, without a word; and what a quantised model says depends on kernels that a machine may lack, where
transformers dequantises instead. QLoRA packs a whole checkpoint itself (`train.lora.quantize_base`), so that everybody packs it
alike. Price: whoever has only a quantised checkpoint unpacks it once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.models.config_file import config_of
from raydpo.schema.json_text import read_object

_KEYS = ("quantization_config", "compression_config", "quant_config", "quantize_config")
_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_TRAINED = (
    "Packed matrices take no gradient: training would have changed embedding, norms and head alone and ended in an export "
    "that fails. An adapter on a base in 4 bits (QLoRA) is trained from the whole checkpoint, by train.lora.quantize_base"
)
_SCORED = "What it says depends on kernels that a machine may lack, and where they lack loading fails or unpacks it in silence"


def refuse_quantised(key: str, folder: Path) -> None:
    """Raise ConfigError when the model that `key` names is quantised. Reads no weights."""
    if (method := quantisation(key, folder)) is None:
        return
    why = _TRAINED if key == "model.path" else _SCORED
    raise ConfigError(
        f"{key}: {folder} is quantised ({method}); models in float32, bfloat16 or float16 are allowed. {why}. Nothing was "
        "started. Name the checkpoint that it was made from, or unpack it once: load it with transformers, call "
        "model.dequantize(), and save_pretrained to a folder."
    )


def quantisation(key: str, folder: Path) -> str | None:
    """How the model in `folder` is quantised, in a few words; None when it is not."""
    described = config_of(key, folder)
    parts = [described, *(part for part in described.values() if isinstance(part, dict))]
    for part in parts:
        for name in _KEYS:
            if isinstance(settings := part.get(name), dict) and settings:
                return f"{_method(settings)}: {name} of its config.json"
    for file in _FILES:
        if (folder / file).is_file():
            return f"{_method(_read(folder / file))}: {file}"
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_object(path)
    except (OSError, ValueError):
        return {}
    inner = found.get("quantization", found)
    return inner if isinstance(inner, dict) else found


def _method(settings: dict[str, Any]) -> str:
    name = settings.get("quant_method") or settings.get("quant_algo") or "method not named"
    bits = settings.get("bits") or settings.get("w_bit")
    bits = bits or (4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None)
    return f"{name}, {bits} bit" if bits else str(name)
