"""One global batch, however it is laid out: 1 x 8 = 8 x 1 = 2 ranks x 4, for every objective and the modifiers.

The policy is not the reference, so that no log-ratio is 0; the batch of an objective on labels holds both labels.
"""

import numpy as np
import pytest

from raydpo.config import OBJECTIVES
from raydpo.models.blend import blend
from tests.train import jobs

SECTIONS = [{"name": name} for name in OBJECTIVES] + [
    {"name": "dpo", "ld_alpha": 0.5},
    {"name": "hinge", "length_normalized": True},
    {"name": "ipo", "wpo": True},
    {"name": "aot", "ld_alpha": 0.0, "beta": 0.1},  # of equal lengths, margins of policy and reference differ in order
    {"name": "dpo", "weight": 0.8, "plus": [{"name": "bco_pair", "weight": 0.2}, "sft", "nll", "aot_unpaired"]},
    {"name": "kto", "plus": [{"name": "bco", "weight": 0.5}]},
]
LAYOUTS = {"1 x 8": (1, 10**6), "8 x 1": (1, 1), "2 ranks x 4": (2, 10**6), "2 ranks, 4 x 1": (2, 1)}


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
    """(data, layout) -> (loss, gradient) of each section on such data."""
    results = {}
    for data, name in (("pairs", "dpo"), ("labels", "kto")):
        sections = [section for section in SECTIONS if data_of(section) == data]
        for layout, (num_ranks, tokens) in LAYOUTS.items():
            spec = runs.spec(objective=name, policy=near, global_batch_pairs=8, tokens_per_microbatch=tokens)
            ranks = gangs[num_ranks].run(jobs.gradients, spec, 1, sections)
            for section, result in zip(sections, ranks[0], strict=True):
                results[title(section), layout] = result
    return results


def norm(gradient):
    return np.sqrt(sum((value.astype(np.float64) ** 2).sum() for value in gradient.values()))


@pytest.mark.parametrize("section", SECTIONS, ids=title)
@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "1 x 8"])
def test_layouts_give_one_loss_and_one_gradient(found, section, layout):
    loss, gradient = found[title(section), "1 x 8"]
    other, its = found[title(section), layout]
    assert other == pytest.approx(loss, rel=2e-6, abs=1e-7)
    difference = {name: gradient[name] - its[name] for name in gradient}
    assert norm(gradient) > 0
    assert norm(difference) <= 2e-5 * norm(gradient)
