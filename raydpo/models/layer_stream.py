"""Many calls of a model that go through it side by side: each layer is read once and runs for all of them.

Comes in: a `LayerWeights` and calls of its model. Goes out: what the calls return. Decision: each call is a thread that stops
where it enters a layer, so a model's own forward runs as it is, whatever it carries from layer to layer; one thread runs at a
time, and layers themselves run in the caller's. So each value is computed as in a forward of a whole model, bit for bit.
Price: what a call keeps between layers is held for all calls: two hidden states a token in most families.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch

from raydpo.models.layer_weights import LayerWeights
from raydpo.models.together import Call
from raydpo.schema.pulse import beat


class _Dropped(BaseException):
    """Ends a call that nobody waits for any more."""


_own = threading.local()
"""The call that a thread is: `_own.side`, where it is one."""


class _SideCall:
    """A call on a thread of its own. stands_at: the layer that it wants next and what it does there, None when it is done."""

    def __init__(self, call: Call) -> None:
        self._call, self._to, self._from = call, SimpleQueue[Any](), SimpleQueue[Any]()
        self._settings = torch.get_num_threads(), torch.is_grad_enabled()
        self._thread = threading.Thread(target=self._work, name="layer-stream", daemon=True)
        self.stands_at: tuple[int, Call] | None = None
        self.result: Any = None

    def start(self) -> None:
        """Go on to the first layer. Raises what the call raises."""
        self._thread.start()
        self._listen()

    def go_on(self, output: Any) -> None:
        """Go on to the next layer with what the one that it stands at gave."""
        self.stands_at = None
        self._to.put((output, False))
        del output
        self._listen()

    def drop(self) -> None:
        """End it where it is."""
        if self._thread.ident is not None:
            self._to.put((None, True))
            self._thread.join()

    def enter(self, number: int, layer: Call) -> Any:
        """In its thread: wait until the layer has run."""
        self._from.put(("layer", (number, layer)))
        del layer
        output, is_dropped = self._to.get()
        if is_dropped:
            raise _Dropped
        return output

    def _listen(self) -> None:
        kind, value = self._from.get()
        if kind == "failed":
            raise value
        if kind == "layer":
            self.stands_at = value
        else:
            self.result = value

    def _work(self) -> None:
        num_threads, has_grad = self._settings
        torch.set_num_threads(num_threads)
        _own.side = self
        with suppress(_Dropped), torch.set_grad_enabled(has_grad):
            try:
                self._from.put(("done", self._call()))
            except Exception as error:  # noqa: BLE001 it is raised where the call is waited for
                self._from.put(("failed", error))


class LayerStream:
    """Runs calls of `weights.model`. A call outside of `run` reads each layer for itself.

    passes: how often the layers were gone through, one by one, for however many calls.
    """

    def __init__(self, weights: LayerWeights) -> None:
        self.weights, self.model, self.passes = weights, weights.model, 0
        for number, layer in enumerate(weights.layers):
            setattr(layer, "forward", partial(self._enter, number, layer.forward))  # noqa: B010 a method of one object

    def run(self, calls: Sequence[Call]) -> list[Any]:
        """What each of `calls` returns. They take turns in their order at each layer. Raises what a call or a layer raises."""
        sides = [_SideCall(call) for call in calls]
        self.passes += 1
        try:
            for side in sides:
                side.start()
            while any(side.stands_at is not None for side in sides):
                self._advance([side for side in sides if side.stands_at is not None])
        except BaseException:
            for side in sides:
                side.drop()
            raise
        return [side.result for side in sides]

    def _advance(self, sides: Sequence[_SideCall]) -> None:
        """One layer for all of `sides`, which stand at the same one or at several."""
        number = min(side.stands_at[0] for side in sides if side.stands_at is not None)
        with self.weights.holding(number):
            for side in sides:
                assert side.stands_at is not None
                if side.stands_at[0] == number:
                    side.go_on(side.stands_at[1]())
                    beat()

    def _enter(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        side: _SideCall | None = getattr(_own, "side", None)
        if side is not None:
            return side.enter(number, partial(forward, *args, **kwargs))
        with self.weights.holding(number):
            return forward(*args, **kwargs)
