"""Weights in a file: what a generator maps, what an engine hands to its children, and what is gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raydpo.artifacts import shared_files
from raydpo.errors import WorkerError
from raydpo.generate import EngineSpec, Generator, PolicyLoaded
from raydpo.generate.mapped_weights import handed_over, mapped
from raydpo.schema.samples import DropWeights, Generate, Generated, LoadFolder, Sampling, TakeWeights

WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3).t(),
    "b": torch.ones(2, dtype=torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
}
ASKED = Generate(
    prompts=((0, 65), (0, 66)), sampling=Sampling(num_answers=1, max_new_tokens=6, greedy=True), seed=3, version=1
)


def test_weights_are_handed_over_in_a_file_that_is_gone_afterwards() -> None:
    with handed_over(WEIGHTS) as shared:
        found = mapped(shared)
        assert Path(shared.path).is_file()
    assert not Path(shared.path).exists()
    assert found is not None
    assert {name: (weight.dtype, weight.shape) for name, weight in found.items()} == {
        name: (weight.dtype, weight.shape) for name, weight in WEIGHTS.items()
    }
    assert mapped(shared) is None


def test_what_is_mapped_is_what_was_written_and_its_own() -> None:
    with handed_over(WEIGHTS) as shared:
        found, other = mapped(shared), mapped(shared)
        assert found is not None
        assert other is not None
        assert all(torch.equal(found[name], weight) for name, weight in WEIGHTS.items())
        found["a"].zero_()
        assert torch.equal(other["a"], WEIGHTS["a"])


def test_weights_that_lie_in_a_file_are_handed_on_in_it_and_others_in_a_new_one() -> None:
    with handed_over(WEIGHTS) as first:
        source = mapped(first)
        assert source is not None
        renamed = {"model.a": source["a"], "half": source["a"][1:]}
        with handed_over(renamed, source) as again:
            assert again.path == first.path
            found = mapped(again)
            assert found is not None
            assert torch.equal(found["half"], WEIGHTS["a"][1:])
        assert Path(first.path).is_file(), "it belongs to the push"
        for copied in ({"a": source["a"], "b": WEIGHTS["b"]}, {"turned": source["a"].t()}):
            with handed_over(copied, source) as fresh:
                assert fresh.path != first.path
                there = mapped(fresh)
                assert there is not None
                assert all(torch.equal(there[name], weight) for name, weight in copied.items())


def shared_of(folder: Path, **more: Any) -> Any:
    return handed_over({**load_file(folder / "model.safetensors"), **more})


def answers(generator: Generator, version: int = 1) -> Any:
    found = generator(Generate(ASKED.prompts, ASKED.sampling, 3, version))
    assert isinstance(found, Generated)
    return found.answers


def test_a_generator_takes_weights_from_a_file_and_answers_as_the_new_model(old: Path, new: Path) -> None:
    generator = Generator(EngineSpec(str(old)))
    before = answers(generator, 0)
    with shared_of(new) as shared:
        loaded = generator(TakeWeights(shared, 1))
    assert isinstance(loaded, PolicyLoaded)
    assert (loaded.version, loaded.is_whole) == (1, True)
    assert answers(generator) == answers(Generator(EngineSpec(str(new), version=1))) != before


def test_a_file_of_another_node_leaves_the_policy_as_it_is_until_its_folder_is_read(old: Path, new: Path) -> None:
    generator, there = Generator(EngineSpec(str(old))), Generator(EngineSpec(str(old)))
    with shared_of(new) as shared:
        assert there(TakeWeights(shared, 1)) is not None
    loaded = generator(TakeWeights(shared, 1))
    assert isinstance(loaded, PolicyLoaded)
    assert (loaded.version, loaded.is_whole) == (1, False)
    answers(generator, 0)
    with pytest.raises(WorkerError, match=r"version 1 .* version 0"):
        answers(generator)
    generator(LoadFolder(str(new), 1))
    there(LoadFolder("/nowhere", 1))  # it holds that version: nothing is read
    assert answers(generator) == answers(there)


def test_weights_that_do_not_fit_are_named_and_the_generator_is_of_no_use_then(old: Path, new: Path) -> None:
    generator = Generator(EngineSpec(str(old)))
    with shared_of(new, more=torch.zeros(2)) as shared, pytest.raises(WorkerError, match=r"more \(not in the model\)"):
        generator(TakeWeights(shared, 1))
    with pytest.raises(WorkerError, match="a load failed"):
        answers(generator, 0)


def test_a_generator_removes_the_file_where_the_driver_cannot(old: Path, new: Path) -> None:
    generator = Generator(EngineSpec(str(old)))
    file = shared_files.create(4096)
    with shared_of(new) as shared:
        dropped = DropWeights(type(shared)(str(file.path), file.key, (), 4096))
        assert generator(dropped) is True
        assert generator(dropped) is False
    assert not file.path.exists()
    file.release()
