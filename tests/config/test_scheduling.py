"""The section `scheduling` of every role: what Ray would refuse, and what the local runtime or a pool cannot do."""

from __future__ import annotations

from typing import Any

import pytest

from raydpo.config import Config
from raydpo.config.cross_checks import cross_checks
from raydpo.config.scheduling_section import SchedulingSection
from raydpo.driver.actors import demand
from raydpo.errors import ConfigError
from raydpo.runtime import Placement

SECTIONS: dict[str, Any] = {"run": {"dir": "r"}, "model": {"path": "m"}, "data": {"train": ["a.jsonl"]}}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"resources": {"GPU": 1}}, "resources: GPU has a key of its own; set gpus_per_worker"),
        ({"resources": {"nvme": 1.5}}, "resources: nvme: 1.5; a part of one"),
        ({"resources": {"nvme": 0}}, "resources: nvme: 0; a part of one"),
        ({"label_selector": {"-zone": "a"}}, "label_selector: '-zone' is no key of a label"),
        ({"label_selector": {"zone": "in()"}}, r"label_selector: zone: 'in\(\)'; allowed"),
        ({"strategy": "pack"}, "strategy"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_ray_would_refuse_is_refused_early(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SchedulingSection(**wrong)


def test_values_that_ray_reads_are_its_own() -> None:
    label_utils = pytest.importorskip("ray._private.label_utils")
    for value in ("a", "!a", "in(a, b)", "!in(a,b)", "in()", "!!a", "-a", "a_", "in(a"):
        ours = not _problems(label_selector={"zone": value})
        assert ours == (label_utils.validate_label_selector({"zone": value}) is None), value


def _problems(**keys: Any) -> list[str]:
    try:
        SchedulingSection(**keys)
    except ConfigError as error:
        return error.problems
    return []


@pytest.mark.parametrize("role", ["train", "reference", "generate"])
def test_the_local_runtime_has_no_nodes(role: str) -> None:
    wanted = {role: {"scheduling": {"strategy": "SPREAD", "resources": {"nvme": 0.5}}}}
    assert cross_checks(Config.model_validate({**SECTIONS, **wanted})) == []
    (found,) = cross_checks(Config.model_validate({**SECTIONS, **wanted, "run": {"dir": "r", "runtime": "local"}}))
    assert f"{role}.scheduling sets strategy, resources, and run.runtime: local has one machine" in found


def test_strict_strategies_are_for_ranks_that_start_together() -> None:
    strict = {"scheduling": {"strategy": "STRICT_SPREAD"}}
    assert cross_checks(Config.model_validate({**SECTIONS, "train": strict})) == []
    (found,) = cross_checks(Config.model_validate({**SECTIONS, "reference": strict}))
    assert found.startswith("reference.scheduling.strategy: STRICT_SPREAD; PACK and SPREAD are allowed.")


def test_a_gpu_is_shared_or_whole() -> None:
    assert cross_checks(Config.model_validate({**SECTIONS, "reference": {"gpus_per_worker": 0.25}})) == []
    config = Config.model_validate({**SECTIONS, "generate": {"engine": "vllm", "gpus_per_worker": 1.5}})
    assert "generate.gpus_per_worker: 1.5; a part of one GPU (0.5) or a whole number is allowed." in cross_checks(
        config
    )


def test_a_demand_carries_the_placement_of_its_section() -> None:
    wanted = {"strategy": "STRICT_PACK", "resources": {"nvme": 1}, "label_selector": {"zone": "a"}}
    config = Config.model_validate({**SECTIONS, "train": {"num_workers": 2, "scheduling": wanted}})
    assert demand(config, "train").placement == Placement("STRICT_PACK", {"nvme": 1}, {"zone": "a"})
    assert demand(config, "train").each == {"CPU": 1.0, "nvme": 1}
