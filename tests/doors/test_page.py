"""The page says of every door what it is, with an example that a person reads at a glance; and the config says the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from raydpo.config import Config, doors
from raydpo.config.objective_door import DOOR as OBJECTIVE
from raydpo.config.outside import Door
from raydpo.config.round_sections import KINDS
from tests.doors.conftest import PAGE

DOORS = [OBJECTIVE, KINDS, *(each for each in vars(doors).values() if isinstance(each, Door))]


def test_every_door_has_an_example_of_less_than_40_lines(examples: dict[str, str]) -> None:
    assert set(examples) == {"losses", "rows", "judges", "pairs", "sinks", "engine", "schedules"}
    assert all(len(text.splitlines()) < 40 for text in examples.values())
    assert all(f"`{door.key}`" in PAGE for door in DOORS)


def test_every_name_of_ours_leads_somewhere() -> None:
    for door in DOORS:
        for name, home in door.ours.items():
            if home:
                found = door.resolve(name)
                assert all(hasattr(found, needed) for needed in door.has if door is not KINDS), (door.key, name)


def test_the_config_of_every_example_loads(examples: dict[str, str]) -> None:
    lines = [line for block in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.S | re.M) for line in block.splitlines()]
    assert len(lines) == 9
    for line in lines:
        given: dict[str, Any] = yaml.safe_load(line)
        if "rounds" in given:
            given["rounds"] |= {"prompts": "p.jsonl", "reference": "initial"}
        config = Config.model_validate({"run": {"dir": "a"}, "model": {"path": "b"}, **given})
        (section,) = given
        assert "my_pkg." in str(getattr(config, section)), line


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.key)
def test_a_name_that_is_none_is_an_error_of_its_key(door: Door, examples: dict[str, str]) -> None:
    for name, said in (("no.such:thing", "no.such could not be imported"), ("my_pkg.rows:fit", "has no fit")):
        (problem,) = door.problems(name)
        assert problem.startswith(f"{door.key}: ")
        assert said in problem
