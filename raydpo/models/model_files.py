"""The files of a model folder, looked at before anything reads them: JSON that is none, weights that are pickles or elsewhere.

Comes in: a folder. Goes out: a ConfigError with every file that cannot be used. Decision: looked at once, at the start, by
whatever verb; what is read later may then trust that it is an object of a sane depth. Weights are looked at by name alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raydpo.errors import ConfigError
from raydpo.models.adapter_files import is_adapter
from raydpo.schema.json_text import read_object

_OBJECTS = (
    *(
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ),
    *("added_tokens.json", "chat_template.json", "processor_config.json", "preprocessor_config.json"),
    "*.safetensors.index.json",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def refuse_unusable(key: str, folder: Path, *, has_weights: bool) -> None:
    """Raise ConfigError for a model folder that `key` names and that no verb could use. has_weights: they should be here."""
    problems = [*_no_objects(key, folder), *(_no_weights(key, folder) if has_weights else ())]
    if problems:
        raise ConfigError(problems)


def _no_objects(key: str, folder: Path) -> Iterator[str]:
    for pattern in _OBJECTS:
        for path in sorted(folder.glob(pattern)):
            try:
                found = read_object(path)
            except (OSError, ValueError) as error:
                yield f"{key}: {path} cannot be read: {error}. Nothing was loaded. Is the model whole?"
                continue
            if path.name.endswith(".index.json"):
                yield from _no_places(key, path, found.get("weight_map"))


def _no_places(key: str, path: Path, places: object) -> Iterator[str]:
    """What is wrong with an index of tensors: it names files of its own folder."""
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        yield f"{key}: {path} holds no weight_map from tensors to files. Nothing was loaded. Is the model whole?"
        return
    names = sorted(set(places.values()))
    if outside := [name for name in names if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name]:
        yield (
            f"{key}: {path} names {outside[0][:200]!r}, which is no file of its folder; weights would have been read from "
            "elsewhere. Nothing was loaded. Fetch the model again."
        )


def _no_weights(key: str, folder: Path) -> Iterator[str]:
    if is_adapter(folder) or any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickled:
        yield (
            f"{key}: {folder} holds only {', '.join(pickled[:3])}, whose loading would run code in it; *.safetensors is "
            "allowed. Nothing was loaded. Convert the model with save_pretrained(..., safe_serialization=True)."
        )
