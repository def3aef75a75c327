"""The models and folders that a config names, looked up: are they there, and do they fit?

Comes in: a config, or what is left of one whose broken keys were taken out. Goes out: finished sentences, and what was found.
Decision: how a model is looked up is handed in. A good config asks the hub and downloads; next to other problems only
folders of this machine are looked at, because nobody waits for a download to hear of a misspelt key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from raydpo.config import Config
from raydpo.config.places import is_in_store
from raydpo.config.section_base import say_what_is_known
from raydpo.errors import ConfigError
from raydpo.models.before_loading import facts, refuse_shares, refuse_training
from raydpo.models.four_bit import lacks_bitsandbytes
from raydpo.models.quantised import refuse_quantised
from raydpo.models.resolve import ResolvedModel, local_folder
from raydpo.rundir.positions import fit_to_model
from raydpo.runtime.job import check_paths

Find = Callable[[str, str, str | None], ResolvedModel | None]
"""find(key, name, revision): the model; None where it is not looked for. Raises ConfigError."""


class NamedModels:
    """found: key -> the model. fitted: the config with what was fitted to the model, and notes of it. All after `problems`."""

    def __init__(self, config: Config, find: Find) -> None:
        self._config, self._find = config, find
        self.found: dict[str, ResolvedModel] = {}
        self.fitted: Config | None = None
        self.notes: tuple[str, ...] = ()

    def problems(self) -> list[str]:
        """Every reason why a run could not start from what the config names."""
        checks = (self._folders, self._revision, self._model, self._fit, self._reference, self._packing)
        return list(dict.fromkeys(say_what_is_known(checks)))

    def training_problems(self, verb: str) -> list[str]:
        """Every reason why the model that was found cannot be trained. After `problems`."""
        model = self.found.get("model.path")
        if model is None or verb not in ("train", "check", "iterate"):
            return []
        aux, adapter = self._config.train.router_aux_loss, self._config.train.lora is not None
        looks = (
            lambda: refuse_training(model.folder),
            lambda: facts(model.folder, aux, has_adapter=adapter),
            lambda: refuse_shares(model.folder, self._config.train.sequence_parallel_size),
        )
        return list(dict.fromkeys(problem for look in looks for problem in _said_by(look)))

    def _folders(self) -> Iterable[str]:
        config = self._config
        return _said_by(
            lambda: check_paths({"run.dir": config.run.dir, "reference.cache_dir": config.reference.cache_dir})
        )

    def _revision(self) -> Iterator[str]:
        model = self._config.model
        if model.revision is not None and Path(model.path).expanduser().is_dir():
            yield "model.revision is set, but model.path is a folder, which has no revisions; leave it out."

    def _model(self) -> Iterable[str]:
        path, revision = self._config.model.path, self._config.model.revision
        return _said_by(lambda: self._look_up("model.path", path, revision))

    def _fit(self) -> Iterable[str]:
        return _said_by(self._fit_to_model) if "model.path" in self.found else ()

    def _reference(self) -> Iterable[str]:
        name, revision = self._config.reference.model, self._config.reference.revision
        return [] if name is None else _said_by(lambda: self._look_up("reference.model", name, revision))

    def _packing(self) -> Iterator[str]:
        lora = self._config.train.lora
        if lora is not None and lora.quantize_base != "none" and (lacking := lacks_bitsandbytes()):
            key = f"train.lora.quantize_base: {lora.quantize_base}"
            yield f"{key} {lacking}, or leave quantize_base out. Nothing was started."

    def _look_up(self, key: str, name: str, revision: str | None) -> None:
        where = _copied(name) if is_in_store(name) else name
        if (found := self._find(key, where, revision)) is not None:
            self.found[key] = found
            refuse_quantised(key, found.whole().folder)

    def _fit_to_model(self) -> None:
        self.fitted, self.notes = fit_to_model(self._config, self.found["model.path"].folder)


def problems_on_disk(config: Config) -> list[str]:
    """What is wrong with what the config names on this machine. Asks no hub."""
    return NamedModels(config, lambda key, name, revision: local_folder(key, name)).problems()


def _said_by(look: Callable[[], object]) -> tuple[str, ...]:
    try:
        look()
    except ConfigError as error:
        return error.problems
    return ()


def _copied(url: str) -> str:
    from raydpo.artifacts.input_copies import copied

    return str(copied(url))
