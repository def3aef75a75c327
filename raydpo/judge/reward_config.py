"""Is the model in a folder a reward model? Decided by its config, without its weights and without torch of our own.

Comes in: a model folder. Goes out: nothing, or a ConfigError with what is allowed.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.errors import ConfigError

ALLOWED = "Allowed: a transformers folder or hub id with *.safetensors of a sequence classifier with one output."
UNREADABLE = (OSError, ValueError, KeyError, ImportError, RuntimeError)


def check_reward_model(folder: Path) -> None:
    """Raise ConfigError for a folder whose config is not that of a reward model. Reads no weights."""
    from transformers import AutoConfig

    try:
        num_labels = AutoConfig.from_pretrained(str(folder), trust_remote_code=False).num_labels
    except UNREADABLE as error:
        raise no_classifier(folder, error) from error
    if num_labels != 1:
        raise ConfigError(
            f"judge.model: {folder} has {num_labels} outputs; a reward model has one (num_labels: 1), and which of several "
            f"would be the score is not known. Nothing was scored. {ALLOWED}"
        )


def no_classifier(folder: Path, error: Exception) -> ConfigError:
    """The error for a folder that holds no sequence classifier."""
    return ConfigError(f"judge.model: {folder} could not be loaded as a sequence classifier: {error}. {ALLOWED}")
