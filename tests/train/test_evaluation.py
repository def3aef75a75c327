"""`raydpo evaluate` on one rank: what it refuses to measure, and a model that is held one layer at a time."""

import json
import math
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from raydpo.errors import ConfigError, OutOfMemoryError
from raydpo.models.layer_stream import LayerStream
from raydpo.models.layer_weights import LayerWeights
from raydpo.reference import way
from raydpo.reference.held import hold
from raydpo.train import evaluation
from tests.train.gang import Place

OBJECTIVES = {"dpo": "dpo", "two passes": "kto", "collisions": {"name": "simpo", "wpo": True}}


class Held:
    """`hold` for an evaluation; what it gave is kept."""

    def __init__(self, spec, weights):
        self._hold = partial(hold, spec.model, spec.dtype, spec.config.model.attention, weights, 1)

    def __call__(self, device):
        self.model = self._hold(device)
        return self.model


def evaluated(spec, weights, rank=0, num_ranks=1):
    """(shares, what held the model)."""
    held = Held(spec, weights)
    return list(evaluation.run(Place(rank, num_ranks), spec, held)), held


def spec_of(runs, world, tokens_per_pass, **options):
    spec = runs.spec(policy=world.policy, tokens_per_microbatch=300, **options)
    section = spec.config.reference.model_copy(update={"stream_tokens": tokens_per_pass})
    return replace(spec, config=spec.config.model_copy(update={"reference": section}))


def test_positions_that_depend_on_the_rows_beside_are_refused(runs, world, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(world.policy, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}}
    config |= {"max_position_embeddings": 32}
    (folder / "config.json").write_text(json.dumps(config))
    spec = runs.spec(objective="simpo", policy=folder)
    shares = evaluation.run(Place(0, 1), spec, Held(spec, "whole"))
    with pytest.raises(ConfigError, match="rescales its rotary positions beyond 32 tokens"):
        list(shares)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_sums_of_a_streamed_model_are_those_of_a_whole_one_bit_for_bit(runs, world, objective, dtype):
    spec = spec_of(runs, world, 1200, objective=objective, dtype=dtype)
    for rank in range(2):
        (whole, _), (streamed, _) = (evaluated(spec, weights, rank, 2) for weights in ("whole", "streamed"))
        assert np.array_equal(whole[-1].vector, streamed[-1].vector)
        assert np.isfinite(whole[-1].vector).all()
        assert whole[-1].examples == streamed[-1].examples > 0
        assert [share.examples for share in whole] == [share.examples for share in streamed]
        assert (whole[-1].passes, whole[-1].weight_bytes) == (0, 0)


@pytest.mark.parametrize("tokens_per_pass", [1, 700, 10**6])
def test_weights_are_read_once_a_pass_and_no_more_than_a_layer_is_there(runs, world, tokens_per_pass, monkeypatch):
    most = [0]
    load = LayerWeights._load

    def counted(self, part):
        load(self, part)
        most[0] = max(most[0], sum(p.nbytes for layer in self.layers for p in layer.parameters() if not p.is_meta))

    monkeypatch.setattr(LayerWeights, "_load", counted)
    sizes, read = [], evaluation.with_forwards

    def sized(*args, **kwargs):
        for batch, forward in read(*args, **kwargs):
            sizes.append(batch.sequences.input_ids.numel())
            yield batch, forward

    monkeypatch.setattr(evaluation, "with_forwards", sized)
    shares, held = evaluated(spec_of(runs, world, tokens_per_pass), "streamed")
    weights = held.model.stream.weights
    layers = [weights.layer_bytes(number) for number in range(len(weights.layers))]
    assert most[0] == max(layers), "files are in float32, as the model is"
    last, at_start = shares[-1], 3
    assert last.weight_bytes == weights.stays_bytes + last.passes * sum(layers)
    passes = last.passes - at_start
    assert len(sizes) > 4
    if tokens_per_pass > max(sizes):
        assert sum(sizes) / tokens_per_pass <= passes <= math.ceil(sum(sizes) / (tokens_per_pass - max(sizes)))
    else:
        assert passes == len(sizes)


def test_a_pass_that_does_not_fit_is_done_in_two_and_a_micro_batch_is_an_error(runs, world, monkeypatch):
    spec = spec_of(runs, world, 10**6)
    whole, _ = evaluated(spec, "whole")
    run, limit = LayerStream.run, [2]

    def limited(self, calls):
        if self.passes >= 3 and len(calls) > limit[0]:
            torch.empty(2**50, dtype=torch.uint8)
        return run(self, calls)

    monkeypatch.setattr(LayerStream, "run", limited)
    halved, _ = evaluated(spec, "streamed")
    assert np.array_equal(whole[-1].vector, halved[-1].vector)
    assert halved[-1].passes > 4
    limit[0] = 0
    with pytest.raises(OutOfMemoryError, match=r"a micro-batch of [\d,]+ tokens"):
        evaluated(spec, "streamed")


def test_the_way_is_chosen_by_size_and_said_first(runs, world, monkeypatch):
    spec = spec_of(runs, world, 10**6)
    shares, held = evaluated(spec, "auto")
    assert (held.model.stream, shares[0].said) == (None, "")
    monkeypatch.setattr(way, "free_bytes", lambda device: 1000)
    shares, held = evaluated(spec, "auto")
    assert held.model.stream is not None
    assert "it is streamed, each layer is read from its files once a pass" in shares[0].said
    assert not any(share.said for share in shares[1:])
