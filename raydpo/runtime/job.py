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
_WAIT_VARIABLE, _WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 3.0
"""How long Ray's supervisor waits between SIGTERM and SIGKILL, and its default."""


def in_ray_job() -> bool:
    """Whether this process was started by `ray job submit` (or a KubeRay RayJob)."""
    return _JOB_VARIABLE in os.environ


def short_stop(grace_s: float) -> str:
    """What is to know of `ray job stop` in this job: a sentence, or nothing where it waits for `grace_s` seconds."""
    if not in_ray_job() or float(os.environ.get(_WAIT_VARIABLE) or _WAIT_S) > grace_s:
        return ""
    waits_s = os.environ.get(_WAIT_VARIABLE, f"{_WAIT_S:g}")
    return (
        f"`ray job stop` kills this job {waits_s} s after it asks it to stop, and a checkpoint may take run.stop_grace_s: "
        f'{grace_s:g} s. Submit it with --runtime-env-json \'{{"env_vars": {{"{_WAIT_VARIABLE}": "{grace_s + 5:.0f}"}}}}\'.'
    )


def check_paths(paths: Mapping[str, str]) -> None:
    """Refuse relative output paths under a Ray job.

    paths: config key ("run.dir") to the value as given; a leading `~` counts as absolute, and so does an address.
    Raises ConfigError with one sentence for every relative path. Outside a job nothing is checked.
    """
    if not in_ray_job():
        return
    problems = [
        f"{key}: {value!r} is relative. In a submitted Ray job it would land in the job's temporary upload on one node "
        f"({os.getcwd()}) and be lost. Write an absolute path that all nodes see, for example "
        f"{key}=/mnt/shared/{Path(value).name or 'raydpo'}."
        for key, value in paths.items()
        if "://" not in value and not Path(value).expanduser().is_absolute()
    ]
    if problems:
        raise ConfigError(problems)
