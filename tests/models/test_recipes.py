"""Weights that transformers makes out of several tensors, or turns, read in ranges: equal to its own conversions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import conversion_mapping
from transformers.core_model_loading import WeightConverter

from raydpo.models.recipes import Recording
from raydpo.models.slices import SliceReader, places_in

_HEADS = SimpleNamespace(num_attention_heads=2)
_CONFIG = SimpleNamespace(num_attention_heads=2, vision_config=_HEADS)


def conversions() -> dict[str, WeightConverter]:
    """One of every kind that transformers has: operations, number of patterns read and made."""
    families = {*conversion_mapping._build_checkpoint_conversion_mapping()}
    found: dict[str, WeightConverter] = {}
    for family in sorted(families):
        for each in conversion_mapping.get_checkpoint_conversion_mapping(family):
            if isinstance(each, WeightConverter):
                ends = f"{len(each.source_patterns)} to {len(each.target_patterns)}"
                found.setdefault(f"{' '.join(map(repr, each.operations))} {ends}", each)
    return found


class Turned:
    """A model whose every weight has the other of the two shapes that a matrix of an expert may have."""

    def get_parameter(self, _: str) -> torch.Tensor:
        return torch.empty(4, 12, 8)


def sources(converter: WeightConverter) -> Iterator[tuple[str, list[torch.Tensor]]]:
    names = {type(each).__name__ for each in converter.operations}
    dims = {getattr(each, name, 0) for each in converter.operations for name in ("dim", "dim0", "dim1")}
    for pattern in converter.source_patterns:
        is_list = bool(names & {"MergeModulelist", "ErnieFuseAndSplitTextVisionExperts"})
        has_experts = not is_list and (2 in dims or (1 in dims and "Interleave" in names))
        shape = (4, 8, 12) if has_experts else (12, 8)
        yield pattern, [torch.randn(shape) for _ in range(4 if is_list else 1)]


def converted(converter: WeightConverter, tensors: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
    for pattern, found in tensors.items():
        for number, tensor in enumerate(found):
            converter.add_tensor(converter.target_patterns[0], f"{pattern} {number}", pattern, tensor)
    return converter.convert(converter.target_patterns[0], model=Turned(), config=_CONFIG)


@pytest.mark.parametrize("kind", sorted(conversions()))
def test_every_conversion_is_read_in_ranges_and_every_element_once(kind, tmp_path):
    torch.manual_seed(0)
    real = dict(sources(conversions()[kind]))
    expected = converted(conversions()[kind], {pattern: list(found) for pattern, found in real.items()})
    places = stored(tmp_path, {f"{p} {n}": tensor for p, found in real.items() for n, tensor in enumerate(found)})
    remembered, watched = {}, {}
    for pattern, found in real.items():
        watched[pattern] = []
        for number, tensor in enumerate(found):
            empty = torch.empty(tensor.shape, device="meta")
            remembered[empty.untyped_storage()._cdata] = (empty, places[f"{pattern} {number}"])
            watched[pattern].append(empty)
    with Recording(remembered) as recording:
        made = converted(conversions()[kind], watched)
    assert made.keys() == expected.keys()
    read = 0
    for name, weight in expected.items():
        recipe = recording.recipe(made[name])
        assert recipe is not None
        assert recipe.shape == tuple(weight.shape)
        for parts in (1, 3, 7):
            reader = SliceReader()
            ranges = torch.empty(weight.numel()).tensor_split(parts)
            at = 0
            for out in ranges:
                recipe.read(reader, at, out)
                at += len(out)
            assert torch.equal(torch.cat(ranges), weight.flatten())
            read += reader.bytes_read if parts == 1 else 0
    assert read == sum(weight.nbytes for weight in expected.values())


def stored(folder: Path, tensors: dict[str, torch.Tensor]) -> Any:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return places_in(folder)


def recording_of(folder: Path, **tensors: torch.Tensor) -> tuple[Recording, dict[str, torch.Tensor]]:
    places = stored(folder, tensors)
    empty = {name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()}
    return Recording({each.untyped_storage()._cdata: (each, places[name]) for name, each in empty.items()}), empty


def test_a_rank_reads_the_experts_of_its_range_alone(tmp_path):
    gates, ups = torch.randn(8, 6, 4), torch.randn(8, 6, 4)
    named = {f"{kind}{n}": each for kind, all_ in (("g", gates), ("u", ups)) for n, each in enumerate(all_)}
    recording, empty = recording_of(tmp_path, **named)
    with recording:
        stacks = [torch.stack([empty[f"{kind}{n}"] for n in range(8)]) for kind in "gu"]
        recipe = recording.recipe(torch.cat(stacks, dim=1))
    reader, out = SliceReader(), torch.empty(2 * 48)
    recipe.read(reader, 3 * 48, out)
    assert torch.equal(out, torch.cat((gates, ups), 1).flatten()[3 * 48 : 5 * 48])
    assert reader.bytes_read == out.nbytes


def test_a_matrix_that_is_turned_is_read_an_expert_at_a_time(tmp_path):
    experts = torch.randn(8, 6, 4)
    recording, empty = recording_of(tmp_path, a=experts)
    with recording:
        recipe = recording.recipe(empty["a"].transpose(1, 2).contiguous())
    reader, out = SliceReader(), torch.empty(30)
    recipe.read(reader, 30, out)
    assert torch.equal(out, experts.transpose(1, 2).flatten()[30:60])
    assert reader.bytes_read == 2 * 24 * 4


def test_what_is_computed_or_changed_has_no_recipe(tmp_path):
    recording, empty = recording_of(tmp_path, a=torch.randn(4, 6), b=torch.randn(4, 6))
    with recording:
        assert recording.recipe(empty["a"]).name == "a"
        assert recording.recipe(empty["a"] + empty["b"]) is None
        assert recording.recipe(torch.stack([empty["a"], torch.empty(4, 6, device="meta")])) is None
        assert recording.recipe(empty["a"].clone().half()) is None
        empty["b"].mul_(2)
        assert recording.recipe(empty["b"]) is None
        assert recording.recipe(empty["b"].T.contiguous()) is None
