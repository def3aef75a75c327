"""`num_workers` as a number or as a range, for trainers and for reference workers."""

from __future__ import annotations

from typing import Any

import pytest

from raydpo.config import Config
from raydpo.config.sections import ReferenceSection, TrainSection
from raydpo.driver.actors import demand
from raydpo.errors import ConfigError


@pytest.mark.parametrize("section", [TrainSection, ReferenceSection])
@pytest.mark.parametrize("wanted", [0, -1, {"min": 0, "max": 2}, {"min": 3, "max": 2}, {"max": 2}, {"min": 1}], ids=str)
def test_a_range_that_is_none_is_refused(section: type[Any], wanted: Any) -> None:
    with pytest.raises(ConfigError, match=r"num_workers: .*allowed: a number from 1 on, or \{min: 1, max: 4\}"):
        section(num_workers=wanted)


def test_a_session_needs_room_for_the_fewest() -> None:
    sections = {"run": {"dir": "r"}, "model": {"path": "m"}}
    config = Config.model_validate({**sections, "reference": {"num_workers": {"min": 2, "max": 5}}})
    assert config.reference.workers == (2, 5)
    assert demand(config, "reference").workers == 2
    assert Config.model_validate({**sections, "reference": {"num_workers": 3}}).reference.workers == (3, 3)
