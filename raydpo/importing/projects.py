"""The projects that are known, and which of them a file is of.

Comes in: options. Goes out: a `Project`. Decision: the program says it, or options that one project alone has; where neither
does, the file's owner does (--from).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from raydpo.errors import ConfigError
from raydpo.importing import (
    from_axolotl,
    from_llama_factory,
    from_ms_swift,
    from_nemo_rl,
    from_open_instruct,
    from_openrlhf,
    from_trl,
)
from raydpo.importing.draft import Draft
from raydpo.importing.fates import Row
from raydpo.importing.given_options import GivenOptions


@dataclass(frozen=True)
class Project:
    """title: its name. defaults: of its options that decide numbers. programs: words of a command that name it. signs: options
    of which one says that a file is its own. unfold: makes the options of a file flat, where they are not."""

    title: str
    table: Mapping[str, Row]
    defaults: Mapping[str, Any]
    compose: Callable[[Draft, int | None, str | None], None]
    programs: tuple[str, ...]
    signs: tuple[str, ...]
    unfold: Callable[[GivenOptions], GivenOptions] | None = None


PROJECTS: dict[str, Project] = {
    "open-instruct": Project(
        from_open_instruct.TITLE,
        from_open_instruct.TABLE,
        from_open_instruct.DEFAULTS,
        from_open_instruct.compose,
        ("dpo_tune_cache", "open_instruct/dpo"),
        ("dataset_mixer", "mixer_list", "dataset_mixer_list", "use_slow_tokenizer", "num_epochs_of_open_instruct"),
    ),
    "openrlhf": Project(
        from_openrlhf.TITLE,
        from_openrlhf.TABLE,
        from_openrlhf.DEFAULTS,
        from_openrlhf.compose,
        ("openrlhf", "train_dpo", "train_kto"),
        ("model.beta", "ds.param_dtype", "adam.lr"),
    ),
    "ms-swift": Project(
        from_ms_swift.TITLE,
        from_ms_swift.TABLE,
        from_ms_swift.DEFAULTS,
        from_ms_swift.compose,
        ("swift rlhf", "megatron rlhf"),
        ("rlhf_type", "tuner_type", "split_dataset_ratio"),
    ),
    "llama-factory": Project(
        from_llama_factory.TITLE,
        from_llama_factory.TABLE,
        from_llama_factory.DEFAULTS,
        from_llama_factory.compose,
        ("llamafactory",),
        ("stage", "finetuning_type", "pref_loss", "cutoff_len"),
    ),
    "axolotl": Project(
        from_axolotl.TITLE,
        from_axolotl.TABLE,
        from_axolotl.DEFAULTS,
        from_axolotl.compose,
        ("axolotl",),
        ("base_model", "micro_batch_size", "rl"),
    ),
    "nemo-rl": Project(
        from_nemo_rl.TITLE,
        from_nemo_rl.TABLE,
        from_nemo_rl.DEFAULTS,
        from_nemo_rl.compose,
        ("run_dpo",),
        ("dpo", "policy", "defaults"),
        from_nemo_rl.unfold,
    ),
    "trl": Project(
        from_trl.TITLE,
        from_trl.TABLE,
        from_trl.DEFAULTS,
        from_trl.compose,
        ("trl ", "dpo.py", "kto.py", "orpo.py", "cpo.py", "bco.py", "dpo_vlm.py", "mpo_vlm.py"),
        ("dataset_name", "model_name_or_path", "per_device_train_batch_size", "beta", "loss_type"),
    ),
}
"""By the names of --from, the ones with the plainest signs first."""


def project_of(given: GivenOptions, named: str | None) -> Project:
    """Whose file it is. ConfigError where nothing says so."""
    if named is not None:
        return PROJECTS[named]
    for project in PROJECTS.values():
        if given.program and any(word in f"{given.program} " for word in project.programs):
            return project
    if not given.program:
        for project in PROJECTS.values():
            if any(sign in given.options for sign in project.signs):
                return project
    raise ConfigError(
        f"{given.where}: nothing says which project it is of (looked for are programs and options such as "
        f"{', '.join(project.signs[0] for project in PROJECTS.values())}). Say it: --from {'|'.join(PROJECTS)}."
    )
