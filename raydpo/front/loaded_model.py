"""A model that the caller has loaded, as a folder that is named by its content: weights, config and tokenizer.

Comes in: a path or hub id, which stays what it is, or a transformers or PEFT model. Goes out: what `model.path` takes.
Decision: the digest is of the tensors in memory, so that the same model is found again without being written. Of a PEFT model
the adapter alone is written; its base is read from where it was loaded, so changes of its weights in memory are not seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raydpo.artifacts.digest import VOLATILE, canonical, tokenizer_digest
from raydpo.artifacts.folders import discard
from raydpo.disk import full_disk
from raydpo.errors import ConfigError

_ALLOWED = "a path, a hub id, or a loaded model of transformers or PEFT"
_TOKENIZER = "Give tokenizer=, a loaded tokenizer or the folder or hub id of one."


def is_model_name(model: Any) -> bool:
    """Whether `model` is a path or hub id."""
    return isinstance(model, str | os.PathLike)


def model_place(model: Any, tokenizer: Any, folder: Path) -> str:
    """The path or hub id for `model`; a loaded one is kept in `folder`. Raises ConfigError for what cannot be saved."""
    if is_model_name(model):
        if tokenizer is not None:
            raise ConfigError(
                "tokenizer: given beside a model that is a path or hub id, which has its own; it would not have been used. "
                "Leave it out, or save it into the folder of the model."
            )
        return str(os.fspath(model))
    _check(model)
    with full_disk(folder):
        return str(_kept(model, _loaded_tokenizer(model, tokenizer), folder))


def _check(model: Any) -> None:
    kind = type(model).__name__
    if not all(hasattr(model, name) for name in ("save_pretrained", "state_dict", "config")):
        raise ConfigError(f"model: a {kind} was given; allowed: {_ALLOWED}. Nothing was written.")
    if getattr(model, "is_quantized", False):
        raise ConfigError(
            f"model: this {kind} is quantised, and packed weights are not trained from; nothing was written. Give the folder "
            "or hub id of the plain model, with lora={'quantize_base': 'nf4'} for a base in 4 bits."
        )
    hollow = [name for name, tensor in _tensors(model) if tensor.device.type == "meta"]
    if hollow:
        raise ConfigError(
            f"model: {len(hollow)} tensors of this {kind} hold no values ({hollow[0]} is on the meta device: offloaded, or "
            "never loaded); nothing was written. Load it whole, or give its folder or hub id."
        )
    if _is_adapter(model) and not _base(model):
        raise ConfigError(
            f"model: this {kind} does not say where its base was loaded from; an adapter alone is no model. Nothing was "
            "written. Give model.merge_and_unload() with tokenizer=, or the folder of the adapter."
        )


def _is_adapter(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _base(model: Any) -> str:
    return str(getattr(model.get_base_model(), "name_or_path", "") or "")


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and tensors of what is saved; of a PEFT model those of the adapter."""
    if _is_adapter(model):
        from peft import get_peft_model_state_dict

        return iter(sorted(get_peft_model_state_dict(model).items()))
    return iter(sorted(model.state_dict().items()))


def _loaded_tokenizer(model: Any, tokenizer: Any) -> Any:
    if tokenizer is not None and not is_model_name(tokenizer):
        if not hasattr(tokenizer, "save_pretrained"):
            raise ConfigError(f"tokenizer: a {type(tokenizer).__name__} was given; nothing was written. {_TOKENIZER}")
        return tokenizer
    from transformers import AutoTokenizer

    named = _base(model) if _is_adapter(model) else str(getattr(model, "name_or_path", "") or "")
    place = os.fspath(tokenizer) if tokenizer is not None else named
    if not place:
        raise ConfigError(
            f"tokenizer: the model does not say where it was loaded from; nothing was written. {_TOKENIZER}"
        )
    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # the library raises whatever its many backends raise
        first = (str(error) or repr(error)).splitlines()[0]
        raise ConfigError(
            f"tokenizer: none could be loaded from {place}: {first}. Nothing was written. {_TOKENIZER}"
        ) from error


def _kept(model: Any, tokenizer: Any, folder: Path) -> Path:
    staging = folder / f".tmp-{uuid.uuid4().hex[:12]}"
    staging.mkdir(parents=True)
    try:
        tokenizer.save_pretrained(staging)
        final = folder / f"model-{_digest(model, staging)[:32]}"
        if not final.is_dir():
            model.save_pretrained(staging)
            if _is_adapter(model):
                _name_base(staging, _base(model))
            try:
                staging.rename(final)
            except OSError:  # another process was faster
                if not final.is_dir():
                    raise
        return final.absolute()
    finally:
        if staging.is_dir():
            discard(staging)


def _name_base(adapter: Path, base: str) -> None:
    """A relative folder of the base as one that is found from anywhere."""
    path = adapter / "adapter_config.json"
    fields = json.loads(path.read_text())
    fields["base_model_name_or_path"] = str(Path(base).absolute()) if Path(base).is_dir() else base
    path.write_text(json.dumps(fields, indent=2) + "\n")


def _digest(model: Any, saved_tokenizer: Path) -> str:
    """Of weights, config, end tokens of generation and tokenizer, 64 hex digits."""
    digest = hashlib.sha256(b"raydpo-model-1\n" + tokenizer_digest(saved_tokenizer).encode())
    described: list[Any] = [model.config.to_dict()]
    if (generation := getattr(model, "generation_config", None)) is not None:
        described.append(generation.to_dict())
    if _is_adapter(model):
        described += [_base(model), {name: _sorted(found.to_dict()) for name, found in model.peft_config.items()}]
    for fields in described:
        kept = (
            {key: value for key, value in fields.items() if key not in VOLATILE} if isinstance(fields, dict) else fields
        )
        digest.update(canonical(kept))
    for name, tensor in _tensors(model):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(values.view(_bytes()).numpy()))
    return digest.hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def _sorted(fields: dict[str, Any]) -> dict[str, Any]:
    """PEFT keeps names of modules as sets, whose order is arbitrary."""
    return {key: sorted(value) if isinstance(value, set | frozenset) else value for key, value in fields.items()}
