"""Weight sync: new weights of the trainers on their way to the generators.

Comes in: the description of a file on the trainers' node, or parts of the weights, in order. Goes out: the same to every
generator, or to none.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import Future
from typing import Any

from raydpo.driver.generators import Generators
from raydpo.schema.events import Note, Observer
from raydpo.schema.rank_events import WeightsPart
from raydpo.schema.shared_weights import SharedWeights


class Push:
    """The weights of `version` on their way to the generators. producers: who has them at work meanwhile.

    Decision: at the first part it is known whether the generators are free. If they are not, all parts are left out and
    `hold` reads the folder: whoever waited here would wait between two collectives of the trainers.
    """

    def __init__(
        self, generators: Generators, version: int, producers: Collection[Future[Any]], observer: Observer
    ) -> None:
        self._generators, self._version, self._producers, self._observer = generators, version, producers, observer
        self._is_taken: bool | None = None

    @property
    def is_possible(self) -> bool:
        """Whether there will be anybody to take it, asked before trainers make it: not where they are stopped meanwhile."""
        return not self._generators.shares_gpus

    def receive(self, part: WeightsPart | SharedWeights) -> None:
        """The file, or the parts in order; then another push may come."""
        if isinstance(part, SharedWeights):
            if self._generators.shares_gpus or not self._is_free():
                self._generators.leave(part)
            else:
                self._generators.take(part, self._version)
            return
        if self._generators.shares_gpus:  # they are stopped while trainers run
            return
        if self._is_taken is None:
            self._is_taken = self._is_free()
        if self._is_taken:
            self._generators.receive(part, self._version)
        if part.is_last:
            self._is_taken = None

    def _is_free(self) -> bool:
        if is_free(self._producers):
            return True
        text = f"another round was in the making when the weights of policy {self._version} came; generators read its folder"
        self._observer(Note("info", text))
        return False


def is_free(producers: Collection[Future[Any]]) -> bool:
    """Whether nobody has generators at work, or may have left some of them so."""
    return all(made.done() and made.exception() is None for made in producers)
