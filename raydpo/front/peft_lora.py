"""A `peft.LoraConfig` as the section `train.lora`.

Comes in: a LoraConfig, a mapping of the section's own keys, or nothing. Goes out: that mapping.
Decision: an option that has no counterpart here and is not at its default is refused by name, because it would change numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raydpo.errors import ConfigError

_KEYS = {
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "use_dora": "dora",
    "init_lora_weights": "init",
    "target_modules": "target_modules",
    "modules_to_save": "modules_to_save",
}
_SAYS_NOTHING = {
    "peft_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
} | {
    "task_type",
    "runtime_config",
}
"""Fields that name things and change no number; the task is looked at by itself."""


def lora_section(lora: Any) -> dict[str, Any] | None:
    """What `train.lora` says for `lora`. Raises ConfigError with every option that has no counterpart."""
    if lora is None or isinstance(lora, Mapping):
        return None if lora is None else dict(lora)
    if not (hasattr(lora, "to_dict") and hasattr(lora, "lora_alpha")):
        raise ConfigError(
            f"lora: a {type(lora).__name__} was given; allowed: peft.LoraConfig, or a mapping of keys of train.lora such as "
            "{'rank': 16, 'alpha': 32}. Nothing was started."
        )
    given, default = lora.to_dict(), type(lora)().to_dict()
    found = {ours: _value(theirs, given[theirs]) for theirs, ours in _KEYS.items() if theirs in given}
    problems = [
        f"lora: {name}={given[name]!r} has no counterpart in train.lora, and would change what is trained; nothing was "
        "started. Leave it out."
        for name in sorted(given)
        if name not in {*_KEYS, *_SAYS_NOTHING} and given[name] != default.get(name)
    ]
    task = str(getattr(given.get("task_type"), "value", given.get("task_type")) or "CAUSAL_LM")
    if task != "CAUSAL_LM":
        problems.append(f"lora: task_type={task}; allowed: CAUSAL_LM. Nothing was started. Leave it out.")
    if given.get("target_modules") is None:
        problems.append(
            "lora: target_modules is not given, which leaves them to a table of PEFT's; nothing was started. Name them, as "
            "['q_proj', 'v_proj'], or 'all-linear'."
        )
    if problems:
        raise ConfigError(problems)
    return {key: value for key, value in found.items() if value is not None}


def _value(name: str, value: Any) -> Any:
    if name == "init_lora_weights":
        return "default" if value is True else str(value)
    if isinstance(value, set | frozenset | list | tuple):
        return sorted(value)
    return value
