"""The items of one run of a pool: which wait, as what each is tried, and how many actors they have cost.

Comes in: items, and what became of the actors that had them. Goes out: the next item, or that a death was one too many.
Decision: an item may be made when it is asked for, and only one that was changed is kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from raydpo.errors import Cause

_SHOWN_CHARACTERS = 160
_DEATHS_UNTIL_ALONE = 2


class PoolItems:
    """items: as given. max_retries: how often one may lose its actor. lighter: an item as it is tried with less memory.
    are_there: whether all wait now, or each once it is `put`.

    num_unfinished: items without a result that somebody still waits for.
    """

    def __init__(
        self,
        items: Sequence[Any],
        max_retries: int,
        lighter: Callable[[Any], Any] | None,
        *,
        are_there: bool = True,
    ) -> None:
        self._items, self._max_retries, self._lighter = items, max_retries, lighter
        self._queue = deque(range(len(items)) if are_there else ())
        self._changed: dict[int, Any] = {}
        self._deaths_of_item: dict[int, int] = {}
        self._deaths_at_start = 0
        self.num_unfinished = len(self._queue)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def at(self, index: int) -> Any:
        """An item as it is tried now. A sequence may make it when it is asked."""
        return self._changed[index] if index in self._changed else self._items[index]

    def put(self, index: int) -> None:
        """One more waits."""
        self._queue.append(index)
        self.num_unfinished += 1

    def take(self) -> int:
        """The next one that waits."""
        return self._queue.popleft()

    def finish_one(self) -> None:
        """An item has its result; whatever killed actors at their start is over."""
        self.num_unfinished -= 1
        self._deaths_at_start = 0

    def drop_waiting(self) -> None:
        """Those that wait are not wanted any more."""
        self.num_unfinished -= len(self._queue)
        self._queue.clear()

    def put_back(self, indices: Sequence[int]) -> None:
        """Items are the next again."""
        self._queue.extendleft(reversed(indices))

    def goes_beside(self, others: Sequence[int]) -> bool:
        """Whether the next item may be worked on beside `others`. One that has lost two actors is tried alone, so that a third
        death is held against nothing else."""
        both = (*others, self._queue[0])
        return not others or max(self._deaths_of_item.get(index, 0) for index in both) < _DEATHS_UNTIL_ALONE

    def survives_start(self) -> bool:
        """Note a death before an item; whether another actor may be tried."""
        self._deaths_at_start += 1
        return self._deaths_at_start <= self._max_retries

    def retry(self, indices: Sequence[int], cause: Cause) -> tuple[int, str]:
        """Note a death over items: (most deaths over one, what becomes of them in words; empty if that was one too many)."""
        for index in indices:
            self._deaths_of_item[index] = self._deaths_of_item.get(index, 0) + 1
        deaths = max(self._deaths_of_item[index] for index in indices)
        if deaths > self._max_retries:
            return deaths, ""
        self.put_back(indices)
        text = f"{gone_on(indices)} (retry {deaths} of {self._max_retries})."
        lighter = [index for index in indices if _may_be_memory(cause, self._deaths_of_item[index])]
        if self._lighter is not None and lighter:
            self._changed |= {index: self._lighter(self.at(index)) for index in lighter}
            text += " It is tried with less memory." if len(indices) == 1 else " They are tried with less memory."
        return deaths, text

    def shown(self, indices: Sequence[int]) -> str:
        """Items for a message."""
        if len(indices) > 1:
            return f"items {', '.join(map(str, sorted(indices)))} of {len(self)}"
        text = repr(self.at(indices[0]))
        text = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
        return f"item {indices[0]} of {len(self)} ({text})"


def gone_on(indices: Sequence[int]) -> str:
    """What becomes of the items of a dead actor, without a full stop."""
    return "The item goes to another one" if len(indices) == 1 else f"Its {len(indices)} items go to others"


def _may_be_memory(cause: Cause, deaths: int) -> bool:
    return cause is Cause.OUT_OF_HOST_MEMORY or (cause is Cause.KILLED and deaths > 1)
