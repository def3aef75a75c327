"""Digests: of files, of values, of a model's weights and of its tokenizer. Always of content, never of a name or a date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raydpo.errors import ConfigError
from raydpo.schema.json_text import read_object

VOLATILE = {"transformers_version", "_name_or_path", "torch_dtype", "dtype", "use_cache", "_attn_implementation"} | {
    "base_model_name_or_path",  # of an adapter: its base has a digest of its own
    "revision",
    "peft_version",
    "inference_mode",
}
"""Fields of config.json and adapter_config.json that change without changing the model."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TOKENIZER_PATTERNS = ("chat_template*", "vocab.*", "merges.txt", "*.model", "additional_chat_templates/*")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form (sorted keys, no spaces), 64 hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def digest_of_rows(rows: Iterable[Any]) -> str:
    """`digest_of` of the list of `rows`, which is never held."""
    digest = hashlib.sha256(b"[")
    for number, row in enumerate(rows):
        digest.update(b"," * bool(number) + canonical(row))
    digest.update(b"]")
    return digest.hexdigest()


def canonical(value: Any) -> bytes:
    """What `digest_of` hashes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()


def weights_digest(folder: Path) -> str:
    """Digest of a model or adapter folder: every *.safetensors by content, and what config.json says of the model.

    Raises ConfigError for a folder with pickled weights (*.bin, *.pt) instead of safetensors: loading one runs code.
    """
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickled = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth")]
        found = f"only {', '.join(pickled)}, whose loading would run code in it" if pickled else "no weights"
        raise ConfigError(
            f"model.path: {folder} holds {found}; *.safetensors is allowed. Nothing was loaded. Convert the model with "
            "save_pretrained(..., safe_serialization=True)."
        )
    described = {}
    for name in ("config.json", "adapter_config.json"):
        if (folder / name).is_file():
            try:
                fields = read_object(folder / name)
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{folder / name} cannot be read: {error}. Nothing was loaded. Is the model whole?"
                ) from error
            described[name] = _lasting(fields)
    return digest_of([described, [[path.name, file_sha256(path)] for path in shards]])


def _lasting(value: Any) -> Any:
    """`value` without volatile fields at any depth. PEFT keeps module names as a set: their order in a file is arbitrary."""
    if isinstance(value, list):
        return [_lasting(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _lasting(inner) for key, inner in value.items() if key not in VOLATILE}
    names = ("target_modules", "exclude_modules", "modules_to_save")
    return {key: sorted(v) if key in names and isinstance(v, list) else v for key, v in kept.items()}


def tokenizer_digest(folder: Path) -> str:
    """Digest of the tokenizer and chat template files of a model folder."""
    paths = {folder / name for name in TOKENIZER_FILES}
    for pattern in TOKENIZER_PATTERNS:
        paths |= set(folder.glob(pattern))
    present = sorted(path for path in paths if path.is_file())
    return digest_of([[str(path.relative_to(folder)), file_sha256(path)] for path in present])
