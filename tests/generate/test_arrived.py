"""An adapter that came alone: merged where it arrives, into the policy that it was trained from, push after push."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from raydpo.errors import ConfigError, WorkerError
from raydpo.generate import EngineSpec, Generator
from raydpo.generate import arrived as arriving
from raydpo.generate.arrived import arrived
from raydpo.generate.mapped_weights import mapped
from raydpo.models.hollow import WholeNeeded
from raydpo.schema.samples import Score, Scored, TakeWeights
from tests.generate.adapter_alone import COPIED, factors_of, merged_by_hand, pushed_adapter

ASKED = Score((((0, 65, 66), (5, 6, 7)), ((0,), (9, 200))))


def score(generator: Generator) -> Any:
    found = generator(ASKED)
    assert isinstance(found, Scored)
    return found.nats, found.top_ids


def merged_folder(start: Path, seed: int, out: Path) -> Path:
    shutil.copytree(start, out)
    save_file(merged_by_hand(start, seed), out / "model.safetensors", {"format": "pt"})
    return out


def test_push_after_push_a_generator_says_what_one_says_that_reads_the_merged_folder(old: Path, tmp_path: Path) -> None:
    generator, start, said = Generator(EngineSpec(str(old))), old, []
    for version in (1, 2, 3):
        with pushed_adapter(start, version) as shared:
            generator(TakeWeights(shared, version))
        start = merged_folder(start, version, tmp_path / str(version))
        said.append(score(generator))
        assert said[-1] == score(Generator(EngineSpec(str(start)))), "to the last bit"
    assert len({str(each) for each in said}) == 3


def test_what_the_generator_holds_does_not_matter(old: Path, tmp_path: Path) -> None:
    """One that sat out a push, because it was at work, gets the next one right."""
    late, start = Generator(EngineSpec(str(old))), merged_folder(old, 1, tmp_path / "1")
    with pushed_adapter(start, 2) as shared:
        late(TakeWeights(shared, 2))
    assert score(late) == score(Generator(EngineSpec(str(merged_folder(start, 2, tmp_path / "2")))))


def test_a_start_that_cannot_be_read_in_parts_is_read_whole(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise WholeNeeded("transformers computes one of its weights")

    def brought() -> dict[str, torch.Tensor]:
        with pushed_adapter(old, 1) as shared:
            weights = mapped(shared)
            assert weights is not None
            return {name: weight.clone() for part in arrived(weights) for name, weight in part.items()}

    in_parts = brought()
    monkeypatch.setattr(arriving, "hollow_model", refused)
    whole, expected = brought(), merged_by_hand(old, 1)
    assert in_parts.keys() == whole.keys() == {*factors_of(old, 1), COPIED}
    for name, weight in in_parts.items():
        assert torch.equal(weight, whole[name])
        assert torch.equal(weight, expected[name])


def test_without_its_start_an_adapter_is_refused_and_the_policy_is_of_no_use(old: Path, tmp_path: Path) -> None:
    generator, start = Generator(EngineSpec(str(old))), tmp_path / "start"
    shutil.copytree(old, start)
    with pushed_adapter(start, 1) as shared:
        shutil.rmtree(start)
        with pytest.raises((ConfigError, OSError)):
            generator(TakeWeights(shared, 1))
    with pytest.raises(WorkerError, match="a load failed"):
        score(generator)
