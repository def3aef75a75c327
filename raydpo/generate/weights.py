"""New weights on their way into an engine: read from a folder, and checked against what the engine has.

Decision: a push of new weights must bring every weight. One that is missing would stay as it was, and nobody would see
that samples come from a mixture of two policies; whoever sends a few changed weights has to say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from raydpo.errors import WorkerError

Shape = tuple[int, ...]
NUM_NAMED = 8
"""Weights that an error names at most."""


class Expected:
    """The weights that an engine holds. aliases: name -> name of the weight that it is tied to."""

    def __init__(self, shapes: Mapping[str, Shape], aliases: Mapping[str, str] | None = None) -> None:
        self._shapes, self._aliases = dict(shapes), dict(aliases or {})
        self._missing = set(self._shapes)

    def restart(self) -> None:
        """Nothing has come yet."""
        self._missing = set(self._shapes)

    def check(self, weights: Mapping[str, Any]) -> None:
        """Note a part. Raises WorkerError that names the weights that do not fit; then nothing is noted."""
        problems = []
        for name, weight in weights.items():
            expected = self._shapes.get(self._aliases.get(name, name))
            if expected is None:
                problems.append(f"{name} (not in the model)")
            elif tuple(weight.shape) != expected:
                problems.append(f"{name} (shape {list(weight.shape)}; the model has {list(expected)})")
        if problems:
            raise WorkerError(
                f"New weights do not fit the policy: {_some(problems)}. Allowed are weights of the same architecture under "
                "their names in the model folder; none of this part was taken. Push the model that the generator was "
                "started with, or start generators anew."
            )
        self._missing -= {self._aliases.get(name, name) for name in weights}

    def finish(self, is_partial: bool = False) -> list[str]:
        """Names of the weights that came in no part. Then the next push begins. Raises WorkerError where all had to come."""
        missing = sorted(self._missing)
        self.restart()
        if missing and not is_partial:
            raise WorkerError(
                f"New weights are not whole: {_some(missing)} came in no part. The policy would have been a mixture of two "
                "versions. Push every weight, or load the folder of a model."
            )
        return missing


def shapes_in(folder: str) -> dict[str, Shape]:
    """Name -> shape of every weight in the safetensors of a model folder, from their headers."""
    shapes: dict[str, Shape] = {}
    for file in _files(folder):
        with safe_open(file, framework="pt") as weights:
            shapes |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    return shapes


def parts_of(folder: str) -> Iterator[dict[str, Any]]:
    """The weights of a model folder, one file at a time: name -> CPU tensor."""
    for file in _files(folder):
        yield load_file(file)


def _files(folder: str) -> list[Path]:
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files or (Path(folder) / "adapter_config.json").is_file():
        raise WorkerError(
            f"{folder} holds no full model in safetensors, so no weights were taken. Allowed is a folder that "
            "save_pretrained wrote; merge an adapter into its base first."
        )
    return files


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
