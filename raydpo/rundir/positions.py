"""How long a row may be for the model that was found: `data.max_length` against the positions that its config names.

Comes in: the config and the model's folder. Goes out: the config that the run works with. Decision: only the config of the
model is read, no weights, so that `raydpo check` can ask too.
"""

from __future__ import annotations

from pathlib import Path

from raydpo.config import Config
from raydpo.errors import ConfigError
from raydpo.models.config_file import POSITIONS, config_of, of_text


def fit_to_model(config: Config, folder: Path) -> tuple[Config, tuple[str, ...]]:
    """Compare `data.max_length` with the positions that the model has: (config, what was changed). Raises ConfigError.

    A max_length that nobody set is lowered to them; one that was set is never changed.
    """
    positions = of_text(config_of("model.path", folder), *POSITIONS)
    if positions is None or config.data.max_length <= positions:
        return config, ()
    if "max_length" in config.data.model_fields_set:
        raise ConfigError(
            f"data.max_length: {config.data.max_length}, but the model in {folder} has {positions} positions; beyond them its "
            f"log-probs would be noise or an error. Set data.max_length to at most {positions}."
        )
    data = config.data.model_copy(update={"max_length": positions})
    note = f"data.max_length is {positions}, all the positions that the model has (its default would be more)"
    return config.model_copy(update={"data": data}), (note,)
