"""A sequence whose items are made when somebody asks for one, each time anew, so that nobody holds all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class OnDemand(Sequence[T]):
    """num_items: how many there are. make: number of an item, from 0 -> the item."""

    def __init__(self, num_items: int, make: Callable[[int], T]) -> None:
        self._num_items, self._make = num_items, make

    def __len__(self) -> int:
        return self._num_items

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> list[T]: ...
    def __getitem__(self, number: int | slice) -> T | list[T]:
        if isinstance(number, slice):
            return [self._make(each) for each in range(self._num_items)[number]]
        return self._make(range(self._num_items)[number])
