"""What stands in the folder of a PEFT adapter, read as it stands: without torch, PEFT or the weights.

Comes in: the folder. Goes out: its kind, its base, and how many rows its embedding has where the vocabulary was resized.
Decision: kinds that change no matrix (prompt and prefix tuning) are refused: they cannot be merged, and a reference, a
generator and an export would each have to know of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.models.weight_shapes import UNREADABLE, shapes_in
from raydpo.schema.json_text import read_object

DESCRIBED = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TOKENIZER_SIGNS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json")
_UNMERGED = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "ADAPTION_PROMPT", "XLORA"}
_UNMERGED |= {"CARTRIDGE", "POLY", "SHADOW"}
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embedding", "embeddings")


def is_adapter(folder: Path) -> bool:
    """Whether a PEFT adapter lies in `folder`."""
    return (folder / DESCRIBED).is_file()


def holds_tokenizer(folder: Path) -> bool:
    """Whether `folder` has a tokenizer of its own."""
    return any((folder / name).is_file() for name in TOKENIZER_SIGNS)


def described(folder: Path) -> dict[str, Any]:
    """adapter_config.json of an adapter that can be merged. Raises ConfigError."""
    file = folder / DESCRIBED
    try:
        found = read_object(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Nothing was loaded. Is the adapter whole?") from error
    kind = str(found.get("peft_type", "LORA")).upper()
    if kind in _UNMERGED or found.get("alora_invocation_tokens"):
        what = kind if kind in _UNMERGED else f"{kind} that acts behind certain tokens only (alora_invocation_tokens)"
        raise ConfigError(
            f"{file}: the adapter is of the kind {what}, which cannot be merged into the matrices of its base; kinds that can "
            "are allowed (LoRA with rsLoRA, DoRA, modules_to_save and others). Nothing was loaded. Give the full model that "
            "it was made from, or a LoRA adapter."
        )
    if not (folder / WEIGHTS_FILE).is_file():
        raise ConfigError(
            f"{folder} holds an adapter_config.json and no {WEIGHTS_FILE}; weights in other files are not read, because "
            "loading those may run code. Nothing was loaded. Save the adapter with save_pretrained of PEFT."
        )
    return found


def num_rows(folder: Path) -> int | None:
    """Rows of the embedding that the adapter brings along, None where it has none of its own."""
    found = [
        shape[0]
        for name, shape in shapes(folder).items()
        if len(shape) == 2
        and "lora_" not in name
        and name.split(".weight")[0].split(".base_layer")[0].endswith(_EMBEDDINGS)
    ]
    return max(found, default=None)


def shapes(folder: Path) -> dict[str, list[int]]:
    """Shape of each tensor of the adapter, from the head of its file. Raises ConfigError when that is damaged."""
    path = folder / WEIGHTS_FILE
    try:
        return shapes_in(path)
    except UNREADABLE as error:
        raise ConfigError(f"{path} cannot be read: {error}. Nothing was loaded. Is the adapter whole?") from error
