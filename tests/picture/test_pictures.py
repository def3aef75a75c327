"""The picture of each objective: JavaScript that was recorded, against Python that trains, at random places."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import raydpo
from raydpo.config import OBJECTIVES
from raydpo.objectives import ObjectiveInput, make_objective
from raydpo.picture import made
from raydpo.picture.controls import Picture, pictures
from raydpo.picture.page import page
from raydpo.picture.recorded import record

NUM_PLACES = 25
ALL = pictures()
PAGE = Path(raydpo.__file__).parents[1] / "docs/explorer.html"


def test_every_objective_has_a_picture() -> None:
    assert list(dict.fromkeys(each.name for each in ALL)) == list(OBJECTIVES)
    for each in ALL:
        answers = [s.name for s in each.sliders][: OBJECTIVES[each.name].num_answers]
        assert {"loss", *(f"d_{name}" for name in answers)} <= set(each.graph.results)
        assert set(OBJECTIVES[each.name].parameters) <= {s.name for s in each.sliders} | {
            each.variant.partition(" =")[0]
        }


def test_what_lies_in_the_package_is_what_is_made_now() -> None:
    assert made.PATH.read_text() == made.source(), "run: python -m raydpo.picture.made"
    assert PAGE.read_text() == page(), "run: raydpo objectives --html > docs/explorer.html"


def test_a_page_needs_no_network() -> None:
    assert "://" not in page().replace("http://www.w3.org/2000/svg", "")
    assert len(page()) < 200_000
    assert '["dpo", "kto"].includes' in page(["kto", "dpo"])


def test_a_number_that_python_reads_is_an_error() -> None:
    def branching(numbers: Any) -> Any:
        return {"loss": numbers["x"] * 2 if numbers["x"] > 0 else -numbers["x"]}

    with pytest.raises(ValueError, match="Python reads the result of gt: it cannot be moved"):
        record(branching, {"x": 1.0})


def test_an_operation_that_nobody_wrote_is_an_error() -> None:
    with pytest.raises(ValueError, match="operation erf is not in the list"):
        record(lambda numbers: {"loss": torch.erf(numbers["x"])}, {"x": 1.0})


@pytest.mark.skipif(shutil.which("node") is None, reason="the JavaScript is run by node, which is not there")
def test_javascript_says_what_python_says(tmp_path: Path) -> None:
    chance = random.Random(0)
    places = [[_place(each, chance) for _ in range(NUM_PLACES)] for each in ALL]
    script = tmp_path / "run.js"
    script.write_text(
        made.source()
        + f"const PLACES = {json.dumps(places)};\n"
        + "console.log(JSON.stringify(ALL.map((each, i) => PLACES[i].map((x) => Object.entries(each.code(x))"
        + ".map(([key, value]) => [key, String(value)])))));\n"
    )
    out = subprocess.run(["node", str(script)], capture_output=True, text=True, check=True, timeout=300).stdout
    for each, here, found in zip(ALL, places, json.loads(out), strict=True):
        for at, result in zip(here, found, strict=True):
            _compare(each, at, {key: float(value.replace("Infinity", "inf")) for key, value in result})


def _place(picture: Picture, chance: random.Random) -> dict[str, float]:
    found = {}
    for s in picture.sliders:
        value = s.low * (s.high / s.low) ** chance.random() if s.is_log else chance.uniform(s.low, s.high)
        found[s.name] = round(value) if s.is_whole else value
    if picture.name == "aot_unpaired" and not _is_of_two(found):
        return _place(picture, chance)
    return found


def _is_of_two(at: dict[str, float]) -> bool:
    """Whether in a batch of two pairs each answer has the rank of the one that it is measured against."""
    return (at["chosen"] < at["other_chosen"]) == (at["other_rejected"] < at["rejected"])


def _compare(picture: Picture, at: dict[str, float], found: dict[str, float]) -> None:
    for key, value in _expected(picture, at).items():
        assert math.isclose(found[key], value, rel_tol=1e-9, abs_tol=1e-12), (picture.name, picture.variant, key, at)
    if "probability" in found:
        margin = torch.tensor(found["margin"], dtype=torch.float64)
        assert math.isclose(found["probability"], float(torch.sigmoid(margin)), rel_tol=1e-9, abs_tol=1e-300)


def _expected(picture: Picture, at: dict[str, float]) -> dict[str, float]:
    """By the objective as training calls it: whole answers of many tokens, a batch of several examples, autograd."""
    row = OBJECTIVES[picture.name]
    names = [s.name for s in picture.sliders][: row.num_answers]
    parameters = {name: at[name] for name in row.parameters if name in at}
    if " = " in picture.variant:
        name, _, value = picture.variant.partition(" = ")
        parameters[name] = float(value)
    totals = torch.tensor([at[name] for name in names], dtype=torch.float64, requires_grad=True)
    lengths = [int(at.get(f"{name}_tokens", 3)) for name in names]
    sequences = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(lengths))
    nats = totals[sequences] / torch.tensor(lengths, dtype=torch.float64)[sequences]
    batch, positions = _observed(picture, at)
    output = make_objective(picture.name, parameters)(
        ObjectiveInput(
            policy_nats=nats,
            reference_nats=torch.zeros_like(nats),
            sequences=sequences,
            answers=torch.arange(len(names))[None],
            num_sequences=len(names),
            labels=torch.tensor([picture.variant == "desirable"]) if row.data == "labels" else None,
            batch=batch,
            positions=positions,
        )
    )
    value, count = output.metrics["loss"]
    (gradient,) = torch.autograd.grad(output.loss_sum / count, totals)
    expected = {"loss": float(value / count)}
    expected |= {f"d_{name}": float(each) for name, each in zip(names, gradient, strict=True)}
    if "rewards/margins" in output.metrics:
        expected["margin"] = float(output.metrics["rewards/margins"][0])
    return expected


def _observed(picture: Picture, at: dict[str, float]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A global batch that has what the sliders say, the example of the picture in its first row."""
    rows: list[list[float]] | None = None
    if picture.name == "kto":
        rows = [[at["mismatched"] - 1], [at["mismatched"] + 1]]
    elif picture.name == "bco":
        sides = ((at["desirable_mean"], 1.0), (at["undesirable_mean"], 0.0))
        rows = [[mean + off, side] for mean, side in sides for off in (-1, 1)]
    elif picture.name == "aot":  # the partner's reference margin is 0, and a has the rank that 0 has
        a = at["chosen"] - at["rejected"] + at["shift"]
        rows = [[a, at["shift"]], [a + math.copysign(1, at["shift"]), 0.0]]
    elif picture.name == "aot_unpaired":
        rows = [[at["chosen"], at["rejected"]], [at["other_chosen"], at["other_rejected"]]]
    return (None, None) if rows is None else (torch.tensor(rows, dtype=torch.float64), torch.tensor([0]))
