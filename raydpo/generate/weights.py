"""New weights on their way into an engine: read from a folder, and checked against what the engine has.

Decision: weights have the names and shapes that they have in memory, in the model that transformers makes of a folder. A
file may have others (experts one by one, no prefix, tensors that nothing reads), so files are read as trainers read them;
the price is that a whole model stands in main memory while it is copied. A push of new weights must bring every weight:
one that is missing would stay as it was, and nobody would see that samples come from a mixture of two policies; a
sender of only a few changed weights has to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raydpo.errors import WorkerError
from raydpo.models.pretrained import load_model

Shape = tuple[int, ...]
NUM_NAMED = 8
"""Weights that an error names at most."""


class Expected:
    """The weights that an engine holds. aliases: name -> name of the weight that it is tied to."""

    def __init__(self, shapes: Mapping[str, Shape], aliases: Mapping[str, str] | None = None) -> None:
        self._shapes, self._aliases = dict(shapes), dict(aliases or {})
        self._missing = set(self._shapes)

    @classmethod
    def of(cls, model: Any) -> Expected:
        """What a push into a transformers model must bring: of tied weights one, under whichever of their names."""
        first: dict[int, str] = {}
        shapes: dict[str, Shape] = {}
        aliases: dict[str, str] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            owner = first.setdefault(id(tensor), name)
            if owner == name:
                shapes[name] = tuple(tensor.shape)
            else:
                aliases[name] = owner
        return cls(shapes, aliases)

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Of every weight, tied ones once."""
        return self._shapes

    def restart(self) -> None:
        """Nothing has come yet."""
        self._missing = set(self._shapes)

    def check(self, weights: Mapping[str, Any]) -> dict[str, Any]:
        """Note a part; the same weights, tied ones under the names of `shapes`.

        Raises WorkerError that names the weights that do not fit; then nothing is noted.
        """
        problems = []
        for name, weight in weights.items():
            expected = self._shapes.get(self._aliases.get(name, name))
            if expected is None:
                problems.append(f"{name} (not in the model)")
            elif tuple(weight.shape) != expected:
                problems.append(f"{name} (shape {list(weight.shape)}; the model has {list(expected)})")
        if problems:
            raise WorkerError(
                f"New weights do not fit the policy: {some(problems)}. Allowed are weights of the same architecture under "
                "the names that they have in a transformers model; none of this part was taken. Push the model that the "
                "generator was started with, or start generators anew."
            )
        owned = {self._aliases.get(name, name): weight for name, weight in weights.items()}
        self._missing -= owned.keys()
        return owned

    def finish(self, is_partial: bool = False) -> list[str]:
        """Names of the weights that came in no part. Then the next push begins. Raises WorkerError where all had to come."""
        missing = sorted(self._missing)
        self.restart()
        if missing and not is_partial:
            raise WorkerError(
                f"New weights are not whole: {some(missing)} came in no part. The policy would have been a mixture of two "
                "versions. Push every weight, or load the folder of a model."
            )
        return missing


def weights_in(folder: str, dtype: str) -> dict[str, Any]:
    """Weights of a model folder as `load_model` reads them: name in memory -> CPU tensor in `dtype`.

    Raises ConfigError when transformers cannot load it.
    """
    weights: dict[str, Any] = load_model(Path(folder), dtype, "auto").state_dict()
    return weights


def some(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(names[:NUM_NAMED]) + more
