"""What is still to do in a run directory: a pure function of its committed checkpoints and the config.

Decision: there is no state file that could disagree with the disk; a manifest that verifies is the state.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raydpo.config import Config
from raydpo.config.key_facts import free_keys
from raydpo.errors import ResumeError
from raydpo.models.balancing import KEY as BALANCING
from raydpo.redaction import redacted_values

STATE = "rank-*.safetensors"
"""Files of the training state in a checkpoint's `engine`."""
FREE = free_keys(Config, "training")
"""Keys that may change between two attempts at the same run, as declared at each key. Paths are free, because digests of what
they lead to are compared."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed, verified checkpoint and what its manifest says."""

    folder: Path
    meta: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    @property
    def holds_weights_alone(self) -> bool:
        """Whether nothing can go on from it."""
        return self.meta.get("save") == "weights"

    @property
    def reason(self) -> str:
        """Why training ended here; empty in the middle of a run."""
        return str(self.meta["reason"])


@dataclass(frozen=True)
class Plan:
    """What an attempt does, and from where.

    action: start (from the model), resume (from `checkpoint`) or done (`checkpoint` is the last one).
    trajectory: what decides the numbers of the run.
    checkpoint: the newest one that is intact; None at a start.
    optimizer: checkpoint of another run whose optimizer state a start goes on with.
    """

    action: Literal["start", "resume", "done"]
    trajectory: Mapping[str, Any]
    checkpoint: Checkpoint | None = None
    optimizer: Path | None = None


def trajectory(config: Config, digests: Mapping[str, Any], free: Set[str] = FREE) -> dict[str, Any]:
    """Everything that decides the numbers of a run, flat: config values but those of `free`, and digests of what it reads.

    digests: also stand for config values of the same name, where those say less. A secret of the environment is the name
    of its variable.
    """
    flat: dict[str, Any] = {}
    for section, values in config.model_dump(mode="json").items():
        if section not in free and values is not None:
            flat |= {f"{section}.{key}": value for key, value in values.items()}
    kept = redacted_values({key: value for key, value in flat.items() if key not in free})
    return {**kept, **digests}


def plan_training(config: Config, newest: Checkpoint | None, wanted: Mapping[str, Any], skipped: list[str]) -> Plan:
    """Decide. Raises ResumeError for a config that cannot continue what is there. skipped: damaged checkpoints."""
    if config.run.resume == "never":
        return Plan("start", wanted)
    if newest is None:
        if config.run.resume == "must":
            damaged = f" These are damaged: {'; '.join(skipped)}." if skipped else ""
            raise ResumeError(
                f"run.resume: must, but {config.run.dir} holds no valid checkpoint.{damaged} Training would have started at "
                "step 0. Set run.resume: auto to allow that."
            )
        return Plan("start", wanted)
    if newest.holds_weights_alone and not newest.reason:
        if config.run.resume == "must":
            raise ResumeError(
                f"run.resume: must, but the checkpoints of {config.run.dir} were made with train.save: weights, and nothing "
                "goes on from them. Training would have started at step 0. Set run.resume: auto to allow that."
            )
        return Plan("start", wanted)
    if changed := differences(newest.meta["trajectory"], wanted):
        raise ResumeError(
            [
                f"{config.run.dir} holds a run at step {newest.step} that was made with other settings; going on would mix "
                "the two. Set run.dir to a new folder, or run.resume: never to set the old outputs aside.",
                *changed,
            ]
        )
    if not newest.reason:
        check_state(newest.folder)
    return Plan("done" if newest.reason else "resume", wanted, newest)


def check_state(checkpoint: Path) -> None:
    """Raise ResumeError for a checkpoint whose training state is not raydpo's own files. Reads names, no content."""
    folder = checkpoint / "engine"
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    if foreign := [path for path in files if path.parent != folder or not path.match(STATE)]:
        names = ", ".join(path.relative_to(checkpoint).as_posix() for path in foreign[:3])
        raise ResumeError(
            f"{checkpoint} holds {len(foreign)} files that are no training state ({names}); {STATE} is read. Earlier versions "
            "wrote DeepSpeed's own files there: pickles, which run whatever code is in them when they are read, so they are "
            "not. Go on with the version that began the run, or set run.resume: never to train anew. The model in "
            f"{checkpoint / 'model'} can be trained on as model.path, without its optimizer state."
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A sentence for every key of two trajectories that has another value."""
    # A key that only one of them has came or went with another version of the program, which also wrote auto itself, not
    # the dtype that it had become.
    unknown = {"model.dtype"} if old.get("model.dtype") == "auto" else set()
    old = {BALANCING: 0.0, **redacted_values(old)}  # a version that knew no balancing loss trained without one
    if isinstance(lora := old.get("train.lora"), dict):
        old["train.lora"] = {"quantize_base": "none", **lora}
    keys = [key for key in new if key in old and key not in unknown and old[key] != new[key]]
    return [f"{key}: {old[key]!r} then, {new[key]!r} now.{_advice(key, old[key])}" for key in keys]


def _advice(key: str, then: object) -> str:
    if key == BALANCING:
        return f" {key}: {then or 'off'} goes on."
    if key != "model.dtype":
        return ""
    return f" auto follows gpus_per_worker of train and reference; model.dtype: {then} goes on."
