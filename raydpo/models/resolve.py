"""A model path or hub id -> a local folder and, for a hub id, the commit that was found.

Comes in: what the config says. Goes out: a `ResolvedModel`. Torch-free, so that `raydpo check` can use it.
Decision: a name is resolved to a commit once, on the driver, and workers resolve that commit: a branch that moves in
the middle of a run changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from raydpo.errors import ConfigError

WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was found.

    name: as configured.
    commit: of a hub id, None for a folder.
    folder: on this node.
    """

    name: str
    commit: str | None
    folder: Path

    def here(self) -> Path:
        """The folder on the calling node: a local path as it is, a hub id from this node's hub cache."""
        return self.folder if self.commit is None else _download(self.name, self.commit)

    def whole(self) -> ResolvedModel:
        """The model itself, or the base of an adapter."""
        return adapter_base(self.folder) if (self.folder / "adapter_config.json").is_file() else self


def resolve_model(key: str, name: str, revision: str | None = None, *, allow_adapter: bool = False) -> ResolvedModel:
    """Find the model that `key` of the config names. Raises ConfigError when there is none.

    allow_adapter: whether a LoRA adapter folder will do.
    """
    if (found := local_folder(key, name, allow_adapter=allow_adapter)) is not None:
        return found
    path = _download(name, revision, key)
    return ResolvedModel(name, path.name, path)


def local_folder(key: str, name: str, *, allow_adapter: bool = False) -> ResolvedModel | None:
    """The model `name` if it is a folder here; None for a hub id, which is not asked for. Raises ConfigError for neither."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not allow_adapter:
            raise ConfigError(
                f"{key}: {name} is a LoRA adapter; a full model is allowed. The adapter of a new run would sit on its base "
                "model, not on this one, and export would lose it. Merge it first (train.lora.merge: true writes "
                "model_merged/)."
            )
        if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
            raise ConfigError(
                f"{key}: {name} is a folder without config.json; a transformers folder (config.json, *.safetensors, "
                "tokenizer) or a hub id is allowed; nothing was loaded. Point it at the folder that save_pretrained wrote."
            )
        return ResolvedModel(name, None, folder.resolve())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"{key}: {name} does not exist (looked for {folder.absolute()}); a folder or a hub id owner/name is allowed; "
            "nothing was loaded. Check the path, and that it is relative to where the command runs."
        )
    return None


def adapter_base(folder: Path) -> ResolvedModel:
    """The model that the LoRA adapter in `folder` was trained on, at the revision it names. Raises ConfigError."""
    file = folder / "adapter_config.json"
    try:
        described = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Nothing was loaded. Is the adapter whole?") from error
    name, revision = described.get("base_model_name_or_path"), described.get("revision")
    if not name:
        raise ConfigError(
            f"{file} names no base model (base_model_name_or_path is {name!r}); an adapter alone is no model, and nothing was "
            "loaded. Write the folder or hub id of its base there, or merge it into its base first."
        )
    return resolve_model(f"base of the adapter {folder}", name, revision)


def _download(name: str, revision: str | None, key: str = "model.path") -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(WEIGHTS)))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{key}: {name} is not a folder, and the hub gave no snapshot of it (revision {revision or 'main'}): "
            f"{type(error).__name__}. Nothing was loaded. Give an existing folder, or a hub id that this machine can reach "
            "or has in its hub cache."
        ) from error
