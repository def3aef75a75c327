"""A reference that is streamed layer by layer: the very shards of a whole one, in as few passes as the tokens allow."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from raydpo.artifacts import ReferenceCache
from raydpo.batches import lay_out
from raydpo.errors import ConfigError, OutOfMemoryError
from raydpo.models.four_bit import FourBit
from raydpo.models.pretrained import load_model
from raydpo.models.resolve import ResolvedModel
from raydpo.reference import way
from raydpo.reference.forward import cut
from raydpo.reference.held import hold
from raydpo.reference.plan import plan_shards, wanted_rows
from raydpo.reference.score import Scorer
from raydpo.reference.way import choose_way, whole_bytes

TOKENS_PER_BATCH = 300


@pytest.fixture(scope="module")
def work(world):
    spec = world.scorer_spec(world.folder / "empty")
    return plan_shards(
        wanted_rows(world.data, ("train", "eval"), 2), ReferenceCache(spec.cache_dir, spec.identity).open(), 32
    )


def spec_of(world, cache_dir, dtype="float32", tokens_per_pass=1200, weights="streamed"):
    spec = world.scorer_spec(cache_dir, dtype, tokens_per_batch=TOKENS_PER_BATCH)
    return replace(spec, weights=weights, tokens_per_pass=tokens_per_pass)


def sizes_of_batches(scorer, works):
    """Tokens of each batch, as the model reads it."""
    for each in (scorer.rows.of(work, TOKENS_PER_BATCH) for work in works):
        for start, stop in cut(each.rows, TOKENS_PER_BATCH, scorer.layout):
            yield lay_out(each.rows[start:stop], scorer.layout).input_ids.numel()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shards_are_those_of_a_whole_model_to_the_last_byte(world, work, tmp_path, dtype):
    for weights in ("whole", "streamed"):
        Scorer(spec_of(world, tmp_path / weights, dtype, weights=weights)).score_group(list(work))
    whole, streamed = (
        {path.name: path for path in (tmp_path / weights).rglob("*.arrow")} for weights in ("whole", "streamed")
    )
    assert whole.keys() == streamed.keys()
    assert len(whole) == len(work) > 2
    assert all(streamed[name].read_bytes() == path.read_bytes() for name, path in whole.items())
    caches = [
        ReferenceCache(tmp_path / weights, spec_of(world, tmp_path, dtype).identity).open()
        for weights in ("whole", "streamed")
    ]
    keys = [key for shard in work for key in shard.keys]
    for one, two in zip(*(cache.lookup(keys) for cache in caches), strict=True):
        assert np.array_equal(one, two)
    assert np.ptp(np.concatenate(caches[0].lookup(keys))) > 1


@pytest.mark.parametrize("tokens_per_pass", [1, 700, 1500, 10**6])
def test_passes_and_bytes_are_counted_and_as_few_as_the_budget_allows(world, work, tmp_path, tokens_per_pass):
    scorer = Scorer(spec_of(world, tmp_path, tokens_per_pass=tokens_per_pass))
    weights, started = scorer._stream.weights, scorer._stream.passes
    assert started == 3, "the head, packed and plain answers"
    layers = sum(weights.layer_bytes(number) for number in range(len(weights.layers)))
    before = weights.files.bytes_read
    assert before == weights.stays_bytes + started * layers
    done, sizes = scorer.score_group(list(work)), list(sizes_of_batches(scorer, work))
    passes = scorer._stream.passes - started
    assert sum(shard.forwards for shard in done) == len(sizes)
    assert sum(shard.passes for shard in done) == passes + started
    assert sum(shard.weight_bytes for shard in done) == weights.files.bytes_read == before + passes * layers
    if tokens_per_pass > max(sizes):
        assert passes <= math.ceil(sum(sizes) / (tokens_per_pass - max(sizes)))
        assert passes >= sum(sizes) / tokens_per_pass
    else:
        assert passes == len(sizes)


def test_a_pass_goes_over_several_shards_and_each_is_committed_when_it_is_whole(world, work, tmp_path):
    scorer = Scorer(spec_of(world, tmp_path, tokens_per_pass=10**6))
    at_start, written = scorer._stream.passes, []
    write = scorer.cache.write_shard
    scorer.cache.write_shard = lambda name, *rest: (
        written.append((name, scorer._stream.passes - at_start)),
        write(name, *rest),
    )
    scorer.score_group(list(work[:2]))
    assert written == [(work[0].name, 1), (work[1].name, 1)]
    again = scorer.score_group(list(work[1:3]))
    assert [shard.is_left for shard in again] == [True, False], "what is there is not scored again"
    assert again[0].rows == 0


def test_a_pass_that_does_not_fit_is_done_in_two_with_the_same_values(world, work, tmp_path):
    whole, _ = Scorer(spec_of(world, tmp_path / "whole", weights="whole")).score(work[1])
    scorer = Scorer(spec_of(world, tmp_path / "streamed", tokens_per_pass=10**6))
    run, asked = scorer._stream.run, []

    def limited(calls):
        asked.append(len(calls))
        if len(calls) > 2:
            torch.empty(2**50, dtype=torch.uint8)
        return run(calls)

    scorer._stream.run = limited
    done = scorer(work[1])
    assert asked[0] > 4
    assert max(size for size in asked if size <= 2) == 2
    assert "did not fit into memory" in done.did_not_fit
    for one, two in zip(
        ReferenceCache(tmp_path / "streamed", scorer.spec.identity).open().lookup(work[1].keys), whole, strict=True
    ):
        assert np.array_equal(one, two)


def test_a_batch_that_does_not_fit_alone_is_done_in_halves_and_a_row_is_an_error(world, work, tmp_path):
    whole, forwards = Scorer(spec_of(world, tmp_path, weights="whole")).score(work[1])
    scorer = Scorer(spec_of(world, tmp_path))
    hidden, longest = scorer.scoring.hidden, max(work[1].lengths)
    limit = [2 * longest]

    def limited(self, batch):
        if batch.input_ids.numel() > limit[0]:
            torch.empty(2**50, dtype=torch.uint8)
        return hidden(batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raydpo.models.logprobs.AnswerLogProbs.hidden", limited)
        values, parts = scorer.score(work[1])
        assert parts > forwards
        for one, two in zip(values, whole, strict=True):
            np.testing.assert_allclose(one, two, atol=2e-5)
        limit[0] = min(work[1].lengths) - 1
        with pytest.raises(OutOfMemoryError, match=r"a row of [\d,]+ tokens did not fit"):
            scorer.score(work[1])


def adapter_of(world, folder, modules=("q_proj",), **more):
    settings = LoraConfig(target_modules=list(modules), init_lora_weights=False, **more)
    torch.manual_seed(5)
    adapted = get_peft_model(load_model(world.reference, "float32", "auto"), settings)
    adapted.peft_config["default"].base_model_name_or_path = str(world.reference)
    adapted.save_pretrained(folder)
    return ResolvedModel("adapter", None, folder, ResolvedModel("reference", None, world.reference))


def test_auto_is_whole_where_it_fits_and_says_so_where_it_streams(world, tmp_path, monkeypatch):
    model = ResolvedModel("reference", None, world.reference)
    adapter = adapter_of(world, tmp_path)
    needed = whole_bytes(model, "float32")
    parameters = load_model(world.reference, "float32", "auto").parameters()
    assert needed == 4 * sum(parameter.numel() for parameter in parameters) == 2 * whole_bytes(model, "bfloat16")
    assert whole_bytes(adapter, "bfloat16") == needed
    for free, sharing, is_streamed in ((needed / 0.79, 1, False), (needed / 0.81, 1, True), (needed / 0.79, 2, True)):
        monkeypatch.setattr(way, "free_bytes", lambda device, free=free: free)
        found = choose_way("auto", model, "float32", "cpu", sharing)
        assert found.is_streamed is is_streamed
        assert ("it is streamed" in found.said) is is_streamed
    assert not choose_way("whole", model, "float32", "cpu").is_streamed
    found = choose_way("auto", adapter, "bfloat16", "cpu", 2)
    assert found.is_streamed
    assert "GB in float32, and" in found.said, "as it is merged"
    on_packed = replace(adapter, base=replace(model, four_bit=FourBit("bfloat16")))
    found = choose_way("auto", on_packed, "float32", "cpu", 2)
    assert not found.is_streamed
    assert "cannot be streamed (its base is packed" in found.said
    packed = replace(model, four_bit=FourBit("bfloat16"))
    assert whole_bytes(packed, "bfloat16") < whole_bytes(model, "bfloat16") / 2
    monkeypatch.setattr(way, "free_bytes", lambda device: 1)
    assert not choose_way("auto", packed, "bfloat16", "cpu").is_streamed
    with pytest.raises(ConfigError, match="packed into 4 bits"):
        choose_way("streamed", packed, "bfloat16", "cpu")


@pytest.mark.parametrize(
    ("gpu", "main", "is_streamed"), [(1.3, 5.1, False), (1.3, 4.9, True), (1.2, 5.1, True)], ids=["both", "gpu", "main"]
)
def test_an_adapter_for_a_gpu_has_to_fit_merged_there_and_in_float32_into_main_memory(
    world, tmp_path, monkeypatch, gpu, main, is_streamed
):
    once = whole_bytes(ResolvedModel("reference", None, world.reference), "bfloat16") / 2
    free = {"cuda": 2 * once * gpu, "cpu": once * main}
    monkeypatch.setattr(way, "free_bytes", lambda device: free[device])
    assert choose_way("auto", adapter_of(world, tmp_path), "bfloat16", "cuda").is_streamed is is_streamed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_merged_layer_by_layer_with_the_shards_of_a_whole_merge(world, work, tmp_path, dtype):
    adapter = adapter_of(world, tmp_path / "adapter", ["q_proj", "down_proj"])
    shards = {}
    for weights, model in (("whole", adapter), ("streamed", adapter), ("base", adapter.base)):
        spec = replace(spec_of(world, tmp_path / weights, dtype, weights="whole"), model=model)
        spec = spec if weights == "base" else replace(spec, weights=weights)
        done = Scorer(spec).score_group(list(work))
        assert (sum(shard.passes for shard in done) > 3) is (weights == "streamed")
        shards[weights] = {path.name: path.read_bytes() for path in (tmp_path / weights).rglob("*.arrow")}
    assert shards["streamed"] == shards["whole"]
    assert len(shards["whole"]) == len(work)
    assert not set(shards["whole"].values()) & set(shards["base"].values())


def test_an_adapter_that_needs_its_whole_base_is_not_streamed_and_the_error_says_what_is_allowed(world, tmp_path):
    adapter = adapter_of(world, tmp_path / "adapter", ["q_proj"], modules_to_save=["lm_head"])
    spec = replace(spec_of(world, tmp_path / "cache"), model=adapter)
    with pytest.raises(
        ConfigError, match=r"reference\.weights: streamed; adapter cannot be held .* takes the whole model: .*: whole"
    ):
        Scorer(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(way, "free_bytes", lambda device: 1)
        held = hold(adapter, "float32", "auto", "auto", 1, "cpu")
    assert held.stream is None
    assert "takes the whole model: the adapter brings" in held.said
    assert held.said.endswith("so it is loaded whole and may not fit")


def test_free_bytes_of_this_machine_are_within_its_memory():
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert 0 < way.free_bytes("cpu") <= total
