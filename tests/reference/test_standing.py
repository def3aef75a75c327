"""A worker that stands: it keeps its model while it may, exchanges it in place, and gives the values of a fresh worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raydpo.artifacts import ReferenceCache, weights_digest
from raydpo.models.pretrained import load_model, load_tokenizer
from raydpo.models.refill import is_alike, refill
from raydpo.models.resolve import ResolvedModel
from raydpo.quickstart.fresh_model import create_model
from raydpo.reference import standing
from raydpo.reference.identity import reference_identity
from raydpo.reference.plan import ShardWork, plan_shards, wanted_rows
from raydpo.reference.score import Scorer, ScorerSpec
from raydpo.reference.standing import Batch, Batches, StandingScorer
from tests.train.world import World


def spec_of(world: World, folder: Path, cache_dir: Path, dtype: str = "float32") -> ScorerSpec:
    identity = reference_identity(weights_digest(folder), world.reference, dtype, "auto", use_gpu=False)
    return ScorerSpec(ResolvedModel(folder.name, None, folder), dtype, "auto", world.data, cache_dir, identity, 1024)


def works_of(spec: ScorerSpec) -> tuple[ShardWork, ...]:
    wanted = wanted_rows(spec.data, ("eval",), 2)
    return tuple(plan_shards(wanted, ReferenceCache(spec.cache_dir, spec.identity).open(), 8))


def shards(spec: ScorerSpec) -> dict[str, bytes]:
    """By the digest of their keys; the rest of a name is that of the values."""
    folder = ReferenceCache(spec.cache_dir, spec.identity).folder
    return {path.name.split("-")[0]: path.read_bytes() for path in folder.glob("shards/*.arrow")}


def by_fresh_worker(spec: ScorerSpec, cache_dir: Path) -> dict[str, bytes]:
    spec = replace(spec, cache_dir=cache_dir)
    Scorer(spec).score_group(works_of(spec))
    return shards(spec)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_comes_and_goes_in_place_and_values_are_a_fresh_workers(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    loads: list[str] = []

    def counted(*given: Any) -> Any:
        loads.append(given[0].name)
        return load_model(*given)

    monkeypatch.setattr("raydpo.reference.held.load_model", counted)
    scorer, came = StandingScorer(), []
    order = [world.reference, world.reference, world.policy, world.reference]
    specs = [spec_of(world, folder, tmp_path / f"{number}", dtype) for number, folder in enumerate(order)]
    for spec in specs:
        done = scorer(Batch(works_of(spec), spec))
        came.append(done[0].came)
        assert [shard.came for shard in done[1:]] == [""] * (len(done) - 1)
        assert len(done) > 1
    assert came == ["", "", "in place", "in place"]
    assert loads == ["reference"], "whole, once"
    first, second = (by_fresh_worker(spec, tmp_path / f"fresh-{spec.model.name}") for spec in specs[1:3])
    assert first.keys() == second.keys()
    assert first != second
    assert [shards(spec) for spec in specs] == [first, first, second, first]


def test_a_batch_tells_where_its_rows_are_and_go(world: World, tmp_path: Path) -> None:
    """Two specs of one model differ in folders and in how rows are cut."""
    first, scorer = spec_of(world, world.reference, tmp_path / "first"), StandingScorer()
    scorer(Batch(works_of(first), first))
    second = replace(first, cache_dir=tmp_path / "second", tokens_per_batch=64)
    batches = Batches([works_of(second)], second)
    done = scorer(batches[0])
    assert len(batches) == 1
    assert shards(second) == by_fresh_worker(second, tmp_path / "fresh")
    assert sum(shard.forwards for shard in done) > len(done), "cut by the second spec"


@pytest.mark.parametrize("why", ["another shape", "no memory"])
def test_what_does_not_come_in_place_is_loaded_anew(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    other = world.policy
    if why == "another shape":
        other = tmp_path / "other"
        shape = {"hidden_size": 32, "num_layers": 3, "num_heads": 4, "intermediate_size": 48, "max_positions": 512}
        create_model(other, load_tokenizer(world.reference), seed=4, **shape)
    else:
        monkeypatch.setattr(standing, "free_bytes", lambda device: 1000)
    first, second = (spec_of(world, folder, tmp_path / folder.name) for folder in (world.reference, other))
    scorer = StandingScorer()
    scorer(Batch(works_of(first), first))
    assert scorer(Batch(works_of(second), second))[0].came == "anew"
    assert shards(second) == by_fresh_worker(second, tmp_path / "fresh")


def test_a_model_that_cannot_be_loaded_leaves_none_behind(world: World, tmp_path: Path) -> None:
    first = spec_of(world, world.reference, tmp_path / "cache")
    scorer = StandingScorer()
    scorer(Batch(works_of(first), first))
    broken = replace(first, identity=replace(first.identity, weights="other"))
    broken = replace(broken, model=ResolvedModel("gone", None, tmp_path / "gone"))
    with pytest.raises(Exception, match="gone"):
        scorer(Batch(works_of(first), broken))
    again = replace(first, cache_dir=tmp_path / "again")
    assert scorer(Batch(works_of(again), again))[0].came == "", "it is the first one again"
    assert shards(again) == shards(first)


def test_a_refilled_model_has_the_weights_and_the_attention_of_a_fresh_one(world: World) -> None:
    model, fresh = (load_model(folder, "float32", "auto") for folder in (world.reference, world.policy))
    loaded = fresh.config._attn_implementation
    model.set_attn_implementation("eager")
    assert is_alike(model, fresh)
    refill(model, fresh)
    assert model.config._attn_implementation == loaded
    assert all(bool((tensor == fresh.state_dict()[name]).all()) for name, tensor in model.state_dict().items())
    assert not is_alike(model, load_model(world.policy, "bfloat16", "auto"))
    fresh.config.rope_parameters = {**(fresh.config.rope_parameters or {}), "rope_theta": 5.0}
    assert not is_alike(model, fresh), "the same shapes and another function"
