"""How full a queue was: means over time and at most, on a clock that is set."""

from __future__ import annotations

import pytest

from raydpo.driver.queue_depth import QueueDepth


class Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def test_each_number_holds_until_the_next_one() -> None:
    clock = Clock()
    depth = QueueDepth(clock)
    for seconds, *numbers in ((3, 6, 2), (1, 2, 2), (4, 0, 1), (100, 0, 0), (2, 1, 1)):
        depth.seen(*numbers)
        clock.now += seconds
    depth.seen(0, 0)
    assert depth.read() == {
        "requests_waiting/mean": pytest.approx((3 * 6 + 1 * 2 + 2 * 1) / 10),
        "requests_waiting/most": 6,
        "requests_in_work/mean": pytest.approx((3 * 2 + 1 * 2 + 4 * 1 + 2 * 1) / 10),
        "requests_in_work/most": 2,
    }


def test_of_another_time_nothing_is_left() -> None:
    clock = Clock()
    depth = QueueDepth(clock)
    assert depth.read() == {}, "there was no request"
    depth.seen(9, 9)
    clock.now += 1
    depth.begin()
    assert depth.read() == {}
    depth.seen(1, 0)
    clock.now += 1
    depth.seen(0, 0)
    assert depth.read()["requests_waiting/most"] == 1
