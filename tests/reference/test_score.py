"""Scoring: the values of plain forwards, the same whoever scores them, counted, and refused when they cannot be."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydpo.artifacts import CacheIdentity, ExampleTable, ReferenceCache, weights_digest
from raydpo.errors import ConfigError, IntegrityError, OutOfMemoryError
from raydpo.models.pretrained import load_tokenizer
from raydpo.models.resolve import ResolvedModel
from raydpo.quickstart.fresh_model import create_model
from raydpo.reference.forward import cut_stream, score_rows
from raydpo.reference.identity import reference_identity
from raydpo.reference.plan import plan_shards, wanted_rows
from raydpo.reference.score import Scorer
from tests.train.world import NUM_EVAL, NUM_TRAIN, plain_nats

ROWS_PER_SHARD = 32


@pytest.fixture(scope="module")
def work(world):
    spec = world.scorer_spec(world.folder / "empty")
    wanted = wanted_rows(world.data, ("train", "eval"), 2)
    return plan_shards(wanted, ReferenceCache(spec.cache_dir, spec.identity).open(), ROWS_PER_SHARD)


@pytest.fixture(scope="module")
def scored(world, work, tmp_path_factory):
    """A cache that one scorer filled, and what it said about each shard."""
    spec = world.scorer_spec(tmp_path_factory.mktemp("cache"))
    scorer = Scorer(spec)
    done = [scorer(shard) for shard in work]
    return ReferenceCache(spec.cache_dir, spec.identity).open(), done


def test_values_are_those_of_plain_forwards(world, scored):
    cache, _ = scored
    model, largest = AutoModelForCausalLM.from_pretrained(world.reference), 0.0
    for split, count in (("train", 12), ("eval", NUM_EVAL)):
        table = ExampleTable.open(world.data, split)
        for example in range(count):
            rows = zip(table.answer_ids(example), cache.lookup(table.row_keys(example)), strict=True)
            for answer, values in rows:
                expected = plain_nats(model, table.prompt_ids(example), answer)
                assert values.dtype == np.float32
                assert values.shape == expected.shape
                largest = max(largest, float(np.abs(values - expected).max()))
    assert 0 < largest < 2e-5


def test_rows_tokens_and_forwards_are_counted(world, work, scored):
    cache, done = scored
    assert [shard.name for shard in done] == [shard.name for shard in work]
    assert sum(shard.rows for shard in done) == 2 * (NUM_TRAIN + NUM_EVAL) == cache.table().num_rows
    assert sum(shard.tokens for shard in done) == sum(cache.table()["num_tokens"].to_pylist())
    scorer, calls = Scorer(world.scorer_spec(world.folder / "counted")), []
    rows = [[scorer.rows.row(place) for place in shard.places] for shard in work]
    assert [shard.forwards for shard in done] == [len(list(cut_stream(each, 1024))) for each in rows]
    scorer.scoring.model.register_forward_pre_hook(lambda *_: calls.append(1))
    scorer.scoring.model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
    _, forwards = scorer.score(work[-1])
    assert len(calls) == forwards == done[-1].forwards > 1


def test_values_do_not_depend_on_who_scored_or_when(world, work, scored, tmp_path):
    cache, _ = scored
    workers = [Scorer(world.scorer_spec(tmp_path)) for _ in range(2)]
    for number, shard in enumerate(reversed(work)):
        workers[number % 2](shard)
    again = ReferenceCache(tmp_path, cache.identity).open()
    keys = [key for shard in work for key in shard.keys]
    assert cache.missing(keys) == again.missing(keys) == []
    for one, two in zip(cache.lookup(keys), again.lookup(keys), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_lost_shard_is_scored_to_the_same_bytes(world, work, scored, tmp_path):
    cache, _ = scored
    folder = tmp_path / cache.folder.name
    shutil.copytree(cache.folder, folder)
    lost = list((folder / "shards").glob(f"{work[2].name}*"))
    assert len(lost) == 2
    for path in lost:
        path.unlink()
    rest = ReferenceCache(tmp_path, cache.identity).open()
    left = plan_shards(wanted_rows(world.data, ("train", "eval"), 2), rest, ROWS_PER_SHARD)
    assert list(left) == [work[2]]
    Scorer(world.scorer_spec(tmp_path))(left[0])
    for path in lost:
        assert path.read_bytes() == (cache.folder / "shards" / path.name).read_bytes()


@pytest.mark.parametrize("tokens_per_batch", [1, 10**6])
def test_batching_changes_values_by_rounding_only(world, work, scored, tokens_per_batch, tmp_path):
    values, forwards = Scorer(world.scorer_spec(tmp_path, tokens_per_batch=tokens_per_batch)).score(work[1])
    assert forwards == (ROWS_PER_SHARD // 2 if tokens_per_batch == 1 else 1)  # a pair is never parted
    for one, two in zip(values, scored[0].lookup(work[1].keys), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def with_room_for(scorer, tokens):
    """The scorer's forwards of more tokens ask for memory that no machine has."""
    plain = scorer.scoring

    def forward(batch, *extra):
        if batch.input_ids.numel() > tokens:
            torch.empty(2**50, dtype=torch.uint8)
        return plain(batch, *extra)

    forward.model = plain.model
    scorer.scoring = forward
    return scorer


def test_a_batch_that_does_not_fit_is_done_in_halves(world, work, scored, tmp_path):
    spec = world.scorer_spec(tmp_path, tokens_per_batch=10**6)
    whole, forwards = Scorer(spec).score(work[1])
    assert forwards == 1
    longest = 2 * max(work[1].lengths)
    scorer = with_room_for(Scorer(spec), longest)
    done = scorer(work[1])
    assert done.rows == len(work[1].keys)
    assert 4 <= done.forwards <= ROWS_PER_SHARD
    assert f"({ROWS_PER_SHARD} rows) did not fit into memory (" in done.did_not_fit
    assert "allocate" in done.did_not_fit
    halves = ReferenceCache(spec.cache_dir, spec.identity).open().lookup(work[1].keys)
    for one, two in zip(halves, whole, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)
    assert scorer(work[0]).did_not_fit == "", "a worker says it once"


def test_lighter_work_has_the_same_values_in_more_batches(world, work, scored, tmp_path):
    scorer = Scorer(world.scorer_spec(tmp_path))
    values, forwards = scorer.score(work[1])
    light, more = scorer.score(work[1].lighter().lighter())
    assert more > forwards
    assert scorer.score(work[1])[1] == forwards
    for one, two in zip(light, values, strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_a_row_that_does_not_fit_alone_is_an_error_with_a_way_out(world, work, tmp_path):
    scorer = with_room_for(Scorer(world.scorer_spec(tmp_path)), min(work[0].lengths) - 1)
    with pytest.raises(OutOfMemoryError, match=r"a row of [\d,]+ tokens did not fit .* lower data\.max_length"):
        scorer(work[0])
    assert ReferenceCache(tmp_path, scorer.spec.identity).open().missing(work[0].keys)


def test_an_error_of_another_kind_is_not_tried_again(world, work, tmp_path):
    scorer, calls = Scorer(world.scorer_spec(tmp_path)), []

    def forward(batch, *extra):
        calls.append(batch)
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        score_rows(forward, [scorer.rows.row(place) for place in work[0].places], 10**6, "padded", "cpu")
    assert len(calls) == 1


def test_bf16_is_another_cache_with_near_values(world, work, scored, tmp_path):
    spec = world.scorer_spec(tmp_path, "bfloat16")
    assert spec.identity.digest != scored[0].identity.digest
    values, _ = Scorer(spec).score(work[0])
    exact = scored[0].lookup(work[0].keys)
    differences = [abs(float(one.sum() - two.sum())) for one, two in zip(values, exact, strict=True)]
    assert 0 < max(differences) < 0.05 * max(abs(float(two.sum())) for two in exact)


def spec_of(world, model, cache_dir):
    resolved = ResolvedModel(model.name, None, model)
    identity = reference_identity(weights_digest(resolved.folder), model, "float32", "sdpa", use_gpu=False)
    return replace(world.scorer_spec(cache_dir), model=resolved, identity=identity)


def test_a_value_that_is_not_finite_is_refused_with_its_row(world, work, tmp_path):
    # A NaN in the input embedding of one letter: rows without that letter, and the check of the head, are well.
    shape = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 24, "max_positions": 512}
    model = tmp_path / "model"
    create_model(model, load_tokenizer(world.reference), **shape, seed=0, tie_embeddings=False)
    weights = load_file(model / "model.safetensors")
    token = int(ExampleTable.open(world.data, "train").answer_ids(0)[0][0])
    assert token > 8
    weights["model.embed_tokens.weight"][token] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (shard,) = plan_shards(wanted_rows(world.data, ("train",), 1), ReferenceCache(tmp_path, work_identity()), 1000)
    with pytest.raises(IntegrityError, match=r"nan nats for a token of .*train\.jsonl:\d+"):
        Scorer(spec_of(world, model, tmp_path / "cache"))(shard)
    assert not list((tmp_path / "cache").rglob("*/shards/*")), "nothing was committed"


def work_identity():
    return CacheIdentity("w", "none", "t", "float32", "sdpa-cpu", "1")


def test_broken_weights_are_named_as_such(world, tmp_path):
    shutil.copytree(world.reference, tmp_path / "broken")
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="not finite"):
        Scorer(spec_of(world, tmp_path / "broken", tmp_path / "cache"))


def test_identity_follows_bytes_not_names(world, tmp_path):
    def identity(folder, **changes):
        options = {"dtype": "float32", "attention": "sdpa", "use_gpu": False} | changes
        return reference_identity(weights_digest(folder), folder, **options)

    shutil.copytree(world.reference, tmp_path / "copy")
    start = identity(world.reference)
    assert identity(tmp_path / "copy") == start
    others = [
        identity(world.policy),
        identity(world.reference, dtype="bfloat16"),
        identity(world.reference, attention="eager"),
        identity(world.reference, use_gpu=True),
    ]
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, tmp_path / "copy" / "model.safetensors", metadata={"format": "pt"})
    others.append(identity(tmp_path / "copy"))
    assert len({start.digest, *(other.digest for other in others)}) == 6
