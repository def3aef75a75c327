"""Is this process the driver of a submitted Ray job, and are the paths it was given safe there?

What comes in: the environment and the config's paths by their key. What goes out: a bool, or a ConfigError with every
relative path. Decision: a relative path under a job is refused, not resolved: it would point into the job's temporary
copy of the working directory, on one node, and be gone with it. No import of ray: a config check starts at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from raydpo.errors import ConfigError

_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's job supervisor gives it to the entrypoint of every submitted job, and to nothing else."""


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit` (or a KubeRay RayJob)."""
    return _JOB_VARIABLE in os.environ


def check_paths(paths: Mapping[str, str]) -> None:
    """Refuse relative output paths under a Ray job.

    paths: config key ("run.dir") to the value as given; a leading `~` counts as absolute.
    Raises ConfigError with one sentence for every relative path. Outside a job nothing is checked.
    """
    if not in_ray_job():
        return
    problems = [
        f"{key}: {value!r} is relative. In a submitted Ray job it would land in the job's temporary upload on one node "
        f"({os.getcwd()}) and be lost. Write an absolute path that all nodes see, for example "
        f"{key}=/mnt/shared/{Path(value).name or 'raydpo'}."
        for key, value in paths.items()
        if not Path(value).expanduser().is_absolute()
    ]
    if problems:
        raise ConfigError(problems)
