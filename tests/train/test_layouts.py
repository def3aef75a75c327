"""One global batch, however it is laid out: 1 x 8 = 8 x 1 = 2 ranks x 4 and uneven ones, for every objective and the modifiers.

The policy is not the reference, so that no log-ratio is 0; the batch of an objective on labels holds both labels.
"""

from typing import NamedTuple

import numpy as np
import pytest

from raydpo.config import OBJECTIVES
from raydpo.models.blend import blend
from tests.train import jobs

pytestmark = pytest.mark.slow

SECTIONS = [{"name": name} for name in OBJECTIVES] + [
    {"name": "dpo", "ld_alpha": 0.5},
    {"name": "hinge", "length_normalized": True},
    {"name": "ipo", "wpo": True},
    {"name": "aot", "ld_alpha": 0.0, "beta": 0.1},  # of equal lengths, margins of policy and reference differ in order
    {"name": "dpo", "weight": 0.8, "plus": [{"name": "bco_pair", "weight": 0.2}, "sft", "nll", "aot_unpaired"]},
    {"name": "kto", "plus": [{"name": "bco", "weight": 0.5}]},
]
WHOLE, SOME, SINGLE = 10**6, 500, 1
"""Tokens a micro-batch: for all examples, for some, for one."""


class Layout(NamedTuple):
    num_ranks: int
    tokens: int
    batch: int = 8


LAYOUTS = {
    "1 x 8": Layout(1, WHOLE),
    "8 x 1": Layout(1, SINGLE),
    "uneven": Layout(1, SOME),
    "2 ranks x 4": Layout(2, WHOLE),
    "2 ranks, 4 x 1": Layout(2, SINGLE),
    "2 ranks, uneven": Layout(2, SOME),
    "1 x 7": Layout(1, WHOLE, 7),
    "2 ranks, 4 and 3": Layout(2, WHOLE, 7),
}
"""Sizes that differ are among them: with equal ones, a mean of means would be right by accident."""


def title(section):
    return " ".join(str(value) for value in section.values())


def data_of(section):
    return "labels" if OBJECTIVES[section["name"]].data == "labels" else "pairs"


@pytest.fixture(scope="module")
def near(world, tmp_path_factory):
    """A policy some nats away from the reference."""
    folder = tmp_path_factory.mktemp("near") / "policy"
    blend(world.policy, world.reference, 0.4, folder)
    return folder


@pytest.fixture(scope="module")
def found(runs, gangs, near):
    """(section, layout) -> what each rank says of the batch."""
    results = {}
    for data, name in (("pairs", "dpo"), ("labels", "kto")):
        sections = [section for section in SECTIONS if data_of(section) == data]
        for title_of, layout in LAYOUTS.items():
            sizes = {"global_batch_pairs": layout.batch, "tokens_per_microbatch": layout.tokens}
            spec = runs.spec(objective=name, policy=near, **sizes)
            ranks = gangs[layout.num_ranks].run(jobs.gradients, spec, 1, sections)
            for section, *said in zip(sections, *ranks, strict=True):
                results[title(section), title_of] = said
    return results


def norm(gradient):
    return np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in gradient.values()))


@pytest.mark.parametrize("section", SECTIONS, ids=title)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("1 x 8", "1 x 7")])
def test_layouts_give_one_loss_and_one_gradient(found, section, layout):
    (whole,) = found[title(section), "1 x 7" if LAYOUTS[layout].batch == 7 else "1 x 8"]
    assert norm(whole.gradient) > 0
    for rank in found[title(section), layout]:
        assert rank.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=2e-6, abs=1e-7)
        assert rank.metrics == pytest.approx(whole.metrics, rel=1e-5, abs=1e-4)
        difference = {name: whole.gradient[name] - rank.gradient[name] for name in whole.gradient}
        assert norm(difference) <= 2e-5 * norm(whole.gradient)


@pytest.mark.parametrize("section", ["dpo", "kto"])
def test_layouts_are_what_they_are_called(found, section):
    sizes = {layout: [rank.sizes for rank in found[section, layout]] for layout in LAYOUTS}
    assert sizes["1 x 8"] == [[8]]
    assert sizes["8 x 1"] == [[1] * 8]
    assert sizes["2 ranks x 4"] == [[4], [4]]
    assert sizes["2 ranks, 4 x 1"] == [[1] * 4] * 2
    assert sorted(sizes["2 ranks, 4 and 3"]) == [[3], [4]]
    assert len(set(sizes["uneven"][0])) > 1


def test_ranks_that_would_lay_out_a_batch_differently_do_not_start(runs, gangs):
    spec = runs.spec(objective="dpo")
    assert gangs[1].run(jobs.disagree, spec) == ["started"]
    for said in gangs[2].run(jobs.disagree, spec):
        assert said.startswith("ConfigError: ranks do not agree on the tokens of a micro-batch: from 500 to 501.")
