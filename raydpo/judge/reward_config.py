"""Is the model in a folder a reward model? Decided by its config, without its weights and without torch of our own.

Comes in: a model folder. Goes out: nothing, or a ConfigError with what is allowed.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.errors import ConfigError
from raydpo.models.adapter_files import is_adapter, shapes
from raydpo.models.resolve import adapter_base

ALLOWED = "Allowed: a transformers folder or hub id with *.safetensors of a sequence classifier with one output."
HEADS = ("score.weight", "classifier.weight")
"""Ends of the names that sequence classifiers give their heads."""
UNREADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError)


def check_reward_model(folder: Path) -> None:
    """Raise ConfigError for a folder whose config is not that of a reward model. Reads no weights."""
    from transformers import AutoConfig

    if is_adapter(folder):
        return _check_adapter(folder)
    try:
        num_labels = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).num_labels
    except UNREADABLE as error:
        raise no_classifier(folder, error) from error
    if num_labels != 1:
        raise ConfigError(
            f"judge.model: {folder} has {num_labels} outputs; a reward model has one (num_labels: 1), and which of several "
            f"would be the score is not known. Nothing was scored. {ALLOWED}"
        )


def head_rows(adapter: Path) -> int | None:
    """Outputs of the head that an adapter brings along, None where its base has to have one."""
    found = (shape[0] for name, shape in shapes(adapter).items() if name.endswith(HEADS))
    return next(found, None)


def _check_adapter(folder: Path) -> None:
    rows = head_rows(folder)
    if rows is None:
        check_reward_model(adapter_base(folder).folder)
    elif rows != 1:
        raise ConfigError(
            f"judge.model: the adapter {folder} has a head of {rows} outputs; a reward model has one, and which of several "
            f"would be the score is not known. Nothing was scored. {ALLOWED}"
        )


def no_classifier(folder: Path, error: Exception) -> ConfigError:
    """The error for a folder that holds no sequence classifier."""
    return ConfigError(f"judge.model: {folder} could not be loaded as a sequence classifier: {error}. {ALLOWED}")
