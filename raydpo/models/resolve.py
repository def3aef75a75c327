"""A model path or hub id -> a local folder and, for a hub id, the commit that was found.

Comes in: what the config says. Goes out: a `ResolvedModel`. Torch-free, so that `raydpo check` can use it.
Decision: a name is resolved to a commit once, on the driver, and workers resolve that commit: a branch that moves in
the middle of a run changes nothing. An adapter is a model like any other: it is found together with its base.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from raydpo.errors import ConfigError
from raydpo.models.adapter_files import DESCRIBED, described, holds_tokenizer, is_adapter
from raydpo.models.four_bit import FourBit, packing_of
from raydpo.models.model_files import refuse_unusable

DESCRIPTION = ("*.json", "*.jinja", "*.txt", "*.model")
WEIGHTS = ("*.safetensors", *DESCRIPTION)


@dataclass(frozen=True)
class ResolvedModel:
    """A model that was found.

    name: as configured.
    commit: of a hub id, None for a folder.
    folder: on this node; of an adapter, the adapter's own.
    base: of an adapter, the model that it was trained on.
    four_bit: how its linear layers are packed when it is loaded, of an adapter after it is merged; None: not.
    """

    name: str
    commit: str | None
    folder: Path
    base: ResolvedModel | None = None
    four_bit: FourBit | None = None

    def here(self) -> Path:
        """The folder on the calling node: a local path as it is, a hub id from this node's hub cache."""
        return self.folder if self.commit is None else _download(self.name, self.commit)

    def whole(self) -> ResolvedModel:
        """The model itself, or what lies under all of its adapters."""
        return self if self.base is None else self.base.whole()

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folder of the model, then those of the adapters on it, each on the one before."""
        return (self.folder,) if self.base is None else (*self.base.folders, self.folder)

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer: the adapter's own where it brings one, else its base's."""
        return self.folder if self.base is None or holds_tokenizer(self.folder) else self.base.tokenizer


def resolve_model(key: str, name: str, revision: str | None = None, *, weights: bool = True) -> ResolvedModel:
    """Find the model or the adapter, with its base, that `key` of the config names. Raises ConfigError when there is none.

    weights: of a hub id, whether they are downloaded, too; configs and tokenizers always are.
    """
    if (found := _folder(key, name)) is None:
        path = _download(name, revision, key, weights)
        found = ResolvedModel(name, path.name, path)
    return _usable(key, with_base(found, weights=weights))


def describe_model(key: str, name: str, revision: str | None = None) -> ResolvedModel:
    """`resolve_model` that downloads no weights: for what reads configs and tokenizers alone."""
    return resolve_model(key, name, revision, weights=False)


def local_folder(key: str, name: str) -> ResolvedModel | None:
    """The model `name` if it is a folder here, as is the base of an adapter; None for a hub id, which is not asked for.

    Raises ConfigError for neither.
    """
    found = _folder(key, name)
    model = None if found is None else _with_local_base(found)
    return None if model is None else _usable(key, model)


def _usable(key: str, model: ResolvedModel) -> ResolvedModel:
    """`model`, whose files were looked at: its own, and those of what lies under an adapter. Raises ConfigError."""
    for folder in model.folders:
        refuse_unusable(key, folder, has_weights=model.whole().commit is None)
    return model


def with_base(model: ResolvedModel, *, weights: bool = True) -> ResolvedModel:
    """`model` with its base, where it is an adapter whose base is not known yet. Raises ConfigError."""
    if model.base is not None or not is_adapter(model.folder):
        return model
    return replace(model, base=adapter_base(model.folder, weights=weights))


def adapter_base(folder: Path, *, weights: bool = True) -> ResolvedModel:
    """The model that the adapter in `folder` was trained on, at the revision and packed as it says. Raises ConfigError."""
    name, revision = _base_name(folder)
    base = resolve_model(f"base of the adapter {folder}", name, revision, weights=weights)
    return replace(base, four_bit=packing_of(folder))


def _with_local_base(model: ResolvedModel) -> ResolvedModel | None:
    if not is_adapter(model.folder):
        return model
    name, _ = _base_name(model.folder)
    base = local_folder(f"base of the adapter {model.folder}", name)
    return None if base is None else replace(model, base=replace(base, four_bit=packing_of(model.folder)))


def _base_name(folder: Path) -> tuple[str, str | None]:
    """(folder or hub id, revision) of the base of the adapter in `folder`."""
    found = described(folder)
    name, revision = found.get("base_model_name_or_path"), found.get("revision")
    if not name:
        raise ConfigError(
            f"{folder / DESCRIBED} names no base model (base_model_name_or_path is {name!r}); an adapter alone is no model. "
            "Nothing was loaded. Write the folder or hub id of its base there, or merge it into its base first."
        )
    if Path(name).expanduser().is_dir() and Path(name).expanduser().resolve() == folder.resolve():
        raise ConfigError(
            f"{folder / DESCRIBED} names its own folder as its base model; nothing was loaded. Write the folder or hub id of "
            "the model there that the adapter was trained on."
        )
    return str(name), revision


def _folder(key: str, name: str) -> ResolvedModel | None:
    """The folder `name`, looked at no further; None for a hub id."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not is_adapter(folder):
            raise ConfigError(
                f"{key}: {name} is a folder without config.json; a transformers folder (config.json, *.safetensors, "
                "tokenizer), the folder of a PEFT adapter or a hub id is allowed; nothing was loaded. Point it at the folder "
                "that save_pretrained wrote."
            )
        return ResolvedModel(name, None, folder.resolve())
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"{key}: {name} does not exist (looked for {folder.absolute()}); a folder or a hub id owner/name is allowed; "
            "nothing was loaded. Check the path, and that it is relative to where the command runs."
        )
    return None


def _download(name: str, revision: str | None, key: str = "model.path", weights: bool = True) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(WEIGHTS if weights else DESCRIPTION))
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{key}: {name} is not a folder, and the hub gave no snapshot of it (revision {revision or 'main'}): "
            f"{type(error).__name__}. Nothing was loaded. Give an existing folder, or a hub id that this machine can reach "
            "or has in its hub cache."
        ) from error
