"""The probe before step 1: a cache that says something else than the policy stops the run, whatever its hashes say."""

from dataclasses import replace

import numpy as np
import pytest

from raydpo.artifacts import ExampleTable, ReferenceCache
from raydpo.models.agreement import Noise, compare, probe_examples, tolerance_nats
from raydpo.reference.plan import probe_work
from raydpo.reference.score import Scorer
from raydpo.schema.rank_events import ModelReady, Noted, Probed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wrong_cache(world, tmp_path_factory):
    """A whole, committed cache in which one token of one probe row is 1 nat off."""
    cache_dir, identity = world.cache()
    table = ReferenceCache(cache_dir, identity).open().table()
    keys = table["row_key"].to_pylist()
    values = [np.array(row, np.float32) for row in table["token_nats"].to_pylist()]
    at = keys.index(probe_work(world.data, 2).keys[3])
    values[at][len(values[at]) // 2] -= 1.0
    folder = tmp_path_factory.mktemp("wrong")
    ReferenceCache(folder, identity).write_shard("all", keys, values)
    assert ReferenceCache(folder, identity).open().damaged == []
    return folder, identity


def test_probe_rows_span_the_lengths():
    lengths = np.array([50, 3, 9, 70, 20, 31])
    assert probe_examples(lengths) == [1, 4, 5, 3]
    assert probe_examples(lengths[:2]) == [1, 0]
    assert tolerance_nats("float32", np.array([-1.0, -5000.0])).tolist() == pytest.approx([1e-3, 1e-2])


def test_a_good_cache_passes_and_the_difference_is_reported(runs):
    probed = runs.get().probed
    assert probed.rows == 8
    assert probed.max_difference_nats < probed.tolerance_nats < 1e-3
    assert 0 < probed.noise_nats < 1e-5


@pytest.mark.parametrize(("num_ranks", "stage"), [(1, 0), (2, 0), (2, 3)])
def test_one_nat_in_one_token_stops_every_rank_before_the_first_step(runs, wrong_cache, num_ranks, stage):
    run = runs.fresh(replace(runs.spec(zero_stage=stage), reference=wrong_cache), num_ranks)
    assert run.error.startswith("ReferenceMismatchError: ")
    assert "train.jsonl:" in run.error
    assert "they differ by 1," in run.error
    assert [type(event) for event in run.events] == [ModelReady, Noted]


def test_another_policy_is_not_the_reference(runs, world):
    spec = replace(runs.spec(policy=world.policy), probe=True)
    assert runs.fresh(spec).error.startswith("ReferenceMismatchError: ")
    declared = runs.get(policy=world.policy, max_steps=1)
    assert not declared.error
    assert not declared.of(Probed)


def test_the_declared_reference_is_scored_again(world, wrong_cache, tmp_path):
    work = probe_work(world.data, 2)
    table = ExampleTable.open(world.data, "train")
    assert [table.row_keys(e)[a] for _, e, a in work.places] == list(work.keys)
    done = Scorer(world.scorer_spec(tmp_path))(work)
    fresh, tolerance = done.nats, Noise(done.noise_nats).tolerance
    assert list(tmp_path.iterdir()) == []  # it commits nothing
    good, wrong = (ReferenceCache(*cache).open().lookup(list(work.keys)) for cache in (world.cache(), wrong_cache))
    found = compare(fresh, good, tolerance)
    assert found.worst_nats < found.allowed_nats < 1e-3
    assert found.problem is None
    found = compare(fresh, wrong, tolerance)
    assert found.worst_nats == pytest.approx(1, abs=1e-3)
    assert found.problem is not None
    assert found.problem[3] == pytest.approx(1, abs=1e-3)
