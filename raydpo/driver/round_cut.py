"""Where a round ends that is to have so many pairs: at the first request, in the order of prompts, by which they are there.

Comes in: requests as they are judged, in any order. Goes out: how many count. Decision: pairs are counted in the order of
prompts, so the end is the same whoever was faster. Price: what was sampled beyond it is not used; so that this is little, no
request begins that is further than `most_ahead` from the last one up to which all are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


class RoundCut:
    """num_requests: at most. enough: number of pairs of each prompt so far -> whether the round may end. pairs_of: number of a
    judged request -> the pairs of each of its prompts.

    end: requests that count, None while that is not known. num_not_used: samples that were made and do not count.
    """

    def __init__(
        self,
        num_requests: int,
        most_ahead: int,
        enough: Callable[[Sequence[int]], bool],
        pairs_of: Callable[[int], Sequence[int]],
    ) -> None:
        self._num_requests, self._most_ahead = num_requests, most_ahead
        self._enough, self._pairs_of = enough, pairs_of
        self._judged: dict[int, Sequence[int]] = {}
        self._pairs: list[int] = []
        self._num_in_turn = 0
        self.end: int | None = None
        self.num_not_used = 0

    def judged(self, number: int) -> None:
        """Request `number` has its scores."""
        if self.end is not None:
            return
        self._judged[number] = self._pairs_of(number)
        while self.end is None and self._num_in_turn in self._judged:
            self._pairs += self._judged.pop(self._num_in_turn)
            self._num_in_turn += 1
            if self._num_in_turn == self._num_requests or self._enough(self._pairs):
                self.end = self._num_in_turn

    def may_begin(self, number: int) -> bool:
        """Whether request `number` may be needed, and is near enough."""
        return self.end is None and number < self._num_in_turn + self._most_ahead

    def leaves_out(self, number: int) -> bool:
        """Whether it is known that request `number` does not count."""
        return self.end is not None and number >= self.end
