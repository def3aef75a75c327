"""Requests in a vLLM engine that is stepped: prompts go in one by one, and a request is out when its last one is.

Comes in: the prompts of a request, as often as there is room. Goes out: requests as they end, in whatever order.
Decision: `LLM.enqueue` and `LLMEngine.step` in the actor's own thread and process, not AsyncLLM, whose engine is a child:
weights stay where they can be handed over without a copy, one process is to be ended and looked at, and the scheduler is the
same (benchmarks/sampling_steps.py counts the steps of both). The price: an engine does nothing while results travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raydpo.schema.pulse import beat

Outputs = list[Any]
"""vLLM's RequestOutput of each prompt of a request, in their order."""


class RequestStream:
    """llm: vLLM's, with nothing in work.

    num_steps: of the engine so far; in each, every running sequence gets a token.
    """

    def __init__(self, llm: Any) -> None:
        self._llm, self._engine = llm, llm.llm_engine
        self._max_num_seqs: int = self._engine.vllm_config.scheduler_config.max_num_seqs
        self._places: dict[str, tuple[int, int]] = {}
        self._outputs: dict[int, Outputs] = {}
        self._missing: dict[int, int] = {}
        self.num_steps = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing is in work."""
        return not self._missing

    @property
    def has_room(self) -> bool:
        """Whether fewer sequences are unfinished than the engine has in the making at a time."""
        return bool(self._engine.get_num_unfinished_requests() < self._max_num_seqs)

    def begin(self, number: int, prompts: Sequence[Sequence[int]], params: list[Any]) -> None:
        """Have request `number`, of at least one prompt, in work."""
        wrapped = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        names = self._llm.enqueue(wrapped, params, use_tqdm=False)
        for place, name in enumerate(names):
            self._places[name.split("-")[0]] = number, place  # vLLM appends to the name that its outputs have
        self._outputs[number], self._missing[number] = [None] * len(names), len(names)

    def step(self) -> list[tuple[int, Outputs]]:
        """A step of the engine: the requests that ended with it."""
        beat()
        self.num_steps += 1
        ended = []
        for output in self._engine.step():
            if not output.finished:
                continue
            number, place = self._places.pop(output.request_id)
            self._outputs[number][place] = output
            self._missing[number] -= 1
            if not self._missing[number]:
                del self._missing[number]
                ended.append((number, self._outputs.pop(number)))
        return ended

    def run(self, prompts: Sequence[Sequence[int]], params: list[Any]) -> Outputs:
        """One request from its beginning to its end, with nothing else in work."""
        if not prompts:
            return []
        assert self.is_empty, "a request of its own was asked for while others are in work"
        self.begin(0, prompts, params)
        while not (ended := self.step()):
            pass
        return ended[0][1]
